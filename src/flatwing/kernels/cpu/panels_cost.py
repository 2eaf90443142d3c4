"""How long panels take: a linear model of what one core does with vectors that stay rows."""

from __future__ import annotations

from ..backend import Task
from ..cost import TOGETHER
from . import blocks_rows, workers
from .blocks_call import SECONDS
from .panels_calls import tile_of

VECTOR = 64
"""Bytes of a vector of the machine that was measured."""

FORWARD = (12.8e-6, 0.26e-9, 1.35e-9, 0.129e-9, 1.38e-9, 0.0, 0.0773e-9, 0.0356e-9, 0.0372e-9, 0.0793e-9)
BACKWARD = (40.5e-6, 0.357e-9, 1.26e-9, 0.035e-9, 7.36e-9, 0.0919e-9, 0.163e-9, 0.0128e-9, 0.11e-9, 0.15e-9)
"""Seconds for each entry of `_counts`, of a call for the result and of one for both gradients.

Fitted to the best times of 159 results and 61 training steps on one core of a Zen 4 processor: chains with blocks of 8
to 256 and weights of 33 KB to 34 MB, rows 1 to 4096. Half of all predictions are between 0.94 and 1.04 times what was
measured (training: 0.9 and 1.05), nine in ten between 0.81 and 1.13 (0.8 and 1.2); the worst, 0.5 and 1.8, are few rows
with weights that no cache holds.
"""

NEAR, KEPT, CACHED, FRESH = 1 << 20, 16 << 20, 16e6, 32e6
"""Bytes of weights or tiles in the second cache, of weights from which on packing them begins with empty pages, ...

... of x and y that stay in the last cache, and of a tensor that comes from the system anew in every call.
"""

TRAFFIC = 5
"""So many entries, the last ones, are traffic with memory: cores do not divide it, see `TOGETHER`."""


def seconds(task: Task) -> float:
    """Predicted time of one call, with both gradients for training.

    >>> from flatwing import Chain
    >>> seconds(Task(Chain.monarch(4096, 4096, blocks=64), 256)) < 0.005
    True
    """
    times = [float.__mul__(*pair) for pair in zip(FORWARD, _counts(task, False), strict=True)]
    if task.packed:
        times[-2:] = 0.0, 0.0
    if task.train:
        back = zip(BACKWARD, _counts(task, True), strict=True)
        times = [time + rate * count for time, (rate, count) in zip(times, back, strict=True)]
    work, traffic = sum(times[:-TRAFFIC]), sum(times[-TRAFFIC:])
    rate = SECONDS[task.dtype] * (3 if task.train else 1)
    useful = workers.useful(task.threads, task.rows * task.chain.nnz * rate)
    return work / useful + traffic / min(useful, TOGETHER)


def _counts(task: Task, gradients: bool) -> list[float]:
    """What one call does: itself, products of vectors, vectors of results, products with weights from afar, ...

    ... vectors of results to tiles afar, bytes of weights from beyond the second cache, of fresh results, of x and y
    from beyond all caches, of weights that are packed, and of those packed to empty pages.
    """
    chain, item = task.chain, task.dtype.itemsize
    vectors = task.rows * item / VECTOR
    m, n = chain.shape
    outputs, inputs = sum(p.shape[0] for p in chain), sum(p.shape[1] for p in chain)
    products, results, ends, fresh = chain.nnz, outputs, m + n, m
    if gradients:  # the inputs of all factors are computed again
        products += chain.nnz + sum(p.nnz for p in list(chain)[1:])
        results, ends, fresh = outputs + 2 * inputs, m + 2 * n, n
    weights, moved = float(chain.nnz * item), float(task.rows * ends * item)
    fresh *= task.rows * item
    far = products * vectors * min(1.0, max(0.0, weights - NEAR) / (8 * NEAR))
    rows, areas = (
        (tile_of(task.rows, chain.nnz * item), len(chain) + 1) if gradients else (min(blocks_rows.TILE, task.rows), 2)
    )
    tiles = float(rows * areas * max(max(p.shape) for p in chain) * item)
    spilt = results * vectors * min(1.0, max(0.0, tiles - NEAR) / (8 * NEAR))
    return [
        1.0, products * vectors, results * vectors, far, spilt, max(0.0, weights - NEAR),
        float(fresh) if fresh > FRESH else 0.0, moved if moved > CACHED else 0.0, weights,
        weights if weights >= KEPT else 0.0,
    ]  # fmt: skip
