"""A lower bound for two factors on any fixed supports: disjoint rectangles, each of which few columns can reach."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Num

from ..structure import Tractability
from ..structure.tractable import Class, Indices

ROUNDINGS = 4  # of the largest singular value, per singular value: what LAPACK's may be wrong by


def rectangle_bound(A: Num[torch.Tensor, "m n"], verdict: Tractability) -> float:
    """A number that ||A - X Y||^2 is at least, for every X and Y on the supports of the verdict.

    What is outside of the reach of the product is lost; and on a rectangle that only rho columns of X (rows of Y) have
    entries in, X Y has rank rho at most, so all but the rho largest singular values of A there are lost. Rectangles
    that do not overlap add up: they are taken greedily, the largest loss first. Cost: one SVD per candidate.
    """
    matrix = A.numpy(force=True)
    total = float(np.square(np.abs(matrix[~verdict.reachable])).sum())
    found = []
    for rows, columns in _candidates(verdict):
        rank = sum(
            len(c.members) for c in verdict.classes if np.isin(c.rows, rows).any() and np.isin(c.columns, columns).any()
        )
        if rank < min(len(rows), len(columns)):
            sigma = np.linalg.svd(matrix[np.ix_(rows, columns)], compute_uv=False)
            found.append((lost_energy(sigma, rank)[0], rows, columns))
    taken = ~verdict.reachable
    for lost, rows, columns in sorted(found, key=lambda entry: -entry[0]):
        place = np.ix_(rows, columns)
        if not taken[place].any():
            taken[place] = True
            total += lost
    return total


def lost_energy(sigma: Float[np.ndarray, " k"], rank: int) -> tuple[float, float]:
    """The squares of all but the `rank` largest singular values: at least, and at most, whatever rounding did to them.

    >>> least, most = lost_energy(np.array([1.0, 0.5, 1e-17]), rank=1)
    >>> least < 0.25 < most, most - least < 1e-14
    (True, True)
    """
    noise = ROUNDINGS * np.finfo(np.float64).eps * len(sigma) * sigma[0]
    tail = sigma[rank:]
    return float(np.square(np.maximum(tail - noise, 0.0)).sum()), float(np.square(tail + noise).sum())


def _candidates(verdict: Tractability) -> Iterator[tuple[Indices, Indices]]:
    """Rectangles inside of the reachable entries that few columns are likely to reach, none of them twice."""
    seen: set[tuple[bytes, bytes]] = set()
    for rows, columns in _unfiltered(verdict):
        key = (rows.tobytes(), columns.tobytes())
        inside = len(rows) and len(columns) and verdict.reachable[np.ix_(rows, columns)].all()
        if inside and key not in seen:
            seen.add(key)
            yield rows, columns


def _unfiltered(verdict: Tractability) -> Iterator[tuple[Indices, Indices]]:
    m, n = verdict.reachable.shape
    yield np.arange(m), np.arange(n)
    for one in verdict.classes:
        yield one.rows, one.columns
        if not one.complete:
            yield from _inside(one)
    # rows reached by the same columns of X, times columns that the same rows of Y reach
    row_kinds, column_kinds = (_alike(verdict, side) for side in ("rows", "columns"))
    for rows in row_kinds:
        for columns in column_kinds:
            yield rows, columns
        yield rows, np.flatnonzero(verdict.reachable[rows].all(0))
    for columns in column_kinds:
        yield np.flatnonzero(verdict.reachable[:, columns].all(1)), columns


def _inside(one: Class) -> Iterator[tuple[Indices, Indices]]:
    """Rectangles inside of the remainder of a class: for each kind of row, all rows that have what it has."""
    for pattern in np.unique(one.remainder, axis=0):
        if pattern.any():
            yield one.rows[one.remainder[:, pattern].all(1)], one.columns[pattern]
    for pattern in np.unique(one.remainder, axis=1).T:
        if pattern.any():
            yield one.rows[pattern], one.columns[one.remainder[pattern].all(0)]


def _alike(verdict: Tractability, side: str) -> list[Indices]:
    size = verdict.reachable.shape[0 if side == "rows" else 1]
    incidence = np.zeros((size, len(verdict.classes)), dtype=bool)
    for k, one in enumerate(verdict.classes):
        incidence[getattr(one, side), k] = True
    kinds, which = np.unique(incidence, axis=0, return_inverse=True)
    return [np.flatnonzero(which.reshape(-1) == k) for k, kind in enumerate(kinds) if kind.any()]
