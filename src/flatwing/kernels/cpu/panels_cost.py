"""How long panels take: a linear model of what one core does with vectors that stay rows."""

from __future__ import annotations

from ..backend import Task
from ..cost import TOGETHER
from . import workers
from .blocks_call import SECONDS

VECTOR = 64
"""Bytes of a vector of the machine that was measured."""

FORWARD = (12.9e-6, 0.259e-9, 1.41e-9, 0.134e-9, 0.0061e-9, 0.0726e-9, 0.0389e-9, 0.0362e-9, 0.0764e-9)
BACKWARD = (35.8e-6, 0.279e-9, 1.55e-9, 0.162e-9, 0.241e-9, 0.110e-9, 0.0385e-9, 0.0738e-9, 0.0)
"""Seconds for each entry of `_counts`, of a call for the result and of one for both gradients.

Fitted to the best times of 159 products on one core of a Zen 4 processor: 14 chains with blocks of 8 to 128 and weights
of 33 KB to 34 MB, rows 1 to 4096, float32 and float64. Half of all predictions are between 0.94 and 1.04 times what was
measured, nine in ten between 0.8 and 1.13; the worst, 0.55 and 1.6, are few rows with weights that no cache holds.
"""

NEAR, CLOSE, KEPT, CACHED, FRESH = 1 << 20, 4 << 20, 16 << 20, 16e6, 32e6
"""Bytes of weights in the second cache, in all caches, and from which on packing them begins with empty pages; ...

... bytes of x and y that stay in the last cache; bytes of a tensor that comes from the system anew in every call.
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

    ... bytes of weights from beyond the caches, of fresh results, of x and y from beyond the caches, of weights that
    are packed, and of those packed to empty pages.
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
    return [
        1.0, products * vectors, results * vectors, far, max(0.0, weights - CLOSE),
        float(fresh) if fresh > FRESH else 0.0, moved if moved > CACHED else 0.0, weights,
        weights if weights >= KEPT else 0.0,
    ]  # fmt: skip
