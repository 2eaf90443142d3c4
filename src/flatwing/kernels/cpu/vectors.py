"""One vector, or two: calls of kernels that read weights once, as they are, and move nothing but vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...structure import Chain
from ..backend import Runner
from . import vectors_kernels as kernels
from . import workers
from .blocks_call import TAGS, WIDE, Call, call_of, called, form_of, place

REAL = (torch.float32, torch.float64)

MOST, LIGHT = 2, 512 << 10
"""Vectors, one after the other; bytes of weights that the second cache holds easily, so that they can be read twice."""


def suits(rows: int, nnz: int, dtype: torch.dtype, last: bool = False) -> bool:
    """Whether these kernels multiply so few vectors faster than others; they take all factors of real numbers.

    Two columns do not lie as they are read: turning them takes longer than tiles do.

    >>> suits(1, 1000, torch.float32), suits(1, 1000, torch.complex64), suits(3, 1000, torch.float32)
    (True, False, False)
    """
    return 0 < rows <= (1 if last else MOST) and dtype in REAL and (rows == 1 or nnz * dtype.itemsize <= LIGHT)


def forward(x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int]) -> torch.Tensor:
    """x @ (K_1 ... K_L)^T for the rows of x; factors as for `Backend.forward`.

    >>> forward(torch.ones(1, 4), [torch.ones(2, 2, 2)] * 2, [2, 1]).tolist()
    [[4.0, 4.0, 4.0, 4.0]]
    """
    return run(call_of(factors, depths), x)


def runner(chain: Chain) -> Runner:
    """`forward` for the factors of one chain."""
    form = form_of(tuple(torch.Size((p.blocks, p.b, p.c)) for p in chain), tuple(chain.depths))
    return lambda x, factors: run(called(factors, form), x)


def run(call: Call, x: torch.Tensor) -> torch.Tensor:
    """The product of a call applied to the rows of x."""
    rows, dtype, item = x.shape[0], x.dtype, x.element_size()
    # what is like x takes half the time
    y = torch.empty_like(x) if call.form.m == call.form.n and x.is_contiguous() else x.new_empty((rows, call.form.m))
    x, source, pitch = place(x)
    widest = -(-call.form.widest * item // workers.ALIGNMENT) * workers.ALIGNMENT
    memory, _memory = workers.scratch(4 * widest)
    kernels.forward_vectors(
        TAGS[dtype, WIDE[dtype]], call.words.buffer_info()[0], len(call.weights), source, pitch,
        y.data_ptr(), call.form.m * item, rows, memory, widest,
    )  # fmt: skip
    return y


CALL, FACTOR = 5.0e-6, 0.33e-6
"""Seconds of a call, and of telling the kernels where a factor is, which `prepared` does once."""

PARTS = (1.25e-9, 0.9e-9, 0.5e-9, 0.3e-9, 1.1e-12, 30e-12)
"""Seconds for each entry of `_counts`.

Fitted to the best times of 78 products with one vector on one core of a Zen 4 processor: 39 chains with blocks of 2 to
1024, float32 and float64. Half of all predictions are between 0.95 and 1.06 times what was measured, nine in ten
between 0.83 and 1.13; the worst, 0.5, are weights that the last cache did not keep.
"""

NEAR, LAST = 1 << 20, 12 << 20
"""Bytes of weights that stay in the second and in the last cache."""


def preparing_seconds(chain: Chain) -> float:
    """What `seconds` counts for looking up where weights are."""
    return 1.5e-6 + FACTOR * len(chain)


def seconds(chain: Chain, rows: int, dtype: torch.dtype) -> float:
    """Predicted time of one call.

    >>> seconds(Chain.butterfly(1024), 1, torch.float32) < 1e-4
    True
    """
    work = sum(map(float.__mul__, PARTS, _counts(chain, dtype)))
    return CALL + FACTOR * len(chain) + rows * work


def _counts(chain: Chain, dtype: torch.dtype) -> list[float]:
    """Vectors of weights in short rows and in wide ones, numbers that are moved, products of single numbers, ...

    ... bytes of weights from beyond the second cache, and from beyond the last one.
    """
    step = WIDE[dtype] // dtype.itemsize
    short = wide = moved = single = 0.0
    for a, b, c, d in chain:
        nnz, whole = a * b * c * d, c // step * step
        pairs = b == c == 2
        if pairs or (1 < c <= 8 and c < step <= b * c and (b * c).bit_count() == c.bit_count() == 1):
            short += nnz / step
            if d % step and d > 1 and not (pairs and d < step and d.bit_count() == 1):
                moved += a * (b + c) * d
            continue
        wide += a * b * d * whole / step
        single += a * b * d * (c - whole)
        moved += a * (b + c * (d > 1)) * d
    weights = float(chain.nnz * dtype.itemsize)
    return [short, wide, moved, single, weights if weights > NEAR else 0.0, weights if weights > LAST else 0.0]
