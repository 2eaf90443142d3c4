"""Clusters of rows and columns such that every block between them has rank one: one level of an unknown tree.

One level of the search for unknown permutations (`search_permutation.py`) works on a batch of matrices, shape
(batch, rows, columns), that share the order of their rows; every matrix has its own order of columns. The rows are put
into clusters of `size` each, the columns of every matrix into `parts` clusters of equal size, and the loss is what the
best matrices of rank one leave of all blocks between them.

Symbols in shapes: g column clusters, m columns in each; k row clusters, q rows in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import final

import numpy as np
from jaxtyping import Float, Int, Num

# Below this share of the energy a loss, a difference of energies, is rounding.
ROUNDING = 1e-13
# Rows whose pairs with all others are looked at, and pairs from which the alternation starts, at most.
BASES, STARTS = 8, 8
# Shares of the row clusters that place the columns, step by step: first only those that fit best.
TRUST = (0.1, 0.2, 0.4, 0.7, 1.0)
# Bounds on alternations that converge in 2 to 6 steps.
STEPS, LINE_STEPS = 20, 6


@final
@dataclass(frozen=True)
class Clusters:
    """Clusters of rows and columns, with the best matrix of rank one, left times right, of every block."""

    values: Num[np.ndarray, "batch rows columns"]
    rows: Int[np.ndarray, "k q"]
    columns: Int[np.ndarray, "batch g m"]

    @cached_property
    def blocks(self) -> Num[np.ndarray, "batch g k q m"]:
        """The blocks between the clusters."""
        return by_columns(self.values, self.columns)[:, :, self.rows]

    @cached_property
    def left(self) -> Num[np.ndarray, "batch g k q"]:
        """Unit vectors: the left singular vector of every block."""
        return np.linalg.eigh(self.blocks @ self.blocks.conj().swapaxes(-1, -2))[1][..., -1]

    @cached_property
    def right(self) -> Num[np.ndarray, "batch g k m"]:
        """What stands to the right of `left`, with the singular value."""
        return np.einsum("bgkq,bgkqm->bgkm", self.left.conj(), self.blocks)

    @cached_property
    def losses(self) -> Float[np.ndarray, " k"]:
        """Energy (squared Frobenius norm) that rank one leaves, per row cluster; rounding may make it negative."""
        return energy(self.blocks).sum((0, 1, 3, 4)) - energy(self.right).sum((0, 1, 3))

    @property
    def loss(self) -> float:
        """Energy that rank one leaves of all blocks."""
        return float(self.losses.sum())

    def place_columns(self, trust: float = 1.0) -> Clusters:
        """Columns anew: each goes where the left vectors explain most of it, clusters staying equal in size.

        Only the share `trust` of the row clusters has a say, those with the smallest relative loss. With all of them
        the loss does not grow. Cost: O(rows columns) and an assignment, O(columns^3) at worst, per matrix.
        """
        of_rows = energy(self.blocks).sum((0, 1, 3, 4))
        order = np.argsort(self.losses / np.maximum(of_rows, np.finfo(float).tiny), kind="stable")
        trusted = np.sort(order[: max(1, round(trust * len(order)))])
        explained = energy(
            np.einsum("bgkq,bkqn->bgkn", self.left[:, :, trusted].conj(), self.values[:, self.rows[trusted]])
        )
        return Clusters(self.values, self.rows, np.stack([balanced(x.T) for x in explained.sum(2)]))

    def place_rows(self) -> Clusters:
        """Rows anew, in the same way, by the right vectors: the loss does not grow. Cost: O(rows^2 columns)."""
        length = np.sqrt(energy(self.right).sum(-1, keepdims=True))
        unit = self.right / np.maximum(length, np.finfo(float).tiny)
        explained = energy(by_columns(self.values, self.columns) @ unit.conj().swapaxes(-1, -2)).sum((0, 1))
        return Clusters(self.values, balanced(explained), self.columns)


def energy(values: Num[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Squared absolute values."""
    return np.real(values) ** 2 + np.imag(values) ** 2


def by_columns(
    values: Num[np.ndarray, "batch rows columns"], columns: Int[np.ndarray, "batch g m"]
) -> Num[np.ndarray, "batch g rows m"]:
    """The values, column cluster by column cluster."""
    batch, parts, m = columns.shape
    ordered = np.take_along_axis(values, columns.reshape(batch, 1, parts * m), 2)
    return ordered.reshape(batch, -1, parts, m).swapaxes(1, 2)


