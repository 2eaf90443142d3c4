"""Why products of two factors on fixed supports form a closed set: what is free, and what can be normalized."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import final

import numpy as np
from jaxtyping import Bool, Int

from .tractable import Tractability

Indices = Int[np.ndarray, " _"]
MOST_TOGETHER = 5  # pieces of a cluster whose subsets are all looked at
MOST_TAKEN, TRIALS = 2, 50  # columns of A that are put into columns of X, and ways to choose which


@final
@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Inner indices `members` that act together on rows x columns: a connected part of what a class is left with.

    Pieces of one class share no row and no column, so that their values can be chosen apart from each other.
    """

    members: tuple[int, ...]
    rows: Indices
    columns: Indices

    @property
    def place(self) -> tuple[Int[np.ndarray, "p 1"], Int[np.ndarray, "1 q"]]:
        """Index of the rectangle rows x columns in a matrix."""
        return self.rows[:, None], self.columns[None, :]

    def __str__(self) -> str:
        who = "inner indices" if len(self.members) > 1 else "inner index"
        return f"{who} {_set(self.members)} on rows {_set(self.rows)} x columns {_set(self.columns)}"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """What restricts a product X Y: only its entries in `cells`, and only through the `pieces`.

    All other entries that X Y can reach are free: whatever the pieces are, the other inner indices can make them
    anything. So the products form a closed set if and only if their values on `cells` do.
    """

    cells: Bool[np.ndarray, "m n"]
    pieces: tuple[Piece, ...]


def rest_of(verdict: Tractability) -> Rest:
    """Set aside all entries that some group of pieces can make anything, again and again until nothing changes.

    A group is free if all its cells in a column j belong to rows that can be matched to inner indices that reach both
    the row and j: the generic X on the support then has independent rows there, and Y solves for any values; likewise
    by rows. Complete classes are the first case. One or two columns need no such matching if they are put into columns
    of X as they are, and the others can do with what these may turn out to be (see `_solvable`). Pieces that become
    equal in rows and columns act as one.
    Cost: per round O(sum of |rows| |columns|) over the pieces.
    """
    cells = verdict.reachable & ~verdict.covered
    parts = [Piece(tuple(map(int, c.members)), c.rows, c.columns) for c in verdict.classes if not c.complete]
    pieces = _split(cells, parts)
    while group := _free(cells, pieces):
        for piece in group:
            cells[piece.place] = False
        pieces = _split(cells, [piece for piece in pieces if not any(piece is one for one in group)])
    return Rest(cells, tuple(pieces))


def clusters(pieces: Sequence[Piece], shape: tuple[int, int]) -> list[list[Piece]]:
    """Groups of pieces whose rectangles overlap, directly or through others; different groups do not interact."""
    near, seen, found = _overlaps(pieces, shape), set(), []
    for first in range(len(pieces)):
        if first in seen:
            continue
        group, queue = [], deque([first])
        seen.add(first)
        while queue:
            k = queue.popleft()
            group.append(pieces[k])
            for other in map(int, near[k].nonzero()[0]):
                if other not in seen:
                    seen.add(other)
                    queue.append(other)
        found.append(group)
    return found


def closed_because(rest: Rest) -> tuple[str, list[Piece]]:
    """Why the set is closed, and no piece; or no reason, and the pieces of the first cluster that no criterion covers.

    Proof of the criterion for a cluster of full rectangles. Normalize one side of each piece: its column space ("U") or
    its row space ("T"), a compact set; M is then linear in the other side. If the dimension of the space of such M does
    not depend on the choice, the space is continuous in it, and a union of continuous subspaces over a compact set is
    closed. The dimension is constant where overlapping pieces are U, U with equal rows and nested columns (take nested
    spaces), T, T with equal columns and nested rows, or U, T with rows of U within those of T and columns of T within
    those of U (the spaces meet in the products of both).
    """
    if not rest.pieces:
        return "every matrix on the entries that X Y reaches is attained", []
    groups = clusters(rest.pieces, (rest.cells.shape[0], rest.cells.shape[1]))
    for group in groups:
        if not all(rest.cells[piece.place].all() for piece in group) or not _normalizable(group):
            return "", group
    if all(len(group) == 1 for group in groups):
        return "what is not free are disjoint rectangles, each of bounded rank", []
    return "overlapping classes are nested or cross, so that one side of each can be normalized", []


