"""Shortest paths through the cuts of a matrix: fewest parameters within an error."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from ..structure import Chain
from .tails import Cut


@final
@dataclass(frozen=True)
class Path:
    """Cuts (rows, columns) from left to right and their ranks; the parameters and the squared error they cost."""

    places: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...]
    parameters: int
    squared_error: float

    def chain(self, m: int, n: int, a1: int = 1, dL: int = 1) -> Chain:
        """The chain that makes these cuts in a1 dL matrices of m x n, without redundant factors."""
        stops = [(1, 1), *self.places, (m, n)]
        q = [b[0] // a[0] for a, b in pairwise(stops)]
        p = [b[1] // a[1] for a, b in pairwise(stops)]
        return Chain.from_radices(q, p, self.ranks, a1, dL).reduced()


def cheapest_path(cuts: list[Cut], m: int, n: int, allowed: float, limit: int, buckets: int = 128) -> Path:
    """The path with the fewest parameters among those whose squared errors sum to at most `allowed`.

    Paths with more than `limit` parameters need not be looked at; without any, the answer is the dense matrix.

    A factor between the cuts (q, p, r) and (q', p', r') has p' (m / q) r r' parameters. Dynamic programming over cuts
    in the order of their position, with the squared error counted in `buckets` steps, rounded up: the path is always
    within `allowed`, and it is the optimum up to that rounding, of which `thin` takes back a part.
    Cost: (cuts * ranks)^2 * buckets, vectorized over all but the cuts.
    """
    usable = [_useful_ranks(cut, m, allowed, limit, buckets) for cut in cuts]
    order = sorted(
        (i for i in range(len(cuts)) if len(usable[i][0])), key=lambda i: (cuts[i].rows * cuts[i].columns, cuts[i].rows)
    )
    value: dict[int, np.ndarray] = {}  # (rank, bucket) -> parameters of the cheapest way there within that error
    came: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # the cut before (-1: none) and the index of its rank
    for i in order:
        here, (ranks, steps) = cuts[i], usable[i]
        best = np.repeat(here.columns * m * ranks.astype(float)[:, None], buckets + 1, axis=1)
        before, index = np.full(best.shape, -1), np.zeros(best.shape, dtype=int)
        for j in value:
            there = cuts[j]
            if here.rows % there.rows == 0 and here.columns % there.columns == 0:
                width = here.columns * (m // there.rows)
                total = value[j][:, None, :] + (width * usable[j][0][:, None] * ranks[None, :])[:, :, None]
                choice = total.argmin(0)
                total = np.take_along_axis(total, choice[None], 0)[0]
                better = total < best
                best, before = np.where(better, total, best), np.where(better, j, before)
                index = np.where(better, choice, index)
        # this cut's own error moves everything up by its number of buckets
        shift = np.arange(buckets + 1)[None, :] - steps[:, None]
        value[i] = np.where(shift >= 0, np.take_along_axis(best, shift.clip(0), 1), np.inf)
        came[i] = before, index
    ends = {i: value[i][:, buckets] + n * (m // cuts[i].rows) * usable[i][0] for i in value}
    last = min(ends, key=lambda i: ends[i].min(), default=-1)
    if last < 0 or ends[last].min() >= m * n:
        return Path((), (), m * n, 0.0)
    i, r, bucket, path = last, int(ends[last].argmin()), buckets, []
    while i >= 0:
        path.append((cuts[i], int(usable[i][0][r]) - 1))
        bucket -= int(usable[i][1][r])
        i, r = int(came[i][0][r, bucket]), int(came[i][1][r, bucket])
    return thin(_path(path[::-1], m, n), cuts, m, n, allowed)


def _useful_ranks(cut: Cut, m: int, allowed: float, limit: int, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of a cut that meet error and limit, up to the first that costs no error, and their errors in buckets.

    The factors on either side of the cut have at least one parameter for each of the columns * m / rows * rank numbers
    that pass between them.
    """
    steps = np.ceil(cut.tails.cpu().numpy() / max(allowed, np.finfo(float).tiny) * buckets)
    ranks = np.flatnonzero(steps <= buckets)
    free = np.flatnonzero(steps <= 0)
    if len(free):
        ranks = ranks[ranks <= free[0]]
    ranks = ranks[2 * cut.columns * (m // cut.rows) * (ranks + 1) <= limit]
    return ranks + 1, steps[ranks].astype(int)


def thin(path: Path, cuts: list[Cut], m: int, n: int, allowed: float) -> Path:
    """Lower single ranks, the largest saving first, while the squared error stays within `allowed`."""
    by_place = {(cut.rows, cut.columns): cut for cut in cuts}
    while True:
        chosen = [by_place[place] for place in path.places]
        trials = [
            _path([(cut, r - 1 - (k == j)) for j, (cut, r) in enumerate(zip(chosen, path.ranks, strict=True))], m, n)
            for k in range(len(chosen))
            if path.ranks[k] > 1
        ]
        trials = [t for t in trials if t.squared_error <= allowed]
        if not trials:
            return path
        path = min(trials, key=lambda t: t.parameters)


def _path(steps: list[tuple[Cut, int]], m: int, n: int) -> Path:
    """The path through these cuts with these rank indices (rank - 1)."""
    stops = [(1, 1, 1), *((cut.rows, cut.columns, i + 1) for cut, i in steps), (m, n, 1)]
    parameters = sum(after[1] * (m // before[0]) * before[2] * after[2] for before, after in pairwise(stops))
    error = sum(float(cut.tails[i]) for cut, i in steps)
    return Path(tuple(s[:2] for s in stops[1:-1]), tuple(s[2] for s in stops[1:-1]), parameters, error)
