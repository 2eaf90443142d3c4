"""How many threads torch may use for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from .limits import require_whole

SMALL = 256


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """`count` threads of torch for a while, `None` for as many as there are, then as before.

    Raises `ValueError` for a count below 1.

    >>> with using_threads(1):
    ...     torch.get_num_threads()
    1
    """
    if count is not None:
        count = require_whole("the number of threads", count)
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)  # even if equal: MKL has a number of its own until it is told
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def threads_for(side: int) -> AbstractContextManager[None]:
    """One thread while blocks with a small side up to `SMALL` are solved, all threads for larger ones; then as before.

    A batch of small blocks is many short calls. Threads that wait for each other in every one of them gain nothing on
    an idle machine and lose a factor of ten to a hundred on a busy one.
    """
    return using_threads(None if side > SMALL else 1)
