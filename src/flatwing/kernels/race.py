"""race: the backends and the dense layer take turns at one task, here and now."""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch

from ..core import using_threads
from ..structure import SparseProduct
from .api import multiply
from .backend import BACKENDS, Task
from .packed import Packed
from .plan import plan_for
from .wisdom import DENSE

ROUNDS = 7  # at least
SAMPLE = 1e-3  # seconds; shorter calls are repeated until they take that long
HOPELESS = 30  # times the fastest prediction: who is expected to take so long does not take part
HEADROOM = 0.8  # of the free memory may be used


@final
@dataclass(frozen=True)
class Timing:
    """Seconds per call over `rounds` rounds: the median, and the quartiles around it."""

    seconds: float
    low: float
    high: float
    rounds: int


def race(task: Task, names: Sequence[str] | None = None, *, seconds: float = 0.3, seed: int = 0) -> dict[str, Timing]:
    """Times of the backends (by default all that have a chance) and of `F.linear` with a dense matrix, by name.

    They take turns in an order drawn anew in each round, so that what else the machine does hits all alike, for about
    `seconds` each and at least `ROUNDS` rounds. Whole calls are timed: `multiply`, for `task.train` with the gradients
    of the vectors and of all weights, for `task.packed` those of `Packed`, prepared before.

    Raises `ValueError` for a backend that is unknown or does not support the task, and, before anything is allocated,
    if the vectors and the dense matrix do not fit into the free memory.

    >>> from flatwing import Chain
    >>> timings = race(Task(Chain.butterfly(16), rows=4), ["bmm"], seconds=0.001)
    >>> sorted(timings), timings["bmm"].low <= timings["bmm"].seconds <= timings["bmm"].high
    (['F.linear', 'bmm'], True)
    """
    if names is None:
        times = plan_for(task).times
        near = [name for name, expected in times if expected <= HOPELESS * times[0][1]]
        names = [name for name in near if BACKENDS[name].fails_because(task) is None]
    require_memory(task, "dense" in names)
    generator = torch.Generator(task.device).manual_seed(seed)
    last = task.layout == "batch-last"
    (m, n), rows = task.chain.shape, task.rows

    def random_tensor(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=generator, device=task.device, dtype=task.dtype)
        return made.requires_grad_(task.train)

    with (
        using_threads(task.threads if task.device == "cpu" else None),
        no_collection(),
        torch.set_grad_enabled(task.train),
    ):
        x, matrix = random_tensor(*((n, rows) if last else (rows, n))), random_tensor(m, n)
        factors = [random_tensor(p.blocks, p.b, p.c) for p in task.chain]
        product = SparseProduct(task.chain, factors)
        dense = partial(torch.matmul, matrix, x) if last else partial(torch.nn.functional.linear, x, matrix)
        calls = {DENSE: _call(dense, [x, matrix], task)}
        for name in names:
            run = partial(multiply, x, product, backend=name, layout=task.layout)
            if task.packed:
                run = partial(Packed(product, backend=name), x)
            calls[name] = _call(run, [x, *factors], task)
        return {name: _timing(times) for name, times in _turns(calls, seconds, task.device, seed).items()}


def require_memory(task: Task, merging: bool = False) -> None:
    """Raise `ValueError` if the vectors, their images, the dense matrix and the factors do not fit in free memory.

    `merging` counts in a backend that makes the matrix of the factors, with the copies on the way.
    """
    (m, n), rows = task.chain.shape, task.rows
    widest = max(p.shape[0] for p in task.chain)
    needed = (
        ((4 if merging else 1) * m * n + task.chain.nnz + rows * (m + n + 2 * widest))
        * task.dtype.itemsize
        * (3 if task.train else 1)
    )
    free = free_memory(task.device)
    if free is not None and needed > HEADROOM * free:
        raise ValueError(
            f"measuring {m} x {n} dense with batch {rows} takes about {_amount(needed)}, free on {task.device} are "
            f"{_amount(free)}. Rule: at most {HEADROOM:.0%} of that. Leave out --measure (measure=False): predictions "
            "allocate nothing."
        )


def free_memory(device: str) -> int | None:
    """Bytes that can still be allocated on a kind of device; None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    free = []
    with suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):  # a container may be allowed less than the machine has
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        free.append(int((group / "memory.max").read_text(encoding="utf-8")) - used)
    if not free:
        with suppress(OSError, ValueError, AttributeError):
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(free, default=None)


def _amount(size: int | float) -> str:
    """Bytes for people.

    >>> _amount(4e14)
    '364 TiB'
    """
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:,.3g} {units[0]}" if size < 1000 else f"{size:,.0f} {units[0]}"


def _call(run: Callable[[], torch.Tensor], leaves: list[torch.Tensor], task: Task) -> Callable[[], object]:
    """What is timed: the product alone, or with the gradients of its leaves."""
    if not task.train:
        return run
    with torch.no_grad():
        grad = torch.ones_like(run())
    return lambda: torch.autograd.grad(run(), leaves, grad)


def _turns(calls: dict[str, Callable[[], object]], seconds: float, device: str, seed: int) -> dict[str, list[float]]:
    """Seconds of each call, taken in turns of random order after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffle, order = random.Random(seed), list(calls)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def timed(call: Callable[[], object], repeats: int) -> float:
        if repeats > 1:
            call()  # what it needs is in the caches again, whatever the others left there
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        return (time.perf_counter() - start) / repeats

    for call in calls.values():
        timed(call, 1)  # compiles, packs, allocates
    repeats = {name: max(1, round(SAMPLE / timed(call, 2))) for name, call in calls.items()}
    end = time.perf_counter() + seconds * len(calls)
    while len(times[order[0]]) < ROUNDS or time.perf_counter() < end:
        shuffle.shuffle(order)
        for name in order:
            times[name].append(timed(calls[name], repeats[name]))
    return times


def _timing(times: list[float]) -> Timing:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(middle, low, high, len(times))


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection, which would be counted to whichever call it happens in."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
