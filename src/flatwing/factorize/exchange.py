"""Orders of rows and columns that are nearly right, made better by exchanging clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, combinations
from operator import mul

import numpy as np
import torch
from jaxtyping import Float, Int, Num

from ..structure import Chain
from .factorization import Factorization
from .permutation import Permutations, digits_reversed, permuted
from .problem import Problem

# Clusters are suspects if they leave more than EXCESS times the median; only the worst SUSPECTS of a size are tried.
EXCESS, SUSPECTS = 1.5, 10
MOVES = 50


def exchange(
    matrix: Num[torch.Tensor, "m n"],
    chain: Chain,
    perms: Permutations,
    fit: Callable[[Permutations], Factorization],
    progress: Callable[[str, int, int], None] | None = None,
) -> Permutations | None:
    """Orders with a smaller sum of tails over all splits, by exchanging clusters; None if no exchange helps.

    Rows and columns form trees of clusters. In noise, a cluster can end up under the wrong parent where one level alone
    does not show it; what the product (`fit` of the orders) leaves is then large in the misplaced clusters of some
    size. Of clusters that leave much more than most, the pair whose exchange helps most changes places, until none
    does. `matrix` and `chain` are as `search_permutation` takes them. Cost: per move at most 45 evaluations of all
    tails for every size of clusters, O(m n) per split; none for an order that fits all clusters alike.
    """
    q, p = chain.reduced().radices
    m, n = chain.shape
    columns = np.arange(n) if perms[0] is None else perms[0].numpy(force=True)
    rows = digits_reversed(np.arange(m) if perms[1] is None else perms[1].numpy(force=True), q)

    def orders(trees: tuple[np.ndarray, np.ndarray]) -> Permutations:
        order = trees[0], digits_reversed(trees[1], q[::-1])
        return torch.from_numpy(order[0]), torch.from_numpy(order[1])

    trees, moved = (columns, rows), 0
    least = measure(matrix, chain, perms)[1]
    while moved < MOVES:
        if progress is not None:
            progress("exchanging rows and columns", moved, MOVES)
        left = (matrix - fit(orders(trees)).product.dense()).abs().square().numpy(force=True)
        of_columns, of_rows = left.sum(0)[trees[0]], left.sum(1)[trees[1]]
        tried = [(x, trees[1]) for x in exchanges(trees[0], of_columns, p)]
        tried += [(trees[0], x) for x in exchanges(trees[1], of_rows, q[::-1])]
        losses = [measure(matrix, chain, orders(pair))[1] for pair in tried]
        if not losses or min(losses) >= least * (1 - 1e-9):
            break
        least, trees = min(losses), tried[int(np.argmin(losses))]
        moved += 1
    return orders(trees) if moved else None


def exchanges(
    order: Int[np.ndarray, " n"], left: Float[np.ndarray, " n"], radices: Sequence[int]
) -> Iterator[Int[np.ndarray, " n"]]:
    """The order with two suspect clusters of equal size in each other's places, for all such pairs.

    `left` is the energy that is left at each place; the first radix counts the largest clusters.
    """
    for size, siblings in zip(accumulate(radices[::-1], mul, initial=1), radices[:0:-1], strict=False):
        energy = left.reshape(-1, size).sum(1)
        worst = np.argsort(-energy, kind="stable")[:SUSPECTS]
        suspects = sorted(worst[energy[worst] > EXCESS * np.median(energy)].tolist())
        for i, j in combinations(suspects, 2):
            if i // siblings != j // siblings:  # children of one parent may stand in any order
                clusters = order.reshape(-1, size).copy()
                clusters[[i, j]] = clusters[[j, i]]
                yield clusters.reshape(-1)


def measure(matrix: Num[torch.Tensor, "m n"], chain: Chain, perms: Permutations) -> tuple[float, float]:
    """Lower bound on the relative error with these orders, and the sum over splits of what each must leave.

    The sum is in shares of the energy of the matrix. Cost: O(m n) per split, singular values of small matrices only.
    """
    columns, rows = (None if perm is None else perm.to(matrix.device) for perm in perms)
    problem = Problem.of(permuted(matrix, (columns, rows)), chain.reduced())
    lower, tails = problem.bounds(np.full(1, np.inf), (), np.ones(1, bool))
    energy = float(problem.norm[0]) or 1.0
    return float(np.sqrt(lower[0] / energy)), sum(tail[0] for tail in tails if tail is not None) / energy
