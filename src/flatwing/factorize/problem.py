"""Problem: one matrix (or batch) and one irredundant chain, in the form that all algorithms of this room work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from math import frexp
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
from .solvers import TOLERANCE
from .story import Story

# Below this relative bound the shared Gram matrices of `matrix_tails` have lost digits that the bound needs.
CAREFUL_BELOW = 1e-3
# From this many entries on, a proof that the error is within 10 % of the best is good enough to stop looking.
LARGE, CLOSE_ENOUGH = 1 << 14, 1.1
# Largest entries from 2**-COMFORT to 2**COMFORT are left as they are.
COMFORT = 16


@final
@dataclass(frozen=True)
class Problem:
    """Values of the matrix on the support of the chain, times 2**-exponent so that its largest entry is near 1.

    A batch is a block-diagonal matrix: it multiplies `a` of every pattern, and sums over regions give one number per
    matrix. All energies are squared Frobenius norms, in float64 numbers of numpy.
    """

    chain: Chain
    batch: torch.Size
    values: Num[torch.Tensor, "blocks b c"]
    exponents: Int[np.ndarray, " batch"]
    norm: Float[np.ndarray, " batch"]
    outside: Float[np.ndarray, " batch"]

    @classmethod
    def of(cls, matrix: Num[torch.Tensor, "*batch m n"], chain: Chain) -> Problem:
        """Restrict a checked matrix to the support of a checked chain. Cost: a few passes over the matrix."""
        batch, pattern = matrix.shape[:-2], chain.pattern
        flat = matrix.reshape(-1, *chain.shape).contiguous()
        norm = squared_norms(flat)
        exponents = exponents_of(flat, norm)
        if any(exponents.tolist()):
            flat = scaled(flat, -exponents)
            norm = squared_norms(flat)
        if pattern.blocks == 1:
            outside, values = np.zeros(len(flat)), flat
        else:
            # part of every bound, so it gets the digits of float64 whatever the dtype
            rest = without_support(flat, pattern).to(torch.promote_types(flat.dtype, torch.float64))
            outside, values = squared_norms(rest), extract(flat, pattern)
            norm = squared_norms(values) + outside
        return cls(chain, batch, values.reshape(-1, pattern.b, pattern.c), exponents, norm, outside)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns of the chain with the batch inside `a`."""
        return _cuts(self.chain, self.count).patterns

    @cached_property
    def count(self) -> int:
        """Number of matrices in the batch."""
        return self.batch.numel()

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The cuts of the whole chain at 1, 2, ..."""
        return _cuts(self.chain, self.count).splits

    @property
    def rank(self) -> int:
        """The largest rank of a split."""
        return max((split.rank for split in self.splits), default=1)

    def per_matrix(self, regions: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, " batch"]:
        """Sum of region energies, one number per matrix of the batch."""
        return regions.reshape(self.count, -1).sum(1)

    def numbers(self, energies: Float[np.ndarray, " batch"]) -> list[float]:
        """The number of the whole batch, then those of its matrices; only the one of a single matrix."""
        each = energies.tolist()
        return each if self.count == 1 else [self.total(energies), *each]

    def each(self, energies: Float[np.ndarray, "splits batch"]) -> list[list[float]]:
        """`numbers` of every row."""
        return energies.tolist() if self.count == 1 else [*map(self.numbers, energies)]

    def total(self, energies: Float[np.ndarray, " batch"]) -> float:
        """Sum over matrices of the batch, in the unit of the largest of them: the exponents put back."""
        if self.count == 1:
            return float(energies[0])
        alive = self.exponents[self.norm > 0]
        if len(alive) == 0:
            return 0.0
        shift = np.minimum(self.exponents - alive.max(), 0)
        return float(np.ldexp(energies, 2 * shift).sum())

    def error(self, factors: Sequence[torch.Tensor]) -> Float[np.ndarray, " batch"]:
        """Squared error of a product, measured on its factors. Cost: O(m n r), the last product is never stored."""
        if len(factors) == 1:
            difference = (self.values - factors[0]).reshape(self.count, -1)
            return self.outside + squared_norms(difference)
        return self.outside + self.per_matrix(compiled.residual(self.values, self.patterns, factors).numpy(force=True))

    def bounds(
        self,
        error: Float[np.ndarray, " batch"],
        stories: Sequence[Story],
        asked: Bool[np.ndarray, " batch"],
    ) -> tuple[Float[np.ndarray, " batch"], Sequence[list[float] | None]]:
        """Squared lower bound (tree bound) on the error of any product, and `numbers` of the squared tails per split.

        `error` is what was achieved; only the matrices `asked` for need a bound. `stories` are squared errors of
        orthonormalized cuts, block by block, in the order in which they were made: the first one of a story is the tail
        of the matrix itself, the others exceed it by no more than rounding. A large matrix whose error is within
        `CLOSE_ENOUGH` of what the stories and its squarest split prove is examined no further: the tails that were not
        needed are None.
        """
        splits = self.splits
        if not splits:
            return self.outside, []
        entries, dtype = self.values.numel() // self.count, self.values.dtype
        if entries >= LARGE and stories and len(splits) > 1:
            told = [dict(zip(story.order, story, strict=True)) for story in stories]
            tails = {story.order[0]: errors[story.order[0]] for story, errors in zip(stories, told, strict=True)}
            squarest = _cuts(self.chain, self.count).squarest
            if squarest not in tails:
                tails[squarest] = tails_by_residual(self.values, splits[squarest - 1]).numpy(force=True)
            cuts = range(1, len(splits) + 1)
            known = Story.of({s: tails[s] if s in tails else reduce(np.maximum, (t[s] for t in told)) for s in cuts})
            # solvers stop, and the stories are rounded, at (64 eps)^2 of the energy
            lower = self._lower(known, 64 * torch.finfo(dtype).eps, TOLERANCE)
            if (error <= CLOSE_ENOUGH**2 * lower)[asked].all():
                return lower, [self.numbers(self.per_matrix(tails[s])) if s in tails else None for s in cuts]
        slack, double = 4 * torch.finfo(torch.float64).eps, torch.promote_types(dtype, torch.float64)
        if entries < LARGE and self.rank == 1 and compiled.supports(self.values):
            full = compiled.split_tails(self.values.to(double), splits)
            return self._lower(full, slack), self.each(full.sums(self.count))
        full = self._tails(splits, careful=False)
        # differences of energies, each a long sum: their rounding is a share of the energy, not of the bound
        lower = np.maximum(self._lower(full, slack) - 16 * slack * self.norm, 0)
        if (lower < CAREFUL_BELOW**2 * self.norm)[asked].any():
            full = self._tails(splits, careful=True)
            lower = self._lower(full, slack, TOLERANCE)
        return lower, self.each(full.sums(self.count))

    def _tails(self, splits: Sequence[Split], careful: bool) -> Story:
        """`matrix_tails` in float64, to which it goes strip by strip if it is not careful."""
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float64)) if careful else self.values
        return Story.of({s: t.numpy(force=True) for s, t in enumerate(matrix_tails(values, splits, careful), start=1)})

    def _lower(self, tails: Story, slack: float, tolerance: float = 0.0) -> Float[np.ndarray, " batch"]:
        """Squared tree bound, less what rounding and the tolerance of the solvers may have added to it."""
        found = self.outside + self.per_matrix(tree_bound(tails))
        return np.maximum(np.sqrt(found) * (1 - tolerance) - slack * np.sqrt(self.norm), 0) ** 2


@final
@dataclass(frozen=True, slots=True)
class _Cuts:
    """What depends on the chain and the number of matrices alone; `squarest` is the cut into the squarest blocks."""

    patterns: tuple[Pattern, ...]
    splits: tuple[Split, ...]
    squarest: int


@lru_cache(maxsize=256)
def _cuts(chain: Chain, count: int) -> _Cuts:
    patterns = chain.patterns if count == 1 else tuple(with_batch(p, count) for p in chain)
    splits = splits_of(patterns)
    sides = [min(split.block_shape) for split in splits]
    return _Cuts(patterns, splits, 1 + sides.index(max(sides)) if sides else 0)


def squared_norms(matrices: Num[torch.Tensor, "batch *shape"]) -> Float[np.ndarray, " batch"]:
    """Squared Frobenius norm of each matrix: rows are summed in its dtype, matrices in float64."""
    if compiled.supports(matrices):
        return compiled.squared_norms(matrices)
    real = torch.view_as_real(matrices).flatten(-2) if matrices.is_complex() else matrices
    rows = torch.linalg.vector_norm(real, dim=-1).numpy(force=True).reshape(len(matrices), -1).astype(np.float64)
    return np.einsum("ij,ij->i", rows, rows)


def exponents_of(
    matrices: Num[torch.Tensor, "batch m n"], norm: Float[np.ndarray, " batch"]
) -> Int[np.ndarray, " batch"]:
    """Exponents of the largest entries; 0 within a comfortable range, where scaling would be a copy for nothing.

    `norm` are the squared Frobenius norms: mostly they say already that the largest entries are in that range.
    """
    entries = matrices.shape[-2] * matrices.shape[-1]
    if all(entries * 2.0 ** (2 - 2 * COMFORT) < energy < 2.0 ** (2 * COMFORT - 2) for energy in norm.tolist()):
        return np.zeros(len(norm), np.int64)
    real = torch.view_as_real(matrices) if matrices.is_complex() else matrices
    # over everything is several times faster than along a dimension
    ends = real.aminmax() if len(real) == 1 else real.flatten(1).aminmax(dim=1)
    low, high = (x.reshape(-1).tolist() for x in ends)
    exponents = [frexp(max(-a, b))[1] for a, b in zip(low, high, strict=True)]
    return np.array([e if abs(e) > COMFORT else 0 for e in exponents])


def scaled(values: Num[torch.Tensor, "batch ..."], exponents: Int[np.ndarray, " batch"]) -> torch.Tensor:
    """values * 2**exponent matrix by matrix, exact, without a power that over- or underflows on the way."""
    if not any(exponents.tolist()):
        return values
    half = exponents // 2
    for part in (half, exponents - half):
        power = torch.from_numpy(np.ldexp(1.0, part)).to(values.device, values.real.dtype)
        values = values * power.reshape(-1, *(1,) * (values.ndim - 1))
    return values