def balanced(gain: Float[np.ndarray, "n k"]) -> Int[np.ndarray, "k q"]:
    """The members of k clusters of n/k each that have the largest total gain, each cluster in ascending order.

    `gain[i, j]` is what member i brings to cluster j. Cost: a linear assignment, O(n^3) at worst.

    >>> balanced(np.array([[3.0, 0], [2, 0], [1, 0], [0, 0]])).tolist()
    [[0, 1], [2, 3]]
    """
    from scipy.optimize import linear_sum_assignment  # not loaded by `import flatwing`

    n, k = gain.shape
    _, seats = linear_sum_assignment(np.repeat(gain, n // k, axis=1), maximize=True)
    return np.argsort(seats // (n // k), kind="stable").reshape(k, n // k)


def gather_rows(
    values: Num[np.ndarray, "batch rows columns"], columns: Int[np.ndarray, "batch g m"], size: int
) -> Int[np.ndarray, "k q"]:
    """Row clusters for given column clusters: the rows that are most nearly parallel in all of them, greedily.

    The likeness of two rows is the share of each that the other explains, cluster by cluster: 2 if they are parallel
    in each. The row whose cluster is surest chooses first. Cost: O(rows^2 columns + rows^2 log(rows)).
    """
    pieces = by_columns(values, columns)
    gram = energy(pieces @ pieces.conj().swapaxes(-1, -2))
    own = np.sqrt(np.einsum("bgii->bgi", gram))
    tiny = np.finfo(float).tiny
    explained = (gram / np.maximum(own[..., None, :], tiny)).sum((0, 1)) / np.maximum(own.sum((0, 1)), tiny)[:, None]
    likeness = explained + explained.T
    np.fill_diagonal(likeness, -np.inf)
    order, free = np.argsort(-likeness, axis=1, kind="stable"), np.ones(len(likeness), bool)

    def choice(row: int) -> tuple[float, int, np.ndarray]:
        near = order[row][free[order[row]]][: size - 1]  # the row itself comes last
        return -float(likeness[row, near].sum()), row, near

    clusters, waiting = [], [choice(row) for row in range(len(likeness))]
    heapify(waiting)
    while waiting:
        _, row, near = heappop(waiting)
        if not free[row]:
            continue
        if free[near].all():
            clusters.append(np.sort(np.append(near, row)))
            free[clusters[-1]] = False
        else:
            heappush(waiting, choice(row))  # the choice of those who are left is never better than before
    return np.stack(clusters)


def lines(
    pairs: Num[np.ndarray, "pairs batch columns 2"], parts: int
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, "pairs batch parts columns"]]:
    """Fit `parts` lines through the origin to the columns of pairs of rows.

    Result: the share of the energy of each pair that the lines leave, and what each line explains of each column.
    Cost: O(pairs batch columns parts).
    """
    of_columns = energy(pairs).sum(-1)
    directions, explained = [], np.zeros_like(of_columns)
    for _ in range(parts):  # each line starts in the column that the lines before explain least
        worst = (of_columns - explained).argmax(-1)
        line = np.take_along_axis(pairs, worst[..., None, None], 2)[:, :, 0]
        line = line / np.maximum(np.sqrt(energy(line).sum(-1, keepdims=True)), np.finfo(float).tiny)
        directions.append(line)
        explained = np.maximum(explained, energy((pairs @ line.conj()[..., None])[..., 0]))
    line = np.stack(directions, 2)
    for _ in range(LINE_STEPS):
        explained = energy(line.conj() @ pairs.swapaxes(-1, -2))
        nearest = explained.argmax(2, keepdims=True) == np.arange(parts)[:, None]
        members = nearest[..., None] * pairs[:, :, None]
        line = np.linalg.eigh(members.swapaxes(-1, -2) @ members.conj())[1][..., -1]
    explained = energy(line.conj() @ pairs.swapaxes(-1, -2))
    total = np.maximum(of_columns.sum((1, 2)), np.finfo(float).tiny)
    return 1 - explained.max(2).sum((1, 2)) / total, explained


def starts(
    values: Num[np.ndarray, "batch rows columns"], parts: int, rng: np.random.Generator
) -> Iterator[Int[np.ndarray, "batch g m"]]:
    """Column clusters to start from, the most promising first.

    Two rows of one cluster are parallel in every column cluster, so that the columns of the pair lie on `parts` lines:
    a pair that does so is probably right, and its lines are the clusters. Cost: O(rows columns) for each of `BASES`
    rows that are paired with all others.
    """
    batch, rows, columns = values.shape
    if parts == 1:
        yield np.tile(np.arange(columns), (batch, 1, 1))
        return
    found = []
    for base in rng.permutation(rows)[:BASES]:
        others = np.delete(np.arange(rows), base)
        pairs = np.stack([np.broadcast_to(values[:, [base]], (batch, rows - 1, columns)), values[:, others]], -1)
        left, explained = lines(pairs.swapaxes(0, 1), parts)
        best = np.argsort(left, kind="stable")[:STARTS]
        found += [(left[i], explained[i]) for i in best]
    for _, explained in sorted(found, key=lambda pair: pair[0])[:STARTS]:
        yield np.stack([balanced(x.T) for x in explained])


def find_clusters(
    values: Num[np.ndarray, "batch rows columns"], size: int, parts: int, rng: np.random.Generator
) -> Clusters:
    """The clusters with the smallest loss that alternating between rows and columns finds.

    From each start the rows are gathered and the columns placed, first by the surest row clusters only; then rows and
    columns take turns until the loss stays. Looking ends early when the loss is rounding, or is found a second time.
    Needs `size` to divide the rows and `parts` the columns. Cost: O(rows^2 columns) per step, some 80 steps.
    """
    total, best = float(energy(values).sum()), None
    for columns in starts(values, parts, rng):
        found = descend(_gathered(values, columns, size))
        again = best is not None and abs(found.loss - best.loss) <= 1e-9 * best.loss
        best = found if best is None or found.loss < best.loss else best
        if again or best.loss <= ROUNDING * total:
            break
    assert best is not None  # there is always a start
    return best


def _gathered(values: np.ndarray, columns: np.ndarray, size: int) -> Clusters:
    """From given columns: row clusters gathered anew for every degree of trust; the best on the way."""
    best = None
    for trust in TRUST:
        now = Clusters(values, gather_rows(values, columns, size), columns)
        for _ in range(3):  # the left vectors and the columns that they place follow each other
            best = now if best is None or now.loss < best.loss else best
            now = now.place_columns(trust)
        columns = now.columns
        best = now if best is None or now.loss < best.loss else best
    assert best is not None
    return best


def descend(now: Clusters) -> Clusters:
    """Rows and columns in turn until the loss stays."""
    for _ in range(STEPS):
        after = now.place_rows().place_columns()
        if after.loss >= now.loss * (1 - 1e-9):
            break
        now = after
    return now
