"""Problem: one matrix (or batch) and one irredundant chain, in the form that all algorithms of this room work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import frexp, sqrt
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num

from ..structure import Chain, Pattern
from ..structure.factor import extract, with_batch, without_support
from ..structure.split import Split
from . import compiled
from .bounds import matrix_tails, tails_by_residual, tree_bound
from .butterfly import splits_of
from .solvers import TOLERANCE, energy

# Below this relative bound the shared Gram matrices of `matrix_tails` have lost digits that the bound needs.
CAREFUL_BELOW = 1e-3
# From this many entries on, a proof that the error is within 10 % of the best is good enough to stop looking.
LARGE, CLOSE_ENOUGH = 1 << 14, 1.1


@final
@dataclass(frozen=True)
class Problem:
    """Values of the matrix on the support of the chain, times 2**-exponent so that its largest entry is near 1.

    A batch is a block-diagonal matrix: it multiplies `a` of every pattern, and sums over regions give one number per
    matrix. All energies are squared Frobenius norms in float64.
    """

    chain: Chain
    batch: torch.Size
    values: Num[torch.Tensor, "blocks b c"]
    exponents: Int[torch.Tensor, " batch"]
    norm: Float[torch.Tensor, " batch"]
    outside: Float[torch.Tensor, " batch"]

    @classmethod
    def of(cls, matrix: Num[torch.Tensor, "*batch m n"], chain: Chain) -> Problem:
        """Restrict a checked matrix to the support of a checked chain. Cost: a few passes over the matrix."""
        batch = matrix.shape[:-2]
        pattern = chain.pattern
        flat = matrix.reshape(-1, *chain.shape)
        exponents = exponents_of(flat)
        flat = scaled(flat, -exponents)
        values = extract(flat, pattern) if pattern.blocks > 1 else flat.contiguous()
        norm = energy(values)
        outside = torch.zeros_like(norm)
        if pattern.blocks > 1:
            # part of every bound, so it gets the digits of float64 whatever the dtype
            outside = energy(without_support(flat, pattern).to(torch.promote_types(flat.dtype, torch.float64)))
        return cls(chain, batch, values.reshape(-1, pattern.b, pattern.c), exponents, norm + outside, outside)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns of the chain with the batch inside `a`."""
        return self.chain.patterns if self.count == 1 else tuple(with_batch(p, self.count) for p in self.chain)

    @cached_property
    def count(self) -> int:
        """Number of matrices in the batch."""
        return self.batch.numel()

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The cuts of the whole chain at 1, 2, ..."""
        return splits_of(self.patterns)

    @property
    def rank(self) -> int:
        """The largest rank of a split."""
        return max((split.rank for split in self.splits), default=1)

    def per_matrix(self, regions: Float[torch.Tensor, "*regions"]) -> Float[torch.Tensor, " batch"]:
        """Sum of region energies, one number per matrix of the batch."""
        return regions.sum().reshape(1) if self.count == 1 else regions.reshape(self.count, -1).sum(1)

    def numbers(self, energies: Float[torch.Tensor, " batch"]) -> list[float]:
        """The number of the whole batch, then those of its matrices; only the one of a single matrix."""
        each = energies.tolist()
        return each if self.count == 1 else [self.total(energies), *each]

    def sums(self, regions: Sequence[Float[torch.Tensor, "_ _"]]) -> list[list[float]]:
        """The `numbers` of the sums of several arrays of region energies."""
        if not regions:
            return []
        flat = np.concatenate([r.numpy(force=True).reshape(-1) for r in regions])
        starts = np.cumsum([0, *(r.numel() // self.count for r in regions for _ in range(self.count))][:-1])
        each = np.add.reduceat(flat, starts).reshape(len(regions), self.count)
        if self.count == 1:
            return each.tolist()
        return [self.numbers(torch.from_numpy(row).to(self.norm.device)) for row in each]

    def total(self, energies: Float[torch.Tensor, " batch"], rows: slice = slice(None)) -> float:
        """Sum over matrices of the batch, in the unit of the largest of them: the exponents put back."""
        if self.count == 1:
            return float(energies)
        exponents = self.exponents[rows]
        alive = exponents[self.norm[rows] > 0]
        if len(alive) == 0:
            return 0.0
        shift = (exponents - alive.max()).clamp(max=0).double()
        return float((energies[rows] * torch.exp2(2 * shift)).sum())

    def error(self, factors: Sequence[torch.Tensor]) -> Float[torch.Tensor, " batch"]:
        """Squared error of a product, measured on its factors. Cost: O(m n r), the last product is never stored."""
        if len(factors) == 1:
            difference = (self.values - factors[0]).reshape(self.count, -1)
            return self.outside + energy(difference)
        return self.outside + self.per_matrix(compiled.residual(self.values, self.patterns, factors))

    def bounds(
        self,
        error: Float[torch.Tensor, " batch"],
        stories: Sequence[Mapping[int, Float[torch.Tensor, "_ _"]]],
        asked: Bool[torch.Tensor, " batch"],
    ) -> tuple[Float[torch.Tensor, " batch"], list[list[float] | None]]:
        """Squared lower bound (tree bound) on the error of any product, and `sums` of the squared tails per split.

        `error` is what was achieved; only the matrices `asked` for need a bound. `stories` are squared errors of
        orthonormalized cuts, block by block, in the order in which they were made: the first one of a story is the tail
        of the matrix itself, the others exceed it by no more than rounding. A large matrix whose error is within
        `CLOSE_ENOUGH` of what the stories and its squarest split prove is examined no further: the tails that were not
        needed are None.
        """
        splits = self.splits
        if not splits:
            return self.outside, []
        tails: list[torch.Tensor | None] = [None] * len(splits)
        if self.values.numel() // self.count >= LARGE and stories and len(splits) > 1:
            for story in stories:
                s, step = next(iter(story.items()))
                tails[s - 1] = step
            squarest = max(range(len(splits)), key=lambda i: min(splits[i].block_shape))
            if tails[squarest] is None:
                tails[squarest] = tails_by_residual(self.values, splits[squarest])
            known = [
                reduce(torch.maximum, [story[i] for story in stories]) if t is None else t
                for i, t in enumerate(tails, start=1)
            ]
            # solvers stop, and the stories are rounded, at (64 eps)^2 of the energy
            lower = self._lower(splits, known, 64 * torch.finfo(self.values.dtype).eps, TOLERANCE)
            if bool((error <= CLOSE_ENOUGH**2 * lower)[asked].all()):
                sums = iter(self.sums([t for t in tails if t is not None]))
                return lower, [None if t is None else next(sums) for t in tails]
        slack, double = 4 * torch.finfo(torch.float64).eps, torch.promote_types(self.values.dtype, torch.float64)
        if self.values.numel() // self.count < LARGE and compiled.supports(self.values) and self.rank == 1:
            full = compiled.split_tails(self.values.to(double), splits)
            return self._lower(splits, full, slack), [*self.sums(full)]
        full = matrix_tails(self.values, splits, careful=False)  # goes to float64 strip by strip
        # differences of energies, each a long sum: their rounding is a share of the energy, not of the bound
        lower = (self._lower(splits, full, slack) - 16 * slack * self.norm).clamp_min(0)
        if bool((lower < CAREFUL_BELOW**2 * self.norm)[asked].any()):
            full = matrix_tails(self.values.to(double), splits, careful=True)
            lower = self._lower(splits, full, slack, TOLERANCE)
        return lower, [*self.sums(full)]

    def _lower(
        self, splits: Sequence[Split], tails: list[Float[torch.Tensor, "_ _"]], slack: float, tolerance: float = 0.0
    ) -> Float[torch.Tensor, " batch"]:
        """Squared tree bound, less what rounding and the tolerance of the solvers may have added to it."""
        found = self.outside + self.per_matrix(tree_bound(splits, tails))
        roots = (
            (sqrt(f) * (1 - tolerance) - slack * sqrt(n))
            for f, n in zip(found.tolist(), self.norm.tolist(), strict=True)
        )
        return torch.tensor([max(root, 0.0) ** 2 for root in roots], dtype=torch.float64, device=found.device)


def exponents_of(matrices: Num[torch.Tensor, "batch m n"]) -> Int[torch.Tensor, " batch"]:
    """Exponents of the largest entries; 0 within a comfortable range, where scaling would be a copy for nothing."""
    real = torch.view_as_real(matrices) if matrices.is_complex() else matrices
    # over everything is several times faster than along a dimension
    ends = real.aminmax() if len(real) == 1 else real.flatten(1).aminmax(dim=1)
    low, high = (x.reshape(-1).tolist() for x in ends)
    exponents = [frexp(max(-a, b))[1] for a, b in zip(low, high, strict=True)]
    return torch.tensor([e if abs(e) > 16 else 0 for e in exponents], device=matrices.device)


def scaled(values: Num[torch.Tensor, "batch ..."], exponents: Int[torch.Tensor, " batch"]) -> torch.Tensor:
    """values * 2**exponent matrix by matrix, exact, without a power that over- or underflows on the way."""
    if not bool(exponents.any()):
        return values
    half = exponents // 2
    for part in (half, exponents - half):
        power = torch.ldexp(torch.ones_like(part, dtype=torch.float64), part).to(values.real.dtype)
        values = values * power.reshape(-1, *(1,) * (values.ndim - 1))
    return values
