"""How long the kernels for general blocks take: a linear model of what one core does with each tile."""

from __future__ import annotations

import torch

from ...structure import Chain
from ..cost import TOGETHER
from . import blocks_rows, workers
from .blocks_call import SECONDS

VECTOR = 64
"""Bytes of a vector of the machine that was measured."""

FORWARD = (10.1e-6, 0.293e-9, 0.077e-9, 0.241e-9, 0.97e-9, 1.36e-9, 0.008e-9, 0.84e-9, 0.032e-9)
BACKWARD = (20.7e-6, 0.752e-9, 4.36e-9, 2.25e-9, 0.41e-9, 1.60e-9, 0.036e-9, 0.72e-9, 0.15e-9)
"""Seconds for each entry of `_counts`, of a call for the result and of one for both gradients.

Fitted to the best times of 824 products on one core of a Zen 4 processor: 34 chains with blocks of 2 to 1024, rows 1 to
2048, four types, both layouts. There the median of predicted over measured time is 1.04 (1.00 with gradients), half of
all lie between 0.94 and 1.11 (0.88 and 1.08), and nine in ten between 0.7 and 1.3; the worst, 0.3, are wide blocks of
complex numbers, and tensors that the system provides page by page, which neighbours on a shared machine slow down.
Since then calls with gradients became 14.5 microseconds shorter, and read weights as vectors for one or two vectors: of
110 products (11 chains, rows 1 to 64) the median is 1.02, and half are between 0.89 and 1.08.
"""

ROWS = (12.9e-6, 0.267e-9, 0.68e-9, 0.040e-9, 0.0053e-9)
"""Seconds of a call whose vectors stay rows, for: itself, products of vectors, vectors of results of all factors, ...

... bytes of weights that are packed, bytes of x and y. Fitted to the best times of 147 products: 18 chains with blocks
of 4 to 1024, rows 24 to 1000, float32 and float64. Half of all predictions are between 0.98 and 1.03 times what was
measured, nine in ten between 0.92 and 1.07, all between 0.81 and 1.09.
"""

TRAFFIC = 3
"""So many entries, the last ones, are traffic with memory: cores do not divide it, see `TOGETHER`."""

AGAIN = (0.13e-9, 0.26e-9)
"""Seconds for a byte of weights that no cache holds, with each group of tiles but one; for gradients, each tile.

Measured with 16 MB of weights: a training step with 64 and 256 rows takes 15 and 60 milliseconds longer than
arithmetic and first reading would.
"""

FRESH, CACHED = 32e6, 16e6
"""Bytes of a tensor from which the system gives empty pages in every call; bytes that stay in the last cache."""


def seconds(chain: Chain, rows: int, dtype: torch.dtype, last: bool, train: bool, threads: int) -> float:
    """Predicted time of one call: from products, starts of blocks, rows moved, transpositions and memory.

    Large blocks (b, c >= 32) in large batches run at the rate of a vendor's GEMM, not faster; what is saved there are
    permutations between factors.

    >>> seconds(Chain.butterfly(64), 100, torch.float32, False, True, 1) < 0.001
    True
    """
    counts = _counts(chain, rows, dtype, last, 0)
    parts = list(map(float.__mul__, FORWARD, counts))
    wide = _as_rows(chain, rows, dtype, workers.useful(threads, rows * chain.nnz * SECONDS[dtype]))
    if wide and not last:
        parts = [*wide, 0.0, *parts[1 - TRAFFIC :]]
    if train:
        more = list(map(float.__mul__, BACKWARD, _counts(chain, rows, dtype, last, 1)))
        parts = [*more[:-TRAFFIC], *parts[:-TRAFFIC], *map(float.__add__, more[-TRAFFIC:], parts[-TRAFFIC:])]
    weights = chain.nnz * dtype.itemsize
    if weights > CACHED:
        tiles = -(-rows * dtype.itemsize // VECTOR)
        parts[-1] += weights * (AGAIN[0] * (-(-tiles // 6) - 1) + (AGAIN[1] * (tiles - 1) if train else 0.0))
    work, traffic = sum(parts[:-TRAFFIC]), sum(parts[-TRAFFIC:])
    useful = workers.useful(threads, work + traffic)
    return work / useful + traffic / min(useful, TOGETHER)


def _as_rows(chain: Chain, rows: int, dtype: torch.dtype, threads: int) -> list[float] | None:
    """The parts of the time in the caches if vectors stay rows; None if they do not."""
    words = [value for p in reversed(list(chain)) for value in (0, *p, 0)]
    numbers = rows * sum(chain.shape)
    widest = max(max(p.shape) for p in chain)
    if not blocks_rows.suits(words, dtype, chain.nnz, widest, numbers // threads):
        return None
    item = dtype.itemsize
    vectors = rows * item / VECTOR
    results = sum(p.blocks * p.b for p in chain)
    # every thread packs the weights
    counts = (1.0, chain.nnz * vectors, results * vectors, chain.nnz * float(item) * threads, numbers * float(item))
    return list(map(float.__mul__, ROWS, counts))


def _counts(chain: Chain, rows: int, dtype: torch.dtype, last: bool, results_like_x: int) -> list[float]:
    """What one call does: itself, products of vectors, passes over blocks, rows read, transposed rows, copied rows, ...

    ... bytes of weights, bytes of fresh pages, bytes from beyond the caches.
    """
    planes, item = (2 if dtype.is_complex else 1), dtype.itemsize
    wide = VECTOR * planes
    row = wide // 2 if rows * item <= wide // 2 else wide
    tiles = -(-rows * item // row)
    products = passes = read = 0.0
    lanes = row // item
    few = rows <= 2 and planes == 1 and not any(p.c % lanes for p in chain)
    for p in chain:
        if few and results_like_x:
            products += rows * p.nnz / lanes
            passes += p.blocks * -(-p.b // 8)
            read += sum(p.shape)
            continue
        if rows <= 2 and not results_like_x and p.b >= 16 and p.c * planes >= 4 * lanes and p.c * planes % lanes == 0:
            products += rows * p.nnz * planes**2 / lanes  # weights are read as vectors
            read += rows * p.blocks * (p.b + p.c) * planes / 4
            continue
        products += p.nnz * planes**2 * tiles * row / wide
        passes += p.blocks * -(-p.b // 8) * tiles
        read += sum(p.shape) * planes * tiles
    moved = sum(chain.shape) * planes * tiles
    x, y = (float(rows * size * item) for size in reversed(chain.shape))
    fresh = (y if y >= FRESH else 0.0) + results_like_x * (x if x >= FRESH else 0.0)
    weights = float(chain.nnz * item)
    far = x + y + weights if x + y + weights > CACHED else 0.0
    turned, copied = (0.0, float(moved)) if last else (float(moved), 0.0)
    return [1.0, products, passes, read, turned, copied, weights, fresh, far]
