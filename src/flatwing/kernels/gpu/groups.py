"""Cutting a chain into launches: pairs of neighbours that are fused, and single factors; and what that should take."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from ...structure import Chain, Pattern
from .. import cost
from ..backend import Task
from .device import Device
from .model import factor_choices, pair_choices, weights_choices
from .tiles import Arithmetic, arithmetic

Patterns = tuple[Pattern, ...]


@lru_cache(maxsize=1024)
def grouped(
    patterns: Patterns, rows: int, numbers: Arithmetic, last: bool, device: Device
) -> tuple[float, tuple[int, ...]]:
    """Predicted seconds, and the sizes (1 or 2) of the groups in the order in which they are applied.

    The shortest way through the chain, from its right end. Cost: O(L) looks at the table of tiles.

    >>> device = Device()
    >>> grouped((Pattern(1, 32, 32, 32), Pattern(32, 32, 32, 1)), 4096, "half", False, device)[1]
    (2,)
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    order = patterns[::-1]
    for end in range(1, len(order) + 1):
        single = factor_choices(order[end - 1], rows, numbers, last, device)[0].seconds
        options = [(best[-1][0] + single, (*best[-1][1], 1))]
        if end > 1:
            for seconds, _ in pair_choices(order[end - 1], order[end - 2], rows, numbers, last, device)[:1]:
                options.append((best[-2][0] + seconds, (*best[-2][1], 2)))
        best.append(min(options))
    return best[-1]


def backward_seconds(patterns: Patterns, rows: int, numbers: Arithmetic, last: bool, device: Device) -> float:
    """Predicted seconds for both gradients: inputs of the factors again, then one gradient after the other."""
    setup = (rows, numbers, last, device)
    again = sum(factor_choices(p, *setup)[0].seconds for p in patterns[1:])
    down = sum(factor_choices(p.T, *setup)[0].seconds for p in patterns)
    return again + down + sum(weights_choices(p, *setup)[0].seconds for p in patterns)


def runs(sizes: tuple[int, ...], length: int) -> Iterator[tuple[int, int]]:
    """First and last index (the same for a single factor) of each group, in the order in which they are applied.

    >>> list(runs((2, 1), 3))
    [(1, 2), (0, 0)]
    """
    end = length
    for size in sizes:
        yield end - size, end - 1
        end -= size


@lru_cache(maxsize=1024)
def merges(task: Task, device: Device) -> tuple[int, ...]:
    """The splits (1-based) at which merging neighbours first makes these kernels fastest, the merging included.

    Many factors of tiny blocks are many passes over memory; merged to blocks that fill a tensor core they are few, and
    the last two of them one. The shortest way through the chain over runs of factors and pairs of runs; O(L^3) looks
    at the table of tiles. A chain that is not chainable, nor its transpose, is left as it is.
    """
    chain, setup = task.chain, (max(task.rows, 1), arithmetic(task.dtype), task.layout == "batch-last", device)
    if not (chain.chainable or chain.T.chainable):
        return ()

    def run(lo: int, hi: int) -> tuple[float, Pattern]:
        if hi - lo == 1:
            return 0.0, chain.patterns[lo]
        part = Chain(chain.patterns[lo:hi])
        whole = part.pattern if part.chainable else part.T.pattern.T
        return cost.merge_seconds(task, chain.patterns[lo:hi]), whole

    spans = {(lo, hi): run(lo, hi) for hi in range(1, len(chain) + 1) for lo in range(hi)}
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for hi in range(1, len(chain) + 1):
        options = []
        for middle in range(hi):
            inside, right = spans[middle, hi]
            once = factor_choices(right, *setup)[0].seconds
            options.append((best[middle][0] + inside + once, (*best[middle][1], *range(middle + 1, hi))))
            for lo in range(middle):
                more, left = spans[lo, middle]
                for once, _ in pair_choices(left, right, *setup)[:1]:
                    both = (*best[lo][1], *range(lo + 1, middle), *range(middle + 1, hi))
                    options.append((best[lo][0] + more + inside + once, both))
        best.append(min(options))
    return best[-1][1]
