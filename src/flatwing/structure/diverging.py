"""Families of factors that run away while their product converges, to a matrix that no factors on the supports make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import combinations, islice
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from ..core import require_number
from .closed import Piece, Rest
from .support import Support
from .windows import SIDE, Curve, bit_of, curve_of

EPSILONS = (1e-1, 1e-2, 1e-3, 1e-4)
CROWD = 4  # inner indices that may reach into a window: its zero patterns are all gone through
WINDOWS, STEPS = 2000, 5000  # most windows, and most trials for the pairs of one rank family

Pair = tuple[int, int]
Term = tuple[int, int, float, int]
"""(row, column, c, p): adds c eps^p to an entry of a factor."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Factors X(eps), Y(eps), sums of powers of eps on `supports`, whose product tends to `limit` as eps -> 0.

    `proof` says why no X and Y have the product `limit`. `family(eps)` gives the factors, as float64 arrays; `terms`
    are theirs, factor by factor. There are two factors, or as many as the supports that the family was spread over.
    """

    supports: tuple[Support, ...]
    terms: tuple[tuple[Term, ...], ...]
    limit: Float[np.ndarray, "m n"]
    proof: str

    def __call__(self, eps: float) -> tuple[Float[np.ndarray, "_ _"], ...]:
        """The factors at one eps; raises `ValueError` unless 0 < eps < 1."""
        require_number("eps", eps, above=0, below=1, good=1e-2)
        factors = tuple(np.zeros(support.shape) for support in self.supports)
        for factor, terms in zip(factors, self.terms, strict=True):
            for row, column, scale, power in terms:
                factor[row, column] += scale * float(eps) ** power
        return factors

    def measured(self, eps: float) -> tuple[float, float]:
        """Error ||X Y - limit|| and norm ||X|| + ||Y|| at eps, Frobenius norms, computed and not derived."""
        factors = self(eps)
        error = np.linalg.norm(reduce(np.matmul, factors) - self.limit)
        return float(error), float(sum(np.linalg.norm(factor) for factor in factors))

    @property
    def table(self) -> tuple[tuple[float, float, float], ...]:
        """(eps, error, norm) at eps = 1e-1, 1e-2, 1e-3, 1e-4."""
        return tuple((eps, *self.measured(eps)) for eps in EPSILONS)


def rank_family(rest: Rest, left: Support, right: Support) -> tuple[Family, Piece] | None:
    """A family for some piece of k inner indices, from a limit of rank k + 1 on cells that only the piece reaches.

    Wanted are k + 1 entries of ones, no two in a row or column, on such cells, two of them (i1, j2) and (i2, j1), with
    (i1, j1) such a cell but (i2, j2) not; cells that others reach, too, must leave the ones the only way to match rows
    and columns. Then the determinant there is +-1 whatever the others do, but k inner indices have rank k. In the
    limit it is attained: 1/eps^2 at (i2, j2), which another inner index takes back, makes the two ones at rank one.
    For k = 1 this is the path i2 - j1 - i1 - j2 whose end points are not joined. Cost: O(|rows|^2 |columns|) a piece.
    """
    alone = _counts(rest) == 1
    for piece in rest.pieces:
        own = alone[piece.place] & rest.cells[piece.place]
        for a, b, c, d in _paths(own):
            i1, i2, j1, j2 = int(piece.rows[a]), int(piece.rows[b]), int(piece.columns[c]), int(piece.columns[d])
            helpers = _reaching(left, right, i2, j2) - set(piece.members)
            pairs = _more_pairs(own, [(a, d), (b, c)], len(piece.members) + 1)
            if not helpers or pairs is None:
                continue
            ones = [(int(piece.rows[s]), int(piece.columns[t])) for s, t in pairs]
            first, helper = piece.members[0], min(helpers)
            X = [(i1, first, 1.0, 1), (i2, first, 1.0, -1), (i2, helper, -1.0, -1)]
            Y = [(first, j1, 1.0, 1), (first, j2, 1.0, -1), (helper, j2, 1.0, -1)]
            for k, (i, j) in zip(piece.members[1:], ones[2:], strict=True):
                X.append((i, k, 1.0, 0))
                Y.append((k, j, 1.0, 0))
            return _family(left, right, X, Y, _why_rank(piece, ones, (i1, j1), (i2, j2))), piece
    return None


def window_family(rest: Rest, left: Support, right: Support) -> tuple[tuple[Family, Piece] | None, int]:
    """A family found in windows of at most 3 x 3 entries where two pieces meet, and how many windows were looked at.

    Two inner indices that both reach (i, j) can cancel there, 1/eps^2 - 1/eps^2, and leave any values in row i and
    column j where either reaches. In a window all zero patterns of all factors are gone through; a pattern of the
    limit that none of them gives is the proof. If the products on a window are not closed, neither are all products:
    set all other rows and columns to zero.
    """
    count, looked = _counts(rest), 0
    for rows, columns in islice(_windows(rest, count), WINDOWS):
        looked += 1
        cells = rest.cells[np.ix_(rows, columns)]
        if count[np.ix_(rows, columns)].max() > CROWD:
            continue
        touching = [piece for piece in rest.pieces if cells[np.ix_(*_inside(piece, rows, columns))].any()]
        members = [(k, piece) for piece in touching for k in piece.members]
        if len(members) > CROWD or len({k for k, _ in members}) < len(members):
            continue
        boxes = tuple((bit_of(s), bit_of(t)) for _, p in members for s, t in [_inside(p, rows, columns)])
        curve = _curve(cells.tobytes(), cells.shape, boxes)
        if curve is not None:
            family = _window_family(curve, [k for k, _ in members], rows, columns, left, right)
            if family is not None:
                return (family, members[curve.first][1]), looked
    return None, looked


def _counts(rest: Rest) -> np.ndarray:
    """Number of pieces that reach each entry."""
    count = np.zeros(rest.cells.shape, dtype=np.int32)
    for piece in rest.pieces:
        count[piece.place] += 1
    return count


def _paths(own: Bool[np.ndarray, "_ _"]) -> Iterator[tuple[int, int, int, int]]:
    """(a, b, c, d) with cells (a, c), (a, d), (b, c) and no cell (b, d): one for each pair of rows that has some."""
    shared = own.astype(np.float32) @ own.T.astype(np.float32)
    for a, b in zip(*((shared > 0) & (shared < own.sum(1)[:, None])).nonzero(), strict=True):
        yield int(a), int(b), int((own[a] & own[b]).argmax()), int((own[a] & ~own[b]).argmax())


def _more_pairs(
    own: Bool[np.ndarray, "_ _"], pairs: list[tuple[int, int]], wanted: int
) -> list[tuple[int, int]] | None:
    """Add cells in new rows and columns until there are as many as wanted, the only matching of rows and columns."""
    budget = [STEPS]

    def grow(pairs: list[Pair]) -> list[Pair] | None:
        if len(pairs) == wanted:
            return pairs
        taken = {i for i, _ in pairs}
        for i, j in np.argwhere(own).tolist():
            if i not in taken:
                budget[0] -= 1
                if budget[0] < 0:
                    return None
                more = [*pairs, (i, j)]
                if all(j != other for _, other in pairs) and _only_matching(own, more):
                    found = grow(more)
                    if found is not None:
                        return found
        return None

    return grow(pairs)


def _only_matching(own: Bool[np.ndarray, "_ _"], pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether entries outside of `own`, of any value, give no second matching: no cycle from pair to pair."""
    rows, columns = [i for i, _ in pairs], [j for _, j in pairs]
    step = ~own[np.ix_(rows, columns)]
    left = np.ones(len(pairs), dtype=bool)
    while left.any():
        ends = left & ~(step & left).any(1)
        if not ends.any():
            return False
        left &= ~ends
    return True


