"""When the best product of two factors on fixed supports can be computed: rank-one supports and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Int

from .support import Support, as_supports

Indices = Int[np.ndarray, " _"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Class:
    """Columns of the first factor (rows of the second) with one rank-one support: rows x columns of the product.

    `members` are their indices. It is complete if there are as many as the smaller side, and can then hold any matrix
    there. `left_rows` x `left_columns` is the remainder: what no complete class covers, as far as it is a rectangle.
    """

    members: Indices
    rows: Indices
    columns: Indices
    remainder: Bool[np.ndarray, "_ _"]

    @property
    def complete(self) -> bool:
        """Whether the class can hold any matrix on its rows and columns."""
        return len(self.members) >= min(len(self.rows), len(self.columns))

    @property
    def left_rows(self) -> Indices:
        """Rows with an entry in the remainder."""
        return self.rows[self.remainder.any(1)]

    @property
    def left_columns(self) -> Indices:
        """Columns with an entry in the remainder."""
        return self.columns[self.remainder.any(0)]

    @property
    def rectangular(self) -> bool:
        """Whether the remainder is all of its rows times all of its columns."""
        return int(self.remainder.sum()) == len(self.left_rows) * len(self.left_columns)

    def __str__(self) -> str:
        return f"columns {_list(self.members)} on rows {_list(self.rows)} x columns {_list(self.columns)}"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Tractability:
    """The verdict on two supports: whether the optimum is known in closed form, by which theorem, and if not, why.

    `theorem` is 1 where the rank-one supports are pairwise disjoint or equal, 2 where the remainders of the classes
    that are not complete are disjoint rectangles, 0 where neither holds; `offending` are then the classes in the way.
    """

    classes: tuple[Class, ...]
    theorem: int
    offending: tuple[Class, ...]
    reason: str
    covered: Bool[np.ndarray, "m n"]
    """Entries of the product that some complete class holds."""
    reachable: Bool[np.ndarray, "m n"]
    """Entries of the product that can be non-zero."""

    @property
    def tractable(self) -> bool:
        """Whether one of the theorems applies."""
        return self.theorem > 0

    def __bool__(self) -> bool:
        return self.tractable

    def __str__(self) -> str:
        return self.reason


def tractability(*supports: Any) -> Tractability:
    """Whether min ||A - X Y|| over X, Y on two supports, (m, r) and (r, n), is solved in closed form for every A.

    Takes the two supports, or one sequence of them. Columns of X that support nothing, or whose row of Y does, are
    left out. Raises `ValueError` unless there are two supports that multiply, and one column supports something.
    Cost: O(r (m + n)) for the classes, O(m n) per class for the remainders.
    Source: Le, Riccietti and Gribonval (2023), Theorems 1 (disjoint) and 2 (complete classes).

    >>> lower = np.tril(np.ones((2, 2), dtype=bool))
    >>> print(tractability(lower, lower.T))
    not tractable: what the complete classes leave of columns {0} on rows {0, 1} x columns {0, 1} is no rectangle
    """
    left, right = two_supports(*supports)
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for k in range(left.shape[1]):
        rows, columns = left.array[:, k], right.array[k]
        if rows.any() and columns.any():
            groups.setdefault((rows.tobytes(), columns.tobytes()), []).append(k)
    if not groups:
        raise ValueError(
            "no column of the first support meets a row of the second: the product is zero. "
            "Rule: at least one k with entries in column k and in row k. Check the order of the supports."
        )
    shape = (left.shape[0], right.shape[1])
    corners = [
        (np.array(ks), left.array[:, ks[0]].nonzero()[0], right.array[ks[0]].nonzero()[0]) for ks in groups.values()
    ]
    covered, reachable = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for members, rows, columns in corners:
        reachable[np.ix_(rows, columns)] = True
        if len(members) >= min(len(rows), len(columns)):
            covered[np.ix_(rows, columns)] = True
    classes = tuple(Class(k, rows, columns, ~covered[np.ix_(rows, columns)]) for k, rows, columns in corners)
    theorem, offending, reason = _verdict(classes, shape)
    return Tractability(classes, theorem, offending, reason, covered, reachable)


def two_supports(*supports: Any) -> tuple[Support, Support]:
    """Two supports that multiply, from two arguments or one sequence; raises `ValueError` otherwise."""
    found = as_supports(supports[0] if len(supports) == 1 else supports)
    if len(found) != 2:
        raise ValueError(f"got {len(found)} supports. Rule: two, of shapes (m, r) and (r, n). For more: palm.")
    return found[0], found[1]


def _verdict(classes: Sequence[Class], shape: tuple[int, int]) -> tuple[int, tuple[Class, ...], str]:
    owner = np.full(shape, -1)
    if all(_claim(owner, c.rows, c.columns, k) < 0 for k, c in enumerate(classes)):
        return 1, (), "tractable: the rank-one supports are pairwise disjoint or equal"
    owner[:] = -1
    for k, one in enumerate(classes):
        if one.complete or not one.remainder.any():
            continue
        if not one.rectangular:
            return 0, (one,), f"not tractable: what the complete classes leave of {one} is no rectangle"
        other = _claim(owner, one.left_rows, one.left_columns, k)
        if other >= 0:
            pair = (classes[other], one)
            return 0, pair, f"not tractable: {pair[0]} and {pair[1]} overlap where no complete class is"
    return 2, (), "tractable: what the complete classes leave of the others are disjoint rectangles"


def _claim(owner: np.ndarray, rows: Indices, columns: Indices, k: int) -> int:
    """Write k on a rectangle; the number that was there before, -1 if none."""
    place = np.ix_(rows, columns)
    before = int(owner[place].max(initial=-1))
    owner[place] = k
    return before


def _list(indices: Indices) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return "{" + shown + (", ..." if len(indices) > 8 else "") + "}"
