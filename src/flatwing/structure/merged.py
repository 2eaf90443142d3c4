"""Neighbouring supports that act as one factor, and families of factors spread over them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .closed import rest_of
from .diverging import Family, Term
from .support import Support
from .tractable import tractability

STEPS = 20_000  # most trials while the entries of a factor are spread over two

Entries = Mapping[tuple[int, int], Sequence[tuple[float, int]]]
"""(row, column) of a factor: its terms c eps^p."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """The support of one factor, given or made of two whose products are all matrices on it; `first` to `last`."""

    support: Support
    first: int
    last: int
    parts: tuple[Merged, Merged] | None = None

    def __str__(self) -> str:
        return f"factor {self.first}" if self.first == self.last else f"factors {self.first} to {self.last} as one"


def merged(supports: Sequence[Support], most: int) -> Iterator[tuple[Merged, ...]]:
    """The ways to see two or more supports as one, or else as two, of neighbours whose products are all matrices.

    The set of products stays the same, so that it is closed if and only if it was. All ways to put neighbours together
    are gone through, so that what is found does not depend on the direction of reading. Two that reach more than
    `most` entries are not looked at. Cost: that of `tractability` for each two that are put together, at most L^3 / 6.

    >>> import numpy as np
    >>> ones = Support(np.ones((2, 2), dtype=bool))
    >>> [[str(one) for one in way] for way in merged([ones, ones, ones], most=100)]
    [['factors 0 to 2 as one']]
    """
    known: dict[tuple[int, int], Merged | None] = {}

    def between(first: int, last: int) -> Merged | None:
        if first == last:
            return Merged(supports[first], first, first)
        if (first, last) not in known:
            # the halves first: few steps where everything fits
            cuts = sorted(range(first, last), key=lambda cut: abs(2 * cut - first - last + 1))
            known[first, last] = next((one for cut in cuts if (one := at(first, cut, last)) is not None), None)
        return known[first, last]

    def at(first: int, cut: int, last: int) -> Merged | None:
        left, right = between(first, cut), between(cut + 1, last)
        if left is None or right is None or not everything(left.support, right.support, most):
            return None
        return Merged(left.support @ right.support, first, last, (left, right))

    end = len(supports) - 1
    whole = between(0, end)
    if whole is not None:
        yield (whole,)
        return
    for cut in range(end):
        left, right = between(0, cut), between(cut + 1, end)
        if left is not None and right is not None:
            yield left, right


def require_product(supports: Sequence[Support]) -> None:
    """Raise `ValueError`, which names the factors, where the product of all supports, or of some, is zero."""
    for last in range(1, len(supports)):
        reach = supports[last].array
        for first in reversed(range(last)):
            reach = supports[first].array.astype(np.float32) @ reach.astype(np.float32) > 0
            if not reach.any():
                raise ValueError(
                    f"the product of factors {first} to {last} is zero: no way leads through all of their supports. "
                    "Rule: the inner indices that some reach must be those that the next ones use. "
                    "Check the order of the supports, or add entries."
                )


def everything(left: Support, right: Support, most: int) -> bool:
    """Whether every matrix on the support of the product is a product: nothing is left that restricts it."""
    return different_entries(left, right) <= most and not rest_of(tractability(left, right)).pieces


def different_entries(left: Support, right: Support) -> int:
    """Entries of the rank-one supports, each different one once: what `tractability` works and remembers."""
    rows, columns = (np.ascontiguousarray(side) for side in (np.packbits(left.array, 0).T, np.packbits(right.array, 1)))
    kinds = {(r.tobytes(), c.tobytes()): k for k, (r, c) in enumerate(zip(rows, columns, strict=True))}
    which = list(kinds.values())
    return int(left.array.sum(0)[which] @ right.array.sum(1)[which])


def spread(family: Family, factors: Sequence[Merged]) -> Family | None:
    """The family as one of all factors that were merged, with the same product at each eps; `None` if none is found.

    The few non-zero entries of a merged factor are dealt to inner indices of its two parts, to each one some of a row
    or some of a column: the entries become one part, ones the other. So nothing is rounded, and no power of eps becomes
    larger; only sums of several entries per inner index, with other numbers, are not looked for.
    """
    terms: list[tuple[Term, ...]] = []
    for factor, some in zip(factors, family.terms, strict=True):
        found = _spread(some, factor)
        if found is None:
            return None
        terms += found
    return Family(tuple(_leaves(factors)), tuple(terms), family.limit, family.proof)


def _leaves(factors: Sequence[Merged]) -> list[Support]:
    return [leaf for one in factors for leaf in (_leaves(one.parts) if one.parts else [one.support])]


def _spread(terms: Sequence[Term], factor: Merged) -> list[tuple[Term, ...]] | None:
    if factor.parts is None:
        return [tuple(terms)]
    entries: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for i, j, scale, power in terms:
        entries.setdefault((i, j), []).append((scale, power))
    dealt = _deal(list(entries), *(part.support for part in factor.parts))
    if dealt is None:
        return None
    left: list[Term] = []
    right: list[Term] = []
    for k, places in dealt.items():
        one_row = len({i for i, _ in places}) == 1
        if one_row:
            left.append((places[0][0], k, 1.0, 0))
            right += [(k, j, *term) for i, j in places for term in entries[i, j]]
        else:
            left += [(i, k, *term) for i, j in places for term in entries[i, j]]
            right.append((k, places[0][1], 1.0, 0))
    both = [_spread(some, part) for some, part in zip((left, right), factor.parts, strict=True)]
    return None if both[0] is None or both[1] is None else both[0] + both[1]


def _deal(places: list[tuple[int, int]], left: Support, right: Support) -> dict[int, list[tuple[int, int]]] | None:
    """Each place to an inner index that reaches it, each inner index places of one row or one column; or `None`."""
    reach = {(i, j): (left.array[i] & right.array[:, j]).nonzero()[0].tolist() for i, j in places}
    order = sorted(places, key=lambda place: len(reach[place]))
    dealt: dict[int, list[tuple[int, int]]] = {}
    budget = [STEPS]

    def place_from(n: int) -> bool:
        if n == len(order):
            return True
        i, j = order[n]
        # first those that have some: indices are few, entries of a row go together
        for k in sorted(reach[i, j], key=lambda k: k not in dealt):
            budget[0] -= 1
            if budget[0] < 0:
                return False
            own = dealt.setdefault(k, [])
            if all(row == i for row, _ in own) or all(column == j for _, column in own):
                own.append((i, j))
                if place_from(n + 1):
                    return True
                own.pop()
            if not own:
                del dealt[k]
        return False

    return dealt if place_from(0) else None