def _reaching(left: Support, right: Support, i: int, j: int) -> set[int]:
    return set((left.array[i] & right.array[:, j]).nonzero()[0].tolist())


def _why_rank(piece: Piece, ones: Sequence[tuple[int, int]], zero: tuple[int, int], joint: tuple[int, int]) -> str:
    (i1, j1), (i2, j2), k = zero, joint, piece.members[0]
    if len(piece.members) == 1:
        return (
            f"only inner index {k} reaches ({i1},{j1}), ({i1},{j2}) and ({i2},{j1}): X[{i1},{k}] Y[{k},{j1}] = 0, but "
            f"X[{i1},{k}] Y[{k},{j2}] = 1 and X[{i2},{k}] Y[{k},{j1}] = 1"
        )
    size = len(ones)
    return (
        f"on rows {sorted(i for i, _ in ones)} x columns {sorted(j for _, j in ones)} the {size} ones are the only "
        f"matching, whatever stands where others reach: rank {size}, but only {size - 1} inner indices act there"
    )


def _family(left: Support, right: Support, X: Sequence[Term], Y: Sequence[Term], proof: str) -> Family:
    """The family of these terms; its limit is computed in powers of eps, so that nothing is rounded."""
    powers: dict[tuple[int, int, int], float] = {}
    for i, k, scale, power in X:
        for row, j, other, more in Y:
            if k == row:
                powers[i, j, power + more] = powers.get((i, j, power + more), 0.0) + scale * other
    limit = np.zeros((left.shape[0], right.shape[1]))
    for (i, j, power), value in powers.items():
        if power < 0 and value:
            raise AssertionError(f"the entry ({i}, {j}) of the product grows like eps^{power}")
        if power == 0:
            limit[i, j] = value
    return Family((left, right), (tuple(X), tuple(Y)), limit, proof)


