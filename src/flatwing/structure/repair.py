"""How to make an ill-posed pair of supports well-posed: entries to add, or what weight decay costs instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, final

import numpy as np
from jaxtyping import Bool

from ..core import require_number
from .closed import Piece, closed_because, rest_of
from .diverging import Family
from .support import Support
from .tractable import tractability, two_supports
from .wellposed import Verdict, is_closed, wellposedness

TRIALS = 3000  # most sets of entries that are gone through, smallest first
CHECKS = 400  # most checks while a repair that works is made smaller
WORK = 100_000  # most entries of the supports times sets, or times checks: seconds at most
SHOWN = 6  # entries that are named one by one

Masks = tuple[Bool[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]
Entry = tuple[int, int, int]
"""(factor 0 or 1, row, column)"""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Repair:
    """Supports that contain the given ones and are closed, as `verdict` says; `added` are the entries that were added.

    `columns` is how many inner indices were added. `smallest` says whether no smaller change of entries would do: every
    smaller set of entries, and none at all, was gone through and is proved to be not closed.
    """

    supports: tuple[Support, Support]
    added: tuple[Entry, ...]
    columns: int
    smallest: bool
    verdict: Verdict

    def __str__(self) -> str:
        if not self.added:
            return "nothing to add"
        how = "the smallest change" if self.smallest else "the smallest change found"
        count = "1 entry" if len(self.added) == 1 else f"{len(self.added)} entries"
        places = {factor for factor, _, _ in self.added}
        if len(self.added) > SHOWN and not self.columns and all(self.supports[f].array.all() for f in places):
            return f"make {' and '.join('XY'[f] for f in sorted(places))} dense: {count} ({how})"
        names = [f"{'XY'[factor]}[{i},{j}]" for factor, i, j in self.added[:SHOWN]]
        more = f" and {len(self.added) - SHOWN} more" if len(self.added) > SHOWN else ""
        new = f" in {self.columns} new inner ind{'ices' if self.columns > 1 else 'ex'}" if self.columns else ""
        return f"add {count}{new}: {', '.join(names)}{more} ({how})"


@dataclass(slots=True)
class _Search:
    """Counts what is decided, and tells how far it is."""

    total: int
    progress: Callable[[int, int], None] | None
    done: int = 0

    def step(self) -> None:
        self.done = min(self.done + 1, self.total)
        if self.progress is not None:
            self.progress(self.done, self.total)

    def closed(self, masks: Masks) -> bool:
        self.step()
        return _closed(masks)


def repair(*supports: Any, progress: Callable[[int, int], None] | None = None) -> Repair:
    """The fewest entries found that make two supports closed when they are added, verified by `wellposedness`.

    Takes two supports (m, r) and (r, n), or one sequence. Goes through all sets of 1, 2, ... entries while there are
    few: at most 3000, and fewer for supports of more than 33 entries. Otherwise makes overlapping classes equal, gives
    them inner indices until they are complete, or makes X, Y or both dense, and leaves out again what is not needed of
    the two that add the fewest. Always ends: with all entries it is closed. `progress(done, total)` is called after
    each decision; it may end before the total. Raises as `wellposedness`. Cost: up to 3000 decisions for the sets and
    400 for leaving out, each that of `tractability`; at most 100,000 / (m r + r n) of either for larger supports.

    >>> lower = np.tril(np.ones((2, 2), dtype=bool))
    >>> print(repair(lower, lower.T))
    add 1 entry: X[0,1] (the smallest change)
    """
    left, right = two_supports(*supports)
    given = left.array, right.array
    if is_closed(left, right):
        return _repair(given, given, smallest=True)
    missing = [(f, int(i), int(j)) for f, mask in enumerate(given) for i, j in np.argwhere(~mask)]
    most = WORK // (given[0].size + given[1].size)
    sizes, trials = 0, 0
    while sizes < len(missing) and trials + comb(len(missing), sizes + 1) <= min(TRIALS, most):
        sizes += 1
        trials += comb(len(missing), sizes)
    checks = max(8, min(CHECKS, most))
    search = _Search(trials + checks, progress)
    for size in range(1, sizes + 1):
        for some in combinations(missing, size):
            if search.closed(_with(given, some)):
                return _repair(given, _with(given, some), _none_smaller(given, missing, size, search))
    search.done = trials
    found = sorted(_grown(given), key=_count)[:2]
    smaller = [_smaller(given, masks, checks // 2, search) for masks in found]
    return _repair(given, min(smaller, key=_count))


def weight_decay_cost(lam: float, family: Family | None = None) -> tuple[float, float]:
    """Error ||X Y - A|| and ||X||^2 + ||Y||^2 at the best of ||X Y - A||^2 + lam (||X||^2 + ||Y||^2) on a family.

    Weight decay makes the best factors exist, at a price: on a family with error c eps^2 and squared norms d / eps^2
    the minimum is at eps^6 = lam d / (2 c^2), with the error (lam c d / 2)^(1/3). Halving the error takes an eighth of
    the decay. Without a family: that of the 2 x 2 LU example, c = 1 and d = 4. An upper bound on what the best X and Y
    of the penalized problem have as objective, for limits with entries 0 and 1; for s A put lam / s and multiply by s.
    Raises `ValueError` unless lam is positive and finite.

    >>> [round(weight_decay_cost(lam)[0], 4) for lam in (1e-3, 1e-6)]
    [0.126, 0.0126]
    """
    require_number("lam", lam, above=0, good=1e-4, advice="It is the factor of the squared norms.")
    c, d = 1.0, 4.0
    if family is not None:
        eps = 1e-3
        squares = sum(float(np.square(factor).sum()) for factor in family(eps))
        c, d = family.measured(eps)[0] / eps**2, squares * eps**2
    eps_squared = float((lam * d / (2 * c**2)) ** (1 / 3))
    return c * eps_squared, d / eps_squared


def advice(verdict: Verdict, found: Repair | None = None) -> str:
    """What to do about a verdict, in a sentence or two for a person; empty where it is closed.

    What weight decay costs is told for the family of the verdict; without one nothing is known about it.
    """
    if verdict.closed:
        return ""
    if verdict.family is None:
        law = "use weight decay, with which best factors always exist"
        return f"to be certain, {found}; or {law}" if found is not None else f"to be certain, {law}"
    decay = ", ".join(f"{weight_decay_cost(lam, verdict.family)[0]:.2g} at {lam:g}" for lam in (1e-2, 1e-4, 1e-6))
    law = f"use weight decay, which costs an error of lambda^(1/3): {decay}, for entries of size 1"
    return f"{found}; or {law}" if found is not None else law


def _repair(given: Masks, masks: Masks, smallest: bool = False) -> Repair:
    left, right = Support(masks[0]), Support(masks[1])
    verdict = wellposedness(left, right)
    if not verdict.closed:
        raise AssertionError(f"a repair is not closed: {verdict}")
    columns = masks[0].shape[1] - given[0].shape[1]
    return Repair((left, right), tuple(_added(given, masks)), columns, smallest, verdict)


def _closed(masks: Masks) -> bool:
    return is_closed(Support(masks[0]), Support(masks[1]))


def _open(masks: Masks) -> list[Piece]:
    """The pieces that no criterion for closed sets covers."""
    return closed_because(rest_of(tractability(Support(masks[0]), Support(masks[1]))))[1]


def _none_smaller(given: Masks, missing: list[Entry], size: int, search: _Search) -> bool:
    """Whether all sets of fewer entries, the empty one first, are proved to be not closed; undecided is no proof."""
    for fewer in range(size):
        for some in combinations(missing, fewer):
            search.step()
            masks = _with(given, some)
            if wellposedness(Support(masks[0]), Support(masks[1])).status != "not closed":
                return False
    return True


def _grown(given: Masks) -> Iterator[Masks]:
    """Closed supports that contain the given ones, none with more entries than one before it needs."""
    X, Y = given
    full = np.ones_like(X), np.ones_like(Y)
    yield full
    most = X.size + Y.size
    for masks in ((full[0], Y), (X, full[1])):
        if _closed(masks):
            most = min(most, _count(masks))
            yield masks
    for grow in (_equal, _complete):
        masks = given
        # each step costs as much as a check: few that add a lot, or else it is better to make one dense
        while _count(masks) < most and (pieces := _open(masks)):
            masks = grow(masks, pieces)
        if _count(masks) < most and _closed(masks):
            yield masks


def _equal(masks: Masks, pieces: list[Piece]) -> Masks:
    """Overlapping classes get the same rows and columns; where they have, those that reach into them, too."""
    X, Y = _with(masks, ())
    rows = np.unique(np.concatenate([piece.rows for piece in pieces]))
    columns = np.unique(np.concatenate([piece.columns for piece in pieces]))
    members = np.array(sorted({k for piece in pieces for k in piece.members}))
    for inner in (members, np.flatnonzero(X[rows].any(0) & Y[:, columns].any(1))):
        X[np.ix_(rows, inner)] = Y[np.ix_(inner, columns)] = True
        if _count((X, Y)) > _count(masks):
            return X, Y
    return np.ones_like(X), np.ones_like(Y)


def _complete(masks: Masks, pieces: list[Piece]) -> Masks:
    """Classes in the way get new inner indices until they are complete."""
    X, Y = masks
    for piece in pieces:
        count = min(len(piece.rows), len(piece.columns)) - len(piece.members)
        left, right = np.zeros((len(X), count), dtype=bool), np.zeros((count, Y.shape[1]), dtype=bool)
        left[piece.rows] = right[:, piece.columns] = True
        X, Y = np.concatenate([X, left], 1), np.concatenate([Y, right])
    return X, Y


def _smaller(given: Masks, masks: Masks, checks: int, search: _Search) -> Masks:
    """Leave out again what is not needed: halves of what was added first, then smaller parts, then single entries."""
    added = _added(given, masks)
    part = len(added)
    wide = _with(masks, ())
    for factor, i, j in added:
        wide[factor][i, j] = False
    while part > 1 and checks > 0:
        part = -(-part // 2)
        for start in range(len(added) - part, -1, -part):
            if checks <= 0:
                break
            checks -= 1
            kept = added[:start] + added[start + part :]
            if search.closed(_with(wide, kept)):
                added = kept
    used = _with(wide, added)
    old = given[0].shape[1]
    keep = [k for k in range(used[0].shape[1]) if k < old or (used[0][:, k].any() and used[1][k].any())]
    return used[0][:, keep], used[1][keep]


def _count(masks: Masks) -> int:
    return int(masks[0].sum() + masks[1].sum())


def _with(masks: Masks, entries: Iterable[Entry]) -> Masks:
    """A copy of the masks with some entries added."""
    both = masks[0].copy(), masks[1].copy()
    for factor, i, j in entries:
        both[factor][i, j] = True
    return both


def _added(given: Masks, masks: Masks) -> list[Entry]:
    old = given[0].shape[1]
    before = np.zeros_like(masks[0]), np.zeros_like(masks[1])
    before[0][:, :old], before[1][:old] = given
    return [(f, int(i), int(j)) for f in (0, 1) for i, j in np.argwhere(masks[f] & ~before[f])]
