"""How long the backends made of torch operations take: a linear model of calls, weights, operations and moves.

The constants were fitted to the best times of 1,500 products on one core of a Zen 4 processor with AVX-512 (rows 1 to
4096, blocks of 2 to 4096, real, complex and bfloat16, forward and training). There, predicted and measured times of
dense layers and of most chains differ by less than a third, and by a factor of two in the worst tenth. Other machines
differ mostly by their rates: those that were measured (`rates`) take the place of these. The rates of GPUs are those
of data sheets.
"""

from __future__ import annotations

import os
from functools import lru_cache, reduce
from math import prod
from typing import NamedTuple

import torch

from ..structure import Chain, Pattern
from . import wisdom
from .backend import Task
from .native import FEW_ROWS

FRESH = 32e6  # bytes of a tensor that comes from the system anew in every call, empty pages and all
TINY = 400  # multiplications of one block below which torch loops by itself instead of calling a GEMM
LOOP = 0.08  # starts of a block that one result of such a loop takes
ONE_VECTOR = 9e9  # bytes per second at which batched products with one vector read their blocks


class Machine(NamedTuple):
    """Rates of one core (CPU) or of the device (GPU)."""

    call: float  # seconds per GEMM, called from Python
    block: float  # seconds to start one block of a batched GEMM
    pack: float  # bytes of a matrix per second, read and packed for a GEMM
    cached: float  # bytes per second read or written in the caches
    memory: float  # bytes per second read from memory
    fresh: float  # bytes per second of empty pages given by the system
    cache: float  # bytes
    gemm: float  # operations per second of a large GEMM of float32


MACHINES = {
    "cpu": Machine(2e-6, 5e-8, 28e9, 51e9, 30e9, 6e9, 16e6, 100e9),
    "cuda": Machine(4e-6, 0.0, 3e12, 3e12, 2.5e12, 1e15, 40e6, 50e12),
}
# time of one operation over that of float32; an operation of complex numbers is four real ones
WIDTHS = {
    "cpu": {torch.float64: 2.0, torch.complex64: 3.9, torch.complex128: 8.0, torch.bfloat16: 0.45, torch.float16: 6.8},
    "cuda": {
        torch.float64: 1.0,
        torch.complex64: 4.0,
        torch.complex128: 4.0,
        torch.bfloat16: 0.08,
        torch.float16: 0.08,
    },
}
TILE = 16  # a matrix with a shorter side leaves units of the processor idle
TOGETHER = 1.4
"""Traffic of several cores over that of one.

Measured with 2 and 4 threads on 4 cores: sums and copies of 128 MiB are 1.4 times as fast with either. Products of a
matrix with one vector are as fast as with one thread, with 2 to 16 vectors the matrix is packed by one thread of two.
"""
PACKED = 0.9  # calls that a packed product takes around its kernel
VIEW, RECORD = 4.5, 7.0  # calls that the views around a GEMM take, and what autograd records of one operation


def machine_of(task: Task) -> Machine:
    """The rates for the device of a task: those that were measured here, else those of `MACHINES`."""
    return _machine(task.device, wisdom.version())


@lru_cache(maxsize=64)
def _machine(device: str, _: int) -> Machine:
    machine = MACHINES.get(device, MACHINES["cuda"])
    known = {name: rate for name, rate in wisdom.rates(device).items() if _is_near(rate, getattr(machine, name, 0.0))}
    return machine._replace(**known)


def width_of(task: Task) -> float:
    """Time of one operation of the task's dtype over that of one of float32."""
    return _width(task.dtype, task.device, wisdom.version())


@lru_cache(maxsize=64)
def _width(dtype: torch.dtype, device: str, _: int) -> float:
    shipped = WIDTHS.get(device, WIDTHS["cuda"]).get(dtype, 1.0)
    known = wisdom.rates(device).get(f"width {dtype_name(dtype)}", shipped)
    return known if _is_near(known, shipped) else shipped


def _is_near(rate: float, shipped: float) -> bool:
    """Whether a machine with this rate exists next to the one where the shipped rate was found."""
    return shipped / 100 <= rate <= shipped * 100