def _inside(piece: Piece, rows: Sequence[int], columns: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places in a window that the rectangle of a piece covers."""
    return (
        [s for s, i in enumerate(rows) if i in piece.rows],
        [t for t, j in enumerate(columns) if j in piece.columns],
    )


@lru_cache(maxsize=4096)
def _curve(cells: bytes, shape: tuple[int, int], boxes: tuple[tuple[int, int], ...]) -> Curve | None:
    return curve_of(np.frombuffer(cells, dtype=bool).reshape(shape), boxes)


def _windows(rest: Rest, count: np.ndarray) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Rows and columns of windows where two pieces meet, each once; few of each kind, the least crowded first."""
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for p, q in combinations(rest.pieces, 2):
        if np.intersect1d(p.rows, q.rows).size and np.intersect1d(p.columns, q.columns).size:
            rows = _few(p.rows, q.rows, count.sum(1))
            columns = _few(p.columns, q.columns, count.sum(0))
            for some_rows in combinations(rows, min(SIDE, len(rows))):
                for some_columns in combinations(columns, min(SIDE, len(columns))):
                    if (some_rows, some_columns) not in seen:
                        seen.add((some_rows, some_columns))
                        yield some_rows, some_columns


def _few(first: np.ndarray, second: np.ndarray, crowd: np.ndarray) -> list[int]:
    """Of the indices in both, and in one only, the two least crowded ones; all if there are few."""
    union = np.union1d(first, second)
    if len(union) <= SIDE + 1:
        return union.tolist()
    kinds = np.intersect1d(first, second), np.setdiff1d(first, second), np.setdiff1d(second, first)
    return sorted(int(i) for kind in kinds for i in kind[np.argsort(crowd[kind], kind="stable")[:2]])


def _window_family(
    curve: Curve, members: Sequence[int], rows: Sequence[int], columns: Sequence[int], left: Support, right: Support
) -> Family | None:
    """The family of a curve in a window, with the indices of the whole; another inner index takes back what is free."""
    i, j = rows[curve.row], columns[curve.column]
    first = members[curve.first]
    used = {first} if curve.other is None else {first, members[curve.other]}
    if curve.constant is not None:
        used.add(members[curve.constant[0]])
    helpers = {members[curve.other]} if curve.other is not None else _reaching(left, right, i, j) - used
    if not helpers:
        return None
    helper = min(helpers)
    X: list[Term] = [(i, first, 1.0, -1), (i, helper, -1.0, -1)]
    Y: list[Term] = [(first, j, 1.0, -1), (helper, j, 1.0, -1)]
    # (x + eps^2 w)(y + eps^2 z) / eps^2, with x and y unit vectors: w goes to column j, z to row i
    for k, sign, in_column, in_row in zip((first, helper), (1.0, -1.0), curve.column_ones, curve.row_ones, strict=True):
        X += [(rows[s], k, 1.0, 1) for s in in_column]
        Y += [(k, columns[t], sign, 1) for t in in_row]
    if curve.constant is not None:
        k, some_rows, some_columns = curve.constant
        X += [(rows[s], members[k], 1.0, 0) for s in some_rows]
        Y += [(members[k], columns[t], 1.0, 0) for t in some_columns]
    proof = (
        f"on rows {list(rows)} x columns {list(columns)} the entries of A that only inner indices {sorted(members)} "
        "reach have a zero pattern that no zero patterns of X and Y give; all of them were gone through"
    )
    return _family(left, right, X, Y, proof)
