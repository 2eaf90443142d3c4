"""Candidates: the structures a layer may get, each with a rank that its budget decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import final

import torch
from torch import nn

from ..core import Registry, nearest_divisor
from ..factorize import Blast, Metric, WeightedFit, factorize_weighted, fit_blast
from ..nn import BlastLinear, StructuredLinear
from ..structure import Chain, SparseProduct


@final
@dataclass(frozen=True)
class Candidate:
    """A structure for a layer of m outputs and n inputs: a family, its numbers of blocks and a rank."""

    family: str
    shape: tuple[int, int]
    blocks: tuple[int, int]
    rank: int

    def __str__(self) -> str:
        if self.blocks == (1, 1):
            return f"{self.family}(rank={self.rank})"
        blocks = str(self.blocks[0]) if self.blocks[0] == self.blocks[1] else str(self.blocks)
        return f"{self.family}(blocks={blocks}, rank={self.rank})"

    @property
    def chain(self) -> Chain | None:
        """The chain, None for structures that are no chain."""
        (m, n), (A, B) = self.shape, self.blocks
        match self.family:
            case "low_rank":
                return Chain.low_rank(m, n, self.rank)
            case "monarch":
                return Chain.monarch(m, n, (A, B), self.rank)
            case "three_factor":
                return Chain.from_radices(
                    (m // A, gcd(A, 2), A // gcd(A, 2)), (B // gcd(B, 2), gcd(B, 2), n // B), (self.rank,) * 2
                )
        return None

    @property
    def parameters(self) -> int:
        """Numbers that are stored, and half the number of operations per input vector."""
        chain = self.chain
        return self.rank * (sum(self.shape) + self.blocks[0] * self.blocks[1]) if chain is None else chain.nnz

    def fit(self, W: torch.Tensor, metric: Metric, effort: float = 1.0, seed: int = 0) -> WeightedFit:
        """Fit the structure to W in the norm of the metric; `effort` scales the number of sweeps."""
        if self.chain is not None:
            return factorize_weighted(W, self.chain, metric, sweeps=max(1, round(8 * effort)))
        return fit_blast(W, self.blocks, self.rank, metric, rounds=max(2, round(60 * effort)), seed=seed)

    def within(self, budget: float) -> Candidate | None:
        """The same structure with the largest rank that costs at most `budget` parameters; None if rank 1 does not."""
        low, high = 0, min(self.shape) + 1
        while high - low > 1:
            rank = (low + high) // 2
            low, high = (rank, high) if replace(self, rank=rank).parameters <= budget else (low, rank)
        return replace(self, rank=low) if low else None


def make_layer(fit: WeightedFit, bias: torch.Tensor | None, dtype: torch.dtype) -> nn.Module:
    """The layer of a fit, in the dtype of the layer it replaces."""
    bias = None if bias is None else bias.to(dtype)
    if isinstance(fit.structure, Blast):
        parts = (fit.structure.left, fit.structure.coupling, fit.structure.right)
        left, coupling, right = (part.to(dtype) for part in parts)
        return BlastLinear.from_factors(left, coupling, right, bias)
    assert isinstance(fit.structure, SparseProduct)
    return StructuredLinear.from_product(fit.structure.to(dtype), bias)


STRUCTURES: Registry[tuple[str, tuple[int, int]]] = Registry("structure")
"""Name -> family and wanted numbers of blocks; what does not divide a layer becomes the nearest divisor."""

for _name, _entry in {
    "low_rank": ("low_rank", (1, 1)),
    "monarch_1x2": ("monarch", (1, 2)),
    "monarch_2x2": ("monarch", (2, 2)),
    "monarch_4x4": ("monarch", (4, 4)),
    "three_factor": ("three_factor", (4, 4)),
    "blast_4": ("blast", (4, 4)),
    "blast_8": ("blast", (8, 8)),
}.items():
    STRUCTURES.register(_name)(_entry)


def candidate(name: str, m: int, n: int) -> Candidate:
    """The structure called `name` for an m x n layer, with rank 1; unknown names raise `ValueError`.

    >>> print(candidate("blast_8", 12, 64))  # 8 does not divide 12
    blast(blocks=(6, 8), rank=1)
    """
    family, (A, B) = STRUCTURES[name]
    return Candidate(family, (m, n), (nearest_divisor(m, A), nearest_divisor(n, B)), 1)
