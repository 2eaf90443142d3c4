"""How a dyadic chain is cut into passes: groups of factors that a row goes through while it is in registers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np

ASCENDING, DESCENDING, RADIX_2, RADIX_4 = range(4)
"""Kinds of passes: all strides within a vector, going up or down; one or two strides of whole vectors.

Radix 8 was measured, too: its weights do not fit into the registers, and it is slower than radix 4.
"""

KIND, OFFSET, FACTOR, STRIDE, SORTED = 0, 1, 2, 6, 10
"""Columns of the table of passes; the last three begin a group of them."""

SLOTS = 4
"""Factors of a pass at most: the strides 1, 2, 4, 8 of a vector of 16 lanes."""


@final
class Passes(NamedTuple):
    """The passes of one chain, first applied first."""

    table: np.ndarray
    """A row per pass: kind, where its weights begin, factors (-1: none, multiplies by one), strides, strides sorted."""
    size: int
    """Elements of all packed weights."""


@lru_cache(maxsize=256)
def passes(depths: tuple[int, ...], n: int, lanes: int, radix: int = 4) -> Passes:
    """Cut a chain of (a, 2, 2, d) factors, given by their d, leftmost first, for vectors of so many lanes.

    >>> passes((8, 4, 2, 1), 16, lanes=4).table[:, KIND].tolist() == [ASCENDING, RADIX_4]
    True
    """
    strides = depths[::-1]  # as applied
    rows, offset, start = [], 0, 0
    while start < len(strides):
        if strides[start] < lanes:
            stop = _monotone(strides, start, lanes)
            factors, order = _all_lanes(strides, start, stop, lanes)
            kind = DESCENDING if order[0] > order[-1] else ASCENDING
        else:
            paired = radix == 4 and start + 1 < len(strides) and _span_grid(strides[start : start + 2], lanes)
            stop = start + (2 if paired else 1)
            factors, order = list(range(start, stop)), list(strides[start:stop])
            kind = RADIX_4 if paired else RADIX_2
        numbers = [len(depths) - 1 - i if i >= 0 else -1 for i in factors]
        rows.append([kind, offset, *_pad(numbers), *_pad(order), *_pad(sorted(order))])
        offset += 2 * n * len(factors)
        start = stop
    table = np.array(rows, np.int64)
    table.flags.writeable = False
    return Passes(table, offset)


def _monotone(strides: Sequence[int], start: int, lanes: int) -> int:
    """End of the longest run of strides within a vector that only rise or only fall."""
    stop = start + 1
    while stop < len(strides) and strides[stop] < lanes:
        run = list(pairwise(strides[start : stop + 1]))
        if not (all(p < q for p, q in run) or all(p > q for p, q in run)):
            break
        stop += 1
    return stop


def _all_lanes(strides: Sequence[int], start: int, stop: int, lanes: int) -> tuple[list[int], list[int]]:
    """Factors and strides of a pass with every stride within a vector; factors that are absent are -1."""
    order = [1 << i for i in range(lanes.bit_length() - 1)]
    if stop - start > 1 and strides[start] > strides[start + 1]:
        order.reverse()
    found = {strides[i]: i for i in range(start, stop)}
    return [found.get(d, -1) for d in order], order


def _span_grid(strides: Sequence[int], lanes: int) -> bool:
    """Whether two strides are axes of a grid of whole vectors: twice the smaller divides the larger."""
    small, large = sorted(strides)
    return small >= lanes and large % (2 * small) == 0


def _pad(values: Sequence[int]) -> list[int]:
    return [*values, *[0] * (SLOTS - len(values))]