def move_seconds(size: int | float, task: Task) -> float:
    """Time to copy about `size` numbers of the task's dtype; what is written to memory is read first, too."""
    machine, bytes_ = machine_of(task), size * task.dtype.itemsize
    return bytes_ / (machine.cached if bytes_ <= machine.cache else 0.4 * machine.memory)


class Work(NamedTuple):
    """Seconds that one core needs, by what more cores change about them."""

    arithmetic: float
    traffic: float

    def times(self, factor: int | float) -> Work:
        """So many times this work."""
        return Work(factor * self.arithmetic, factor * self.traffic)


def gemm_work(m: int, n: int, rows: int, count: int, task: Task) -> Work:
    """`count` products (m, n) by (n, rows), without the call: operations; matrices read and packed."""
    machine = machine_of(task)
    size = m * n * count * task.dtype.itemsize
    read = size / machine.memory if size > machine.cache else 0.0
    if _is_converted(task):
        read += 1.5 * size / machine.pack
    else:  # few vectors need no packing
        read += size / machine.pack * min(1.0, rows / 4)
    started = count * machine.block * (2.5 if _is_converted(task) else 1)
    return Work(started + 2 * m * n * rows * count * width_of(task) / machine.gemm, read)


def call_seconds(task: Task, calls: int | float) -> float:
    """Time of so many calls of torch from Python."""
    return machine_of(task).call * calls * (2 if _is_converted(task) else 1)


def _is_converted(task: Task) -> bool:
    """Whether numbers are of two bytes, which the libraries of a CPU bring into another form, and choose longer."""
    return task.device == "cpu" and task.dtype.itemsize == 2


def factor_seconds(pattern: Pattern, task: Task) -> float:
    """One factor by batched GEMM: its call, its copies, its operations, for training with both gradients."""
    a, b, c, d = pattern
    machine, rows = machine_of(task), task.rows
    if a * d == 1:
        return layer_seconds(b, c, task)
    loops = b * c * rows < TINY and task.device == "cpu"
    work, read = LOOP * machine.block * a * b * d * rows, 0.0
    if not loops:
        work, read = gemm_work(b, c, rows, a * d, task)
    if rows <= 2 and task.device == "cpu":
        read = max(read, pattern.nnz * task.dtype.itemsize / ONE_VECTOR)
    if not loops and a == 1 and d > 1 and rows <= FEW_ROWS and task.layout == "batch-first":
        work += d * machine.call  # strides that no batched GEMM takes: block by block
    copied = (a * b * d if d > 1 and b > 1 else 0) + (a * c * d if d > 1 and a > 1 else 0)
    ends = (b + c) * a * d
    moved = rows * (6 * ends + 2 * copied if task.train else ends + 2 * copied)
    call = call_seconds(task, 1 + VIEW + (5 * RECORD if task.train else 0))
    weights = pattern.nnz * task.dtype.itemsize
    if weights <= machine.cache < task.chain.nnz * task.dtype.itemsize:
        read += weights / machine.memory  # the other factors took its place in the cache
    work, read = Work(work, read).times(3.3 if task.train else 1)
    if task.train and task.chain.nnz * task.dtype.itemsize > machine.cache:
        read += weights / (0.4 * machine.memory)  # so does the gradient
    return call + _shared(Work(work, read + move_seconds(moved, task)), task)


def native_seconds(task: Task) -> float:
    """The whole chain, factor by factor."""
    stays = task.rows <= FEW_ROWS or len(task.chain) == 1 or all(p.blocks == 1 for p in task.chain)
    turned = task.layout == "batch-first" and not stays
    # transposing reads or writes with long strides: a fifth of the rate of a copy
    ends = 5 * move_seconds(task.rows * sum(task.chain.shape), task) if turned else 0.0
    return _shared(Work(0.0, ends), task) + sum(factor_seconds(p, task) for p in task.chain)