def _split(cells: Bool[np.ndarray, "m n"], pieces: Sequence[Piece]) -> list[Piece]:
    """The connected parts of the cells in each piece; those on the same rows and columns become one."""
    from scipy.sparse import coo_array  # here, because importing it is slow
    from scipy.sparse.csgraph import connected_components

    joined: dict[tuple[bytes, bytes], Piece] = {}
    for piece in pieces:
        i, j = cells[piece.place].nonzero()
        count = len(piece.rows) + len(piece.columns)
        graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j + len(piece.rows))), shape=(count, count))
        _, labels = connected_components(graph, directed=False)
        of_rows, of_columns = labels[: len(piece.rows)], labels[len(piece.rows) :]
        for label in np.unique(of_rows[i]):
            rows, columns = piece.rows[of_rows == label], piece.columns[of_columns == label]
            key = rows.tobytes(), columns.tobytes()
            before = joined[key].members if key in joined else ()
            joined[key] = Piece((*before, *piece.members), rows, columns)
    return list(joined.values())


def _free(cells: Bool[np.ndarray, "m n"], pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Pieces that together can hold anything on their cells; none if there are no such."""
    alone = [piece for piece in pieces if _holds_everything(cells, (piece,))]
    if alone:
        return alone  # one after the other: the cells of the second only shrink
    shape = cells.shape[0], cells.shape[1]
    return next((group for group in _groups(pieces, shape) if _holds_everything(cells, group)), ())


def _groups(pieces: Sequence[Piece], shape: tuple[int, int]) -> Iterator[Sequence[Piece]]:
    for group in clusters(pieces, shape):
        if 2 <= len(group) <= MOST_TOGETHER:
            for size in range(2, len(group) + 1):
                yield from combinations(group, size)
        elif len(group) > 1:
            yield group


def _holds_everything(cells: Bool[np.ndarray, "m n"], group: Sequence[Piece]) -> bool:
    own = np.zeros_like(cells)
    for piece in group:
        own[piece.place] |= cells[piece.place]
    sides = [(piece.members, piece.rows, piece.columns) for piece in group]
    turned = [(members, columns, rows) for members, rows, columns in sides]
    return _solvable(own, sides) or _solvable(own.T, turned)


def _solvable(own: np.ndarray, sides: Sequence[tuple[tuple[int, ...], Indices, Indices]]) -> bool:
    """Whether for any values on `own` there is an X with which each column can be solved for.

    The generic X solves a column whose rows with a cell can be matched to inner indices that reach them. Few columns
    without a matching are taken instead: their values a are put into a column k of X that reaches all of them, each
    into one of its own, with Y = 1; the rest of X stays generic. Another column must then be matched without the k, or
    with one of them and only a single non-zero entry of its a, whichever that is. For a determinant with that column
    is a sum over its rows of an entry times a minor in the generic entries of all other rows; no two of these have a
    monomial in common, so that it vanishes for no a with a non-zero entry that is part of a matching. If a = 0, nothing
    has to be put into X. Holds for real and for complex values.
    """
    if len(sides) == 1 and int(own.sum(0).max()) <= len(sides[0][0]):
        return True
    slots = np.zeros((sum(len(members) for members, _, _ in sides), own.shape[0]), dtype=bool)
    reach = np.zeros((len(slots), own.shape[1]), dtype=bool)
    k = 0
    for members, rows, columns in sides:
        slots[k : k + len(members), rows] = True
        reach[k : k + len(members), columns] = True
        k += len(members)
    taken = own.sum(0) > reach.sum(0)
    for j in np.flatnonzero(own.any(0) & ~taken):
        if taken.sum() > MOST_TAKEN:
            return False
        taken[j] = not _matched(slots[np.ix_(reach[:, j], own[:, j])].T)
    if not taken.any():
        return True
    return int(taken.sum()) <= MOST_TAKEN and _takes(own, slots, reach, np.flatnonzero(taken))


def _takes(own: np.ndarray, slots: np.ndarray, reach: np.ndarray, taken: Indices) -> bool:
    """Whether the taken columns can be put into columns of X such that all others are still solvable."""
    ways = product(*(np.flatnonzero(reach[:, j] & slots[:, own[:, j]].all(1)).tolist() for j in taken))
    others = np.setdiff1d(np.flatnonzero(own.any(0)), taken)
    for given in islice(ways, TRIALS):
        if len(set(given)) == len(given):
            places = dict(zip(given, (own[:, j] for j in taken), strict=True))
            if all(_solved(own[:, j], slots, reach[:, j], places) for j in others):
                return True
    return False


def _solved(own: np.ndarray, slots: np.ndarray, reach: np.ndarray, places: dict[int, np.ndarray]) -> bool:
    """Whether a column is matched, with at most one of the given columns of X, whatever is on their `places`."""
    generic = reach.copy()
    generic[list(places)] = False
    allowed = slots[np.ix_(generic, own)]
    if _matched(allowed.T):
        return True
    for k, place in places.items():
        if reach[k]:
            # only one entry is sure not to be zero, but not which one
            left = [(slots[k] & ~place) | (np.arange(len(own)) == i) for i in np.flatnonzero(place)]
            if all(_matched(np.vstack([allowed, one[own]]).T) for one in left):
                return True
    return False


def _matched(allowed: Bool[np.ndarray, "_ _"]) -> bool:
    """Whether all rows of a bipartite graph can be matched to different columns."""
    if allowed.shape[0] > allowed.shape[1]:
        return False
    from scipy.sparse import csr_array  # here, because importing it is slow
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return bool((maximum_bipartite_matching(csr_array(allowed), perm_type="column") >= 0).all())


def _overlaps(pieces: Sequence[Piece], shape: tuple[int, int]) -> Bool[np.ndarray, "p p"]:
    rows, columns = (np.zeros((len(pieces), size), dtype=np.float32) for size in shape)
    for k, piece in enumerate(pieces):
        rows[k, piece.rows] = columns[k, piece.columns] = 1
    return (rows @ rows.T > 0) & (columns @ columns.T > 0) & ~np.eye(len(pieces), dtype=bool)


def _normalizable(group: Sequence[Piece]) -> bool:
    """Whether each piece can be given a side, U or T, such that all overlapping pairs fit: 2-satisfiability."""
    allowed: dict[tuple[int, int], set[tuple[str, str]]] = {}
    for a, b in combinations(range(len(group)), 2):
        pairs = _sides(group[a], group[b])
        if pairs is not None:
            allowed[a, b], allowed[b, a] = pairs, {(q, p) for p, q in pairs}
    near: dict[int, list[int]] = {}
    for a, b in allowed:
        near.setdefault(a, []).append(b)
    chosen: dict[int, str] = {}
    for start in range(len(group)):
        if start in chosen:
            continue
        for side in "UT":
            trial, queue = {start: side}, deque([start])
            if _propagate(trial, queue, near, allowed, chosen):
                chosen |= trial
                break
        else:
            return False
    return True


def _propagate(
    trial: dict[int, str],
    queue: deque[int],
    near: dict[int, list[int]],
    allowed: dict[tuple[int, int], set[tuple[str, str]]],
    chosen: dict[int, str],
) -> bool:
    """Draw all consequences of a choice; False at a contradiction."""
    while queue:
        a = queue.popleft()
        for b in near.get(a, ()):
            if b in chosen:
                continue  # its own consequences were drawn: it fits both sides of a, or a would be chosen
            left = {q for p, q in allowed[a, b] if p == trial[a]}
            if not left or (b in trial and trial[b] not in left):
                return False
            if b not in trial and len(left) == 1:
                trial[b] = left.pop()
                queue.append(b)
    return True


def _sides(p: Piece, q: Piece) -> set[tuple[str, str]] | None:
    """The sides of two pieces that fit; `None` if their rectangles do not overlap."""
    R, S, C, D = set(p.rows.tolist()), set(q.rows.tolist()), set(p.columns.tolist()), set(q.columns.tolist())
    if not R & S or not C & D:
        return None
    rules = {
        ("U", "U"): R == S and (C <= D or D <= C),
        ("T", "T"): C == D and (R <= S or S <= R),
        ("U", "T"): R <= S and D <= C,
        ("T", "U"): S <= R and C <= D,
    }
    return {sides for sides, holds in rules.items() if holds}


def _set(indices: Sequence[int] | Indices) -> str:
    shown = ", ".join(map(str, indices[:8]))
    if len(indices) == 1:
        return shown
    return "{" + shown + (", ..." if len(indices) > 8 else "") + "}"
