"""Refinement: alternating least squares over the factors, in canonical form."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..structure.split import Split
from .butterfly import cut, orthonormal_columns, split_at
from .problem import Problem


def refine_factors(
    problem: Problem,
    factors: list[torch.Tensor],
    sweeps: int,
    sites: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[torch.Tensor]:
    """Improve factor values by `sweeps` passes from the right end to the left one and back; the error never grows.

    With all factors left of a node orthonormal in their block columns and all to the right in their block rows, the map
    from the node to the product is an isometry, so the best node is a projection of the matrix: K <- left^H A right^H
    on its support. `sites` = 1 updates one factor at a time; 2 updates two neighbours jointly and cuts them again by
    truncated SVD, which is a larger step at a higher cost. Stops early when a sweep gains nothing beyond rounding.
    Cost per sweep: O(m n max b), like the factorization itself.
    """
    if len(factors) <= sites:
        return factors
    work = _Canonical(problem, list(factors), sites)
    best, error = factors, problem.error(factors)
    for sweep in range(sweeps):
        work.leftwards()
        work.rightwards()
        now = problem.error(work.factors)
        if progress is not None:
            progress(sweep + 1, sweeps)
        before, after = problem.total(error), problem.total(now)
        if not after < before:
            break
        best, error = list(work.factors), now
        if before - after <= 1e-12 * before:
            break
    return best


class _Canonical:
    """Factors with the weight at the right end (all others orthonormal in their block columns) between two passes."""

    def __init__(self, problem: Problem, factors: list[torch.Tensor], sites: int) -> None:
        self.problem, self.patterns, self.factors, self.sites = problem, problem.patterns, factors, sites
        for i in range(len(factors) - 1):
            split = self.neighbours(i)
            q, rest = orthonormal_columns(split.left_blocks(factors[i]), split.right_blocks(factors[i + 1]))
            factors[i], factors[i + 1] = split.left_values(q), split.right_values(rest)

    def neighbours(self, i: int) -> Split:
        return split_at(self.patterns, i, i + 1, i + 2)

    def leftwards(self) -> None:
        """Update the nodes from the right end to the left one, leaving orthonormal block rows behind."""
        last = len(self.factors) - self.sites
        views = [self.problem.values]  # views[i]: the matrix seen through the factors before i
        for i in range(last):
            views.append(self.through_left(views[i], i, len(self.factors)))
        for i in range(last, -1, -1):
            node = views.pop()
            for j in range(len(self.factors) - 1, i + self.sites - 1, -1):
                node = self.through_right(node, i, j)
            if self.sites == 2:
                weight = "left" if i > 0 else "right"
                self.factors[i], self.factors[i + 1], _ = cut(self.neighbours(i), node, weight)
            elif i > 0:
                split = self.neighbours(i - 1)
                rows, _ = orthonormal_columns(split.right_blocks(node).mH, split.left_blocks(self.factors[i - 1]).mH)
                self.factors[i] = split.right_values(rows.mH)
            else:
                self.factors[i] = node

    def rightwards(self) -> None:
        """Update the nodes from the left end to the right one, leaving orthonormal block columns behind."""
        last = len(self.factors) - self.sites
        views = [self.problem.values]  # views[i]: the matrix seen through the i last factors
        for i in range(last):
            stop = len(self.factors) - i
            views.append(self.through_right(views[i], 0, stop - 1))
        for i in range(last + 1):
            node = views.pop()
            for j in range(i):
                node = self.through_left(node, j, i + self.sites)
            if self.sites == 2:
                self.factors[i], self.factors[i + 1], _ = cut(self.neighbours(i), node, "right")
            elif i < last:
                split = self.neighbours(i)
                columns, _ = orthonormal_columns(split.left_blocks(node), split.right_blocks(self.factors[i + 1]))
                self.factors[i] = split.left_values(columns)
            else:
                self.factors[i] = node

    def through_left(self, values: torch.Tensor, i: int, stop: int) -> torch.Tensor:
        """K_i^H X on the support of the factors i+1 ... stop-1, for X on that of the factors i ... stop-1."""
        split = split_at(self.patterns, i, i + 1, stop)
        return split.right_values(split.left_blocks(self.factors[i]).mH @ split.blocks(values))

    def through_right(self, values: torch.Tensor, start: int, j: int) -> torch.Tensor:
        """X K_j^H on the support of the factors start ... j-1, for X on that of the factors start ... j."""
        split = split_at(self.patterns, start, j, j + 1)
        return split.left_values(split.blocks(values) @ split.right_blocks(self.factors[j]).mH)