def dense_seconds(task: Task) -> float:
    """One GEMM, for a batch of products a batched one, with matrices that exist already: what structure must beat."""
    m, n = task.chain.shape
    if task.products > 1:
        return factor_seconds(Pattern(task.products, m // task.products, n // task.products, 1), task)
    return layer_seconds(m, n, task)


def layer_seconds(m: int, n: int, task: Task) -> float:
    """`F.linear` with an m x n matrix, for training with both gradients."""
    rows = task.rows
    work, read = gemm_work(max(m, TILE), max(n, TILE), rows, 1, task)
    ends = (m + n) * rows
    # oneDNN, which multiplies this type, thinks before each product: measured for matrices of 64 to 1024 columns
    chosen = 5 * machine_of(task).call if task.device == "cpu" and task.dtype == torch.bfloat16 else 0.0
    if not task.train:
        both = Work(work, read + move_seconds(ends, task))
        # a single vector is multiplied by one thread
        return (
            chosen + call_seconds(task, 1) + (_shared(both, task) if rows > 1 else sum(both)) + _fresh(m * rows, task)
        )
    # the gradient of the weights is written; the vectors are read once more, and turned
    both = Work(3 * work, 3 * read + move_seconds(m * n + 5 * ends, task))
    fresh = sum(_fresh(size, task) for size in (m * n, m * rows, n * rows))
    return 3 * chosen + call_seconds(task, 1 + 2 * RECORD) + _shared(both, task) + fresh


def overhead_seconds(task: Task, native: bool) -> float:
    """What `multiply` adds to every backend: checks, the plan, and what autograd records of compiled kernels."""
    machine = machine_of(task)
    if task.products > 1:  # brought side by side and apart again
        return 20 * machine.call + 2 * move_seconds(task.rows * sum(task.chain.shape), task)
    if task.packed:
        return PACKED * machine.call
    if task.train and not native:
        return (5.5 + 6.5 * RECORD) * machine.call
    short = not native and not (task.device == "cpu" and task.layout == "batch-last")  # columns take the long way
    return (1.2 if short else 5.0) * machine.call


def _shared(work: Work, task: Task) -> float:
    """Time of work that threads share; waking them takes a while.

    Cores divide the arithmetic, at most as many as there are. They do not divide the traffic: see `TOGETHER`.
    """
    alone = sum(work)
    threads = min(task.threads, os.cpu_count() or 1)
    if task.device != "cpu" or threads == 1:
        return alone
    together = work.arithmetic / threads + work.traffic / min(threads, TOGETHER)
    return min(alone, together + 2 * machine_of(task).call)


def _fresh(size: int | float, task: Task) -> float:
    """Time to get a new tensor of `size` numbers from the system, if it is large."""
    bytes_ = size * task.dtype.itemsize
    return bytes_ / machine_of(task).fresh if bytes_ >= FRESH else 0.0


def merge_seconds(task: Task, patterns: tuple[Pattern, ...] | None = None) -> float:
    """Multiplying neighbouring factors to one, and (for all of them) writing it into a dense matrix."""
    whole = patterns is None
    patterns = task.chain.patterns if patterns is None else patterns
    if whole and not task.chain.chainable and not task.chain.T.chainable:
        n = task.chain.shape[1]
        return n / max(task.rows, 1) * native_seconds(task)
    machine, found = machine_of(task), 0.0
    run = patterns if Chain(patterns).chainable else tuple(p.T for p in reversed(patterns))
    for i in range(1, len(run)):
        left = reduce(Pattern.__mul__, run[:i])
        both, rank = left * run[i], left.rank(run[i])
        blocks = both.nnz // (left.b * run[i].c)
        work, read = gemm_work(left.b, rank, run[i].c, blocks, task)
        moved = move_seconds(4 * both.nnz, task)
        found += 25 * machine.call + _shared(Work(work + 0.5 * blocks * machine.block, read + moved), task)
    if whole:
        size = prod(task.chain.shape) // task.products
        found += 14 * machine.call + move_seconds(2 * size, task) + 3 * _fresh(size, task)
    return found * (2.7 if task.train else 1)


def merging_seconds(task: Task, merged: tuple[int, ...]) -> float:
    """Time to merge the neighbours at these splits (1-based)."""
    runs, lo = [], 0
    for s in range(1, len(task.chain) + 1):
        if s not in merged:
            runs.append(task.chain.patterns[lo:s])
            lo = s
    return sum((merge_seconds(task, run) for run in runs if len(run) > 1), start=0.0)


def dtype_name(dtype: torch.dtype) -> str:
    """float32 rather than torch.float32."""
    return str(dtype).removeprefix("torch.")
