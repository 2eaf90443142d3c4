"""Dyadic butterflies on the CPU: tiles of rows go through all factors while they are in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ...structure import Chain
from ..backend import LOW, Gradients, Prepared, solid
from . import dyadic_kernels as kernels
from . import vectors, workers
from .blocks_call import readable
from .dyadic_passes import passes
from .simd import vector_bytes

KINDS = {torch.float32: np.float32(0), torch.float64: np.float64(0)}
LANES = {dtype: vector_bytes() // dtype.itemsize for dtype in KINDS}

TILE, TILE_BACK = 256 << 10, 640 << 10
"""Bytes of the rows of a tile; of its state before each pass. With the weights they shall fit into the second cache."""

FEWEST_ROWS, MOST_ROWS = 4, 16
"""Rows of a tile: fewer would read the weights too often, more do not make that noticeably cheaper."""

PAGE = 4096
"""Bytes after which lines fall into the same set of the first cache again."""

LAST_CACHE = 16 << 20
"""Bytes of a result from which on it is written past the caches, which saves reading it first."""

RATE, MEMORY, FRESH = 95e9, 24e9, 6.4e9
"""Measured on one core with 64-byte vectors: float32 operations per second, bytes per second from and to memory, and
into pages that are touched for the first time."""

RADIX_BACK = 4 if vector_bytes() == 64 else 2
"""Radix of the passes of the backward: the sums of radix 4 need 16 registers besides those for a row."""


def unsupported_because(chain: Chain, dtype: torch.dtype, rows: int, last: bool) -> str | None:
    """None if these kernels compute it, else a reason.

    Rule: all factors are (a, 2, 2, d), real, in single or double precision; with v numbers in a vector of the machine,
    every d is a multiple of v or a power of two below, and n is a multiple of v; vectors are rows.

    >>> unsupported_because(Chain.butterfly(1024), torch.float32, 16, False)
    >>> unsupported_because(Chain.monarch(1024, 1024, blocks=32), torch.float32, 16, False)
    'the factor (1,32,32,32) has no 2 x 2 blocks'
    """
    if dtype not in KINDS:
        return f"dyadic kernels take float32 and float64, not {str(dtype).removeprefix('torch.')}"
    if last:
        return "dyadic kernels take batch-first vectors"
    lanes, n = LANES[dtype], chain.shape[1]
    for pattern in chain:
        _, b, c, d = pattern
        if b != 2 or c != 2:
            return f"the factor {pattern} has no 2 x 2 blocks"
        if d % lanes and (d > lanes or d & (d - 1)):
            return f"d = {d} of the factor {pattern} is neither a multiple of {lanes} nor a power of two below"
    return None if n % lanes == 0 else f"n = {n} is not a multiple of {lanes}"


def seconds(chain: Chain, rows: int, dtype: torch.dtype, last: bool, train: bool, threads: int) -> float:
    """Predicted time of one call of what is supported, without what all backends share.

    >>> seconds(Chain.butterfly(1024), 4096, torch.float32, False, False, 1) < 0.1
    True
    """
    size, weights = rows * chain.shape[1] * dtype.itemsize, chain.nnz * dtype.itemsize
    work = rows * chain.flops * dtype.itemsize / (4 * RATE * vector_bytes() / 64)
    call = 5e-6 + weights / 25e9
    if train:
        work *= 4.3 if weights < TILE else 5.8
        call += 7e-6 + 1e-6 * len(chain) + weights / 10e9
    if size > LAST_CACHE // 2:
        work += (5 if train else 2) * size / MEMORY
    if size > 2 * LAST_CACHE:
        work += (2 if train else 1) * size / FRESH
    return call + work / workers.useful(threads, work)


def example(chain: Chain, rows: int, dtype: torch.dtype, last: bool, packed: bool) -> tuple[Chain, int]:
    """A small product, and a number of rows, that need the same code: few vectors have their own."""
    return Chain.butterfly(64), 1 if vectors.suits(rows, chain.nnz, dtype) and not packed else 64


def preparing_seconds(chain: Chain, dtype: torch.dtype) -> float:
    """What `seconds` counts for reading and packing weights, which `prepared` does once."""
    return 1.8e-6 + chain.nnz * dtype.itemsize / 32e9


def forward(
    x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool, threads: int
) -> torch.Tensor:
    """The product applied to the rows of x (rows, n), as a new contiguous tensor; what `unsupported_because` lets pass.

    Cost: rows * 4 n L operations; x is read once and the result is written once.

    >>> factors = [torch.ones(8, 2, 2)] * 4
    >>> forward(torch.ones(1, 16), factors, (8, 4, 2, 1), last=False, threads=1)[0, :3]
    tensor([16., 16., 16.])
    """
    if x.shape[0] <= vectors.MOST and vectors.suits(x.shape[0], 2 * x.shape[1] * len(factors), x.dtype):
        return vectors.forward(x, factors, depths)
    return _push(x, factors, tuple(depths), threads, 0)


def backward(
    x: torch.Tensor,
    factors: Sequence[torch.Tensor],
    depths: Sequence[int],
    grad: torch.Tensor,
    last: bool,
    need_x: bool = True,
    need_factors: bool = True,
    threads: int = 1,
) -> Gradients:
    """Gradients for x and all factors, from x alone: what lies between is computed once more, tile by tile.

    Sums over rows are taken per thread, then over threads, in a fixed order: the same number of threads gives the same
    numbers. Cost: up to 3.5 times `forward`.
    """
    if need_factors:
        return _pull(x, factors, tuple(depths), grad, need_x, threads)
    # the gradient of x is the transposed product: the chain from right to left, each block transposed
    return Gradients(_push(grad, factors[::-1], tuple(depths)[::-1], threads, 1) if need_x else None, None)


class _Plan(NamedTuple):
    """What the kernels are told about a chain."""

    kind: np.floating
    item: int
    table: np.ndarray
    size: int
    """Bytes of packed weights."""
    slots: int
    """Factors of a pass with strides within a vector."""
    tile: int
    """Rows of a tile."""
    few: int
    """Rows at a time in the last pass: where rows of the result share sets of the first cache, it holds but few."""
    room: int
    """Bytes of the buffers that one thread needs."""


@lru_cache(maxsize=256)
def _plan(depths: tuple[int, ...], n: int, dtype: torch.dtype, back: bool) -> _Plan:
    item, lanes = dtype.itemsize, LANES[dtype]
    table, size = passes(depths, n, lanes, RADIX_BACK if back else 4)
    tiles = len(table) if back else 1  # alive at the same time
    tile = max(FEWEST_ROWS, min(MOST_ROWS, (TILE_BACK if back else TILE) // (n * item * tiles)))
    room = tiles * tile * (n * item + kernels.LINE)
    few = tile if n * item % PAGE else 4 if n * item <= 2 * PAGE else 8
    return _Plan(KINDS[dtype], item, table, size * item, lanes.bit_length() - 1, tile, few, room)


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """x, or a copy whose rows are contiguous, its address, and the distance of its rows in elements."""
    lead, step = x.stride()
    if step != 1 or x.data_ptr() < LOW:  # a call for few rows is short: `place` asks more
        x = solid(x).contiguous()
        lead = x.stride()[0]
    return x, x.data_ptr(), lead


def _readable(factors: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], np.ndarray]:
    """The factors, copied unless they are contiguous, and their addresses."""
    weights, pointers = readable(factors)
    return weights, _addresses(pointers)


@lru_cache(maxsize=1024)
def _addresses(pointers: tuple[int, ...]) -> np.ndarray:
    found = np.array(pointers)
    found.flags.writeable = False
    return found


def _result(x: torch.Tensor) -> torch.Tensor:
    """A new tensor like x, contiguous."""
    y = torch.empty_like(x) if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.nbytes >= workers.LARGE:
        workers.expect(y.data_ptr(), y.nbytes)
    return y


def _pieces(rows: int, threads: int, seconds: float, tile: int) -> list[tuple[int, int]]:
    """The rows of each thread, for work that takes one of them so many seconds."""
    return workers.split(rows, workers.useful(threads, seconds), tile) if threads > 1 else [(0, rows)]


def _push(
    x: torch.Tensor, factors: Sequence[torch.Tensor], depths: tuple[int, ...], threads: int, flip: int
) -> torch.Tensor:
    (x, source, lead), y = _rows(x), _result(x)
    factors, pointers = _readable(factors)
    rows, n = x.shape
    plan = _plan(depths, n, x.dtype, False)
    kind, item, table, size, slots, tile, few, room = plan
    pieces = _pieces(rows, threads, rows * n * len(depths) * item * 1e-11, tile)
    packed, held = workers.scratch(size + room * len(pieces))
    buffer = packed + size
    if len(pieces) == 1:
        kernels.multiply(
            kind, item, table, pointers, packed, source, lead, y.data_ptr(), rows, tile, few, n, buffer,
            _streams(y), slots, flip,
        )  # fmt: skip
        return y
    kernels.pack(kind, item, table, pointers, packed, n, slots, flip)
    _through(plan, packed, source, lead, y, pieces, buffer)
    del held, x  # only now
    return y


def prepared(factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Prepared:
    """`forward` with these weights, packed once, now: a function of x (rows, n) and a number of threads.

    >>> prepared([torch.ones(8, 2, 2)] * 4, (8, 4, 2, 1))(torch.ones(1, 16), 1)[0, :3]
    tensor([16., 16., 16.])
    """
    factors, pointers = _readable(factors)
    n = 2 * len(factors[0])
    plan = _plan(tuple(depths), n, factors[0].dtype, False)
    kind, item, table, size, slots, tile, few, room = plan
    packed, held = workers.aligned(size)
    kernels.pack(kind, item, table, pointers, packed, n, slots, 0)
    work = n * len(factors) * item * 1e-11
    small = min(workers.WORTH / work, LAST_CACHE / (n * item))

    def run(x: torch.Tensor, threads: int, _: np.ndarray = held) -> torch.Tensor:  # the array lives as long as this
        (x, source, lead), y = _rows(x), _result(x)
        rows = x.shape[0]  # len(x) takes longer
        if rows < small:  # no threads to think about
            buffer, _own = workers.scratch(room)
            kernels.push(
                kind, item, table, packed, source, lead, y.data_ptr(), 0, rows, tile, few, n, buffer, False
            )  # fmt: skip
            return y
        pieces = _pieces(rows, threads, rows * work, tile)
        buffer, _own = workers.scratch(room * len(pieces))
        _through(plan, packed, source, lead, y, pieces, buffer)
        return y

    return run


def _through(
    plan: _Plan, packed: int, source: int, lead: int, y: torch.Tensor, pieces: list[tuple[int, int]], buffer: int
) -> None:
    """Rows at an address, `lead` elements apart, through all passes into y, a thread for each piece."""
    kind, item, table, _, _, tile, few, room = plan
    target, n, stream = y.data_ptr(), y.shape[1], _streams(y)

    def part(number: int, start: int, stop: int) -> None:
        mine = buffer + number * room
        kernels.push(kind, item, table, packed, source, lead, target, start, stop, tile, few, n, mine, stream)

    if len(pieces) == 1:
        part(0, *pieces[0])
    else:
        workers.run(part, [(number, *piece) for number, piece in enumerate(pieces)])


def _streams(y: torch.Tensor) -> bool:
    """Whether a result is written past the caches."""
    return y.nbytes > LAST_CACHE and vector_bytes() == kernels.LINE and y.data_ptr() % kernels.LINE == 0


def _pull(
    x: torch.Tensor,
    factors: Sequence[torch.Tensor],
    depths: tuple[int, ...],
    grad: torch.Tensor,
    need_x: bool,
    threads: int,
) -> Gradients:
    (x, source, lead), (grad, given, lead_g) = _rows(x), _rows(grad)
    factors, pointers = _readable(factors)
    gx, (grads, targets) = _result(x) if need_x else None, _readable([torch.empty_like(w) for w in factors])
    rows, n = x.shape
    kind, item, table, size, slots, tile, _, room = _plan(depths, n, x.dtype, True)
    pieces = _pieces(rows, threads, rows * n * len(depths) * item * 4e-11, tile)
    layers = 2 if pieces[0][1] > kernels.BLOCK else 1
    packed, held = workers.scratch(size + (layers * size + room) * len(pieces))
    sums = packed + size
    buffer = sums + layers * size * len(pieces)
    target = 0 if gx is None else gx.data_ptr()
    if len(pieces) == 1:
        kernels.differentiate(
            kind, item, table, pointers, targets, size, packed, sums, layers, source, lead, given, lead_g, target,
            rows, tile, n, buffer, slots,
        )  # fmt: skip
        return Gradients(gx, list(grads))
    kernels.pack(kind, item, table, pointers, packed, n, slots, 0)

    def part(number: int, start: int, stop: int) -> None:
        own, mine = sums + number * layers * size, buffer + number * room
        kernels.pull(
            kind, item, table, size, packed, own, layers, source, lead, given, lead_g, target, start, stop, tile,
            n, mine,
        )  # fmt: skip

    workers.run(part, [(number, *piece) for number, piece in enumerate(pieces)])
    kernels.unpack(kind, item, table, targets, sums, size, layers * len(pieces), n, slots)
    del held  # only now
    return Gradients(gx, list(grads))
