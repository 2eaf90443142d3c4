"""Team: processes that share out work through a counter; alone, the same code runs without one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from typing import Any, final

PATIENCE = timedelta(days=30)  # a process that dies is torchrun's business: it ends the others
NO_MORE = 1 << 40  # added to the counter of tasks
_calls = count()


@final
class Team:
    """The processes that torchrun started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or this one alone.

    All processes make the same calls in the same order; what one of them says under a key, all can hear.

    >>> team = Team.of(rank=0, size=1)
    >>> list(team.share(3)), team.is_first
    ([0, 1, 2], True)
    """

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size, self._store, self._done = rank, size, store, 0

    @classmethod
    def of(cls, rank: int, size: int) -> Team:
        """A team of `size`; more than one process meet at the address that the environment names."""
        if size == 1:
            return cls(rank, size, None)
        from torch.distributed import PrefixStore  # type: ignore[reportPrivateImportUsage]
        from torch.distributed.rendezvous import rendezvous

        store = next(iter(rendezvous("env://", rank, size)))[0]
        store.set_timeout(PATIENCE)
        # the store of torchrun lives on when it restarts its processes, and over several calls in one process
        round_ = f"flatwing/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_calls)}"
        return cls(rank, size, PrefixStore(round_, store))

    @classmethod
    def from_environment(cls) -> Team:
        """The team of this process; raises `ValueError` for a RANK or WORLD_SIZE that is no number in range."""
        texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            rank, size = map(int, texts)
        except ValueError:
            rank, size = -1, 0
        if not 0 <= rank < size:
            raise ValueError(
                f"RANK={texts[0]!r} and WORLD_SIZE={texts[1]!r} in the environment. Rule: 0 <= RANK < WORLD_SIZE, as "
                "torchrun sets them; unset both to run alone."
            )
        return cls.of(rank, size)

    @property
    def is_first(self) -> bool:
        """Whether this process prepares and assembles."""
        return self.rank == 0

    def share(self, tasks: int) -> Iterator[int]:
        """Numbers below `tasks`, each given to one process only, in ascending order, when it asks for the next one."""
        if self._store is None:
            yield from range(tasks)
            return
        while (mine := self._store.add("next", 1) - 1) < tasks:
            yield mine

    def tally(self) -> int:
        """Count one finished task; the result is how many all processes have finished."""
        self._done += 1
        return self._done if self._store is None else self._store.add("done", 1)

    def together(self, key: str, action: Callable[[], None], *, first_only: bool = False) -> None:
        """Do something in all processes (or in the first one), and wait for all.

        An error is raised as it is where it happens and as `RuntimeError` in the others, which get no further work.
        """
        failed: Exception | None = None
        if self.is_first or not first_only:
            try:
                action()
            except Exception as error:
                failed = error
                if self._store is not None:
                    self._store.add("next", NO_MORE)
        texts = self._gather(key, "" if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            self.leave()
            raise failed
        for rank, text in enumerate(texts):
            if text:
                self.leave()
                raise RuntimeError(f"process {rank} stopped with {text}")

    def agree(self, key: str, answer: bool = False) -> bool:
        """The answer of the first process, in all."""
        if self._store is None:
            return answer
        if self.is_first:
            self._store.set(key, str(answer))
        return self._store.get(key).decode() == str(True)

    def leave(self) -> None:
        """Say good-bye; the first process, which may hold the store, goes last."""
        if self.is_first:
            self._gather("bye")
        elif self._store is not None:
            self._store.set(f"bye/{self.rank}", " ")

    def _gather(self, key: str, text: str = "") -> list[str]:
        """What each process says, once all have said it; by rank."""
        if self._store is None:
            return [text]
        self._store.set(f"{key}/{self.rank}", text or " ")
        return [self._store.get(f"{key}/{rank}").decode().strip() for rank in range(self.size)]
