"""Cutting a chain into launches: pairs of neighbours that are fused, and single factors; and what that should take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from ...structure import Chain, Pattern
from .. import cost
from ..backend import Task
from .device import Device
from .model import Choice, factor_choices, pair_choices, pair_weights_choices, weights_choices
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
    setup = (rows, numbers, last, device)
    return _shortest(
        len(patterns),
        lambda at: factor_choices(patterns[at], *setup)[0].seconds,
        lambda at: pair_choices(patterns[at], patterns[at + 1], *setup)[:1],
    )


@lru_cache(maxsize=1024)
def backward_grouped(
    patterns: Patterns, rows: int, numbers: Arithmetic, last: bool, device: Device
) -> tuple[float, tuple[int, ...]]:
    """Predicted seconds for all gradients, and the sizes of the groups whose factors get theirs in one launch.

    For each group: its output again (that of the last one nobody needs), the gradient of its values, and that of its
    input. A pair in one launch never writes what stands between its factors, which else is written and read twice.

    >>> pair = (Pattern(1, 16, 16, 16), Pattern(16, 16, 16, 1))
    >>> backward_grouped(pair, 1 << 16, "half", False, Device())[1]
    (2,)
    """
    setup = (rows, numbers, last, device)

    def passes(at: int, size: int) -> float:
        part = patterns[at : at + size]
        back = grouped(tuple(p.T for p in part[::-1]), *setup)[0]
        return back + (grouped(part, *setup)[0] if at else 0.0)

    def pair(at: int) -> list[Choice]:
        found = pair_weights_choices(patterns[at], patterns[at + 1], *setup)[:1]
        return [Choice(choice.seconds + passes(at, 2), choice.tile) for choice in found]

    return _shortest(len(patterns), lambda at: weights_choices(patterns[at], *setup)[0].seconds + passes(at, 1), pair)


def _shortest(
    length: int, single: Callable[[int], float], pair: Callable[[int], Sequence[Choice]]
) -> tuple[float, tuple[int, ...]]:
    """The shortest way from right to left, by factors (their seconds) and pairs (at most one choice) at an index."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for at in range(length - 1, -1, -1):
        options = [(best[-1][0] + single(at), (*best[-1][1], 1))]
        if len(best) > 1:
            options += [(best[-2][0] + choice.seconds, (*best[-2][1], 2)) for choice in pair(at)]
        best.append(min(options))
    return best[-1]


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
