"""How to make an ill-posed pair of supports well-posed: entries to add, or what weight decay costs instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, final

import numpy as np
from jaxtyping import Bool

from .closed import Piece, closed_because, rest_of
from .diverging import Family
from .support import Support
from .tractable import tractability, two_supports
from .wellposed import Verdict, is_closed, wellposedness

TRIALS = 3000  # most sets of entries that are gone through, smallest first
CHECKS = 400  # most checks while a repair that works is made smaller

Masks = tuple[Bool[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]
Entry = tuple[int, int, int]
"""(factor 0 or 1, row, column)"""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Repair:
    """Supports that contain the given ones and are closed, as `verdict` says; `added` are the entries that were added.

    `columns` is how many inner indices were added. `smallest` says whether no smaller change of entries exists, which
    is only known where all of them were gone through.
    """

    supports: tuple[Support, Support]
    added: tuple[Entry, ...]
    columns: int
    smallest: bool
    verdict: Verdict

    def __str__(self) -> str:
        if not self.added:
            return "nothing to add"
        names = [f"{'XY'[factor]}[{i},{j}]" for factor, i, j in self.added[:6]]
        more = f" and {len(self.added) - 6} more" if len(self.added) > 6 else ""
        entries = "1 entry" if len(self.added) == 1 else f"{len(self.added)} entries"
        new = f" in {self.columns} new inner ind{'ices' if self.columns > 1 else 'ex'}" if self.columns else ""
        how = "the smallest change" if self.smallest else "the smallest change found"
        return f"add {entries}{new}: {', '.join(names)}{more} ({how})"


def repair(*supports: Any) -> Repair:
    """The fewest entries found that make two supports closed when they are added, verified by `wellposedness`.

    Takes two supports (m, r) and (r, n), or one sequence. Goes through all sets of 1, 2, ... entries while there
    are at most 3000 of them; otherwise makes overlapping classes equal, or gives them inner indices until they are
    complete, whichever adds fewer, and leaves out again what is not needed. Always ends: with all entries it is closed.
    Raises as `wellposedness`. Cost: up to 3000 decisions, each that of `tractability`.

    >>> lower = np.tril(np.ones((2, 2), dtype=bool))
    >>> print(repair(lower, lower.T))
    add 1 entry: X[0,1] (the smallest change)
    """
    left, right = two_supports(*supports)
    given = left.array, right.array
    if is_closed(left, right):
        return _repair(given, given, smallest=True)
    missing = [(f, int(i), int(j)) for f, mask in enumerate(given) for i, j in np.argwhere(~mask)]
    trials = 0
    for size in range(1, len(missing) + 1):
        if trials + comb(len(missing), size) > TRIALS:
            break
        for some in combinations(missing, size):
            trials += 1
            if _closed(_with(given, some)):
                return _repair(given, _with(given, some), smallest=True)
    grown = [_made_equal(given), _completed(given)]
    return min((_repair(given, _smaller(given, masks)) for masks in grown), key=lambda found: len(found.added))


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
    if not 0 < lam < np.inf:
        raise ValueError(f"lam is {lam}. Rule: a positive number, the factor of the squared norms. Write 1e-4.")
    c, d = 1.0, 4.0
    if family is not None:
        eps = 1e-3
        squares = sum(float(np.square(factor).sum()) for factor in family(eps))
        c, d = family.measured(eps)[0] / eps**2, squares * eps**2
    eps_squared = float((lam * d / (2 * c**2)) ** (1 / 3))
    return c * eps_squared, d / eps_squared


def advice(verdict: Verdict, found: Repair | None = None) -> str:
    """What to do about a verdict, in a sentence or two for a person; empty where it is closed."""
    if verdict.closed:
        return ""
    decay = ", ".join(f"{weight_decay_cost(lam, verdict.family)[0]:.2g} at {lam:g}" for lam in (1e-2, 1e-4, 1e-6))
    law = f"or use weight decay, which costs an error of lambda^(1/3): {decay}, for entries of size 1"
    return f"{found}; {law}" if found is not None else law


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


def _made_equal(given: Masks) -> Masks:
    """Overlapping classes get the same rows and columns; one with holes, those that reach into it, too."""
    X, Y = given[0].copy(), given[1].copy()
    while not _closed((X, Y)) and (pieces := _open((X, Y))):
        rows = np.unique(np.concatenate([piece.rows for piece in pieces]))
        columns = np.unique(np.concatenate([piece.columns for piece in pieces]))
        members = np.array(sorted({k for piece in pieces for k in piece.members}))
        before = X.sum() + Y.sum()
        for inner in (members, np.flatnonzero(X[rows].any(0) & Y[:, columns].any(1))):
            X[np.ix_(rows, inner)] = Y[np.ix_(inner, columns)] = True
            if X.sum() + Y.sum() > before:
                break
        else:
            return np.ones_like(X), np.ones_like(Y)
    return X, Y


def _completed(given: Masks) -> Masks:
    """Classes in the way get new inner indices until they are complete."""
    X, Y = given
    while not _closed((X, Y)) and (pieces := _open((X, Y))):
        for piece in pieces:
            count = min(len(piece.rows), len(piece.columns)) - len(piece.members)
            left, right = np.zeros((len(X), count), dtype=bool), np.zeros((count, Y.shape[1]), dtype=bool)
            left[piece.rows] = right[:, piece.columns] = True
            X, Y = np.concatenate([X, left], 1), np.concatenate([Y, right])
    return X, Y


def _smaller(given: Masks, masks: Masks) -> Masks:
    """Leave out again what is not needed: halves of what was added first, then smaller parts, then single entries."""
    added, checks = _added(given, masks), 0
    part = len(added)
    wide = _with(masks, ())
    for factor, i, j in added:
        wide[factor][i, j] = False
    while part > 1 and checks < CHECKS:
        part = -(-part // 2)
        for start in range(len(added) - part, -1, -part):
            kept = added[:start] + added[start + part :]
            checks += 1
            if checks > CHECKS:
                break
            if _closed(_with(wide, kept)):
                added = kept
    used = _with(wide, added)
    old = given[0].shape[1]
    keep = [k for k in range(used[0].shape[1]) if k < old or (used[0][:, k].any() and used[1][k].any())]
    return used[0][:, keep], used[1][keep]


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
