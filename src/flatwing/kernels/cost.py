"""How long the backends made of torch operations take: a model of calls, bytes and operations, and its constants."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch

from ..structure.pattern import Pattern
from .backend import Task


class Machine(NamedTuple):
    """Rates of one core (CPU) or of the device (GPU), for numbers of four bytes."""

    call: float  # seconds per operation of torch
    cached: float  # bytes per second read or written in the caches
    memory: float  # the same, from and to memory
    cache: float  # bytes
    gemm: float  # operations per second of a large GEMM


MACHINES = {
    "cpu": Machine(call=3e-6, cached=60e9, memory=20e9, cache=16e6, gemm=80e9),
    "cuda": Machine(call=6e-6, cached=3e12, memory=2.5e12, cache=40e6, gemm=60e12),
}


def machine_of(task: Task) -> Machine:
    """The rates for the device of a task."""
    return MACHINES.get(task.device, MACHINES["cuda"])


def move_seconds(size: int | float, task: Task) -> float:
    """Time to read or write `size` numbers of the task's dtype."""
    machine, bytes_ = machine_of(task), size * task.dtype.itemsize
    return bytes_ / (machine.cached if bytes_ <= machine.cache else machine.memory)


def gemm_seconds(m: int, n: int, rows: int, count: int, task: Task) -> float:
    """Time of `count` products (m, n) by (n, rows): operations, or reading the matrices if that takes longer."""
    machine = machine_of(task)
    # a tile of a GEMM is about 16 x 16 or 8 x 32: smaller sides leave lanes idle
    filled = min(1.0, m / 16) ** 0.5 * min(1.0, n / 16) ** 0.5 * min(1.0, rows / 16) ** 0.25
    width = task.dtype.itemsize / 4 * (2 if task.dtype.is_complex else 1)
    rate = machine.gemm * filled / width * (task.threads if task.device == "cpu" else 1)
    return max(2 * m * n * rows * count / rate, move_seconds(m * n * count, task))


def factor_seconds(pattern: Pattern, task: Task) -> float:
    """One factor by batched GEMM: its call, its copies, its operations."""
    a, b, c, d = pattern
    copied = (task.rows * a * c * d if d > 1 and a > 1 else 0) + task.rows * a * b * d
    once = machine_of(task).call + 2 * move_seconds(copied, task) + gemm_seconds(b, c, task.rows, a * d, task)
    return once * (3 if task.train else 1)


def native_seconds(task: Task) -> float:
    """The whole chain, factor by factor."""
    ends = 0 if task.layout == "batch-last" else 2 * move_seconds(task.rows * sum(task.chain.shape), task)
    return ends + sum(factor_seconds(p, task) for p in task.chain)


def dense_seconds(task: Task) -> float:
    """One GEMM with a matrix that exists already: what structure must beat."""
    m, n = task.chain.shape
    once = machine_of(task).call + gemm_seconds(m, n, task.rows, 1, task)
    return once * (3 if task.train else 1)


def merge_seconds(task: Task, patterns: tuple[Pattern, ...] | None = None) -> float:
    """Multiplying neighbouring factors to one, and (for all of them) writing it into a dense matrix."""
    found = 0.0
    whole = patterns is None
    patterns = task.chain.patterns if patterns is None else patterns
    if whole and not task.chain.chainable and not task.chain.T.chainable:
        n = task.chain.shape[1]
        return n / max(task.rows, 1) * native_seconds(task)
    dual = not all_chainable(patterns)
    run = tuple(p.T for p in reversed(patterns)) if dual else patterns
    for i in range(1, len(run)):
        left = reduce(Pattern.__mul__, run[:i])
        both = left * run[i]
        r = left.rank(run[i])
        found += (
            2 * machine_of(task).call + 2 * both.nnz * r / (machine_of(task).gemm / 8) + move_seconds(both.nnz, task)
        )
    if whole:
        found += machine_of(task).call + 2 * move_seconds(task.chain.shape[0] * task.chain.shape[1], task)
    return found * (3 if task.train else 1)


def all_chainable(patterns: tuple[Pattern, ...]) -> bool:
    """Whether these neighbours have a product pattern as they stand."""
    from ..structure import Chain

    return Chain(patterns).chainable


def dtype_name(dtype: torch.dtype) -> str:
    """float32 rather than torch.float32."""
    return str(dtype).removeprefix("torch.")
