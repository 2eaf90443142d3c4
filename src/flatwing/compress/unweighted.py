"""Fits in the Frobenius norm, for weights without data: as the weighted ones, at a fraction of the time and memory.

Where all inputs count alike, no n x n metric is needed: a Gram matrix of the smaller side replaces the SVD, and in the
alternation of BLAST the blocks of columns no longer see each other.
"""

from __future__ import annotations

from functools import cached_property
from math import sqrt
from typing import final

import torch
from jaxtyping import Float

from ..factorize import Blast, Metric, WeightedFit
from ..factorize.metric import solve
from ..structure import SparseProduct
from .candidates import Candidate

ENOUGH = 3e-4  # a round that lowers the squared error by a smaller share is the last one
NOISE = 0.01  # on the couplings of BLAST at the start: equal ones would stay equal
ROUNDS, FEWEST = 60, 10  # equal couplings are a saddle, which the first rounds leave slowly
EPS = torch.finfo(torch.float64).eps


@final
class Unweighted:
    """A matrix W (m, n) in float64, to be fitted by several structures; what they share is computed once.

    >>> matrix = Unweighted(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    >>> fit = matrix.fit(Candidate("low_rank", (2, 2), (1, 1), 1))
    >>> round(fit.error, 4), round(fit.lower_bound, 4)
    (0.4472, 0.4472)
    """

    def __init__(self, W: Float[torch.Tensor, "m n"]) -> None:
        self.W = W
        self.energy = float(W.square().sum())

    def fit(self, candidate: Candidate, seed: int = 0) -> WeightedFit:
        """The best fit that is known for this structure. Raises `ValueError` if W is zero.

        Cost: low rank m n min(m, n) once for all ranks, BLAST with rank r then 6 m n r per round.
        """
        if not self.energy > 0:
            raise ValueError("the matrix is zero. Rule: a matrix with entries other than 0; keep it as it is.")
        if candidate.family == "low_rank":
            left, right = self._low_rank(candidate.rank)
            factors = [left[None], right[None]]
            chain = candidate.chain
            assert chain is not None
            return self._fitted(SparseProduct(chain, factors), self._tail(self._values, candidate.rank))
        if candidate.family == "blast":
            blast = self._blast(candidate.blocks, candidate.rank, seed)
            return self._fitted(blast, self._blast_bound(candidate.blocks, candidate.rank))
        return candidate.fit(self.W, Metric.identity(self.W.shape[1]), seed=seed)

    def spectrum(self, count: int) -> list[float]:
        """Singular values relative to the largest, `count` of them at most, evenly spaced."""
        values = self._values.sqrt() / self._values[0].sqrt()
        picked = torch.linspace(0, len(values) - 1, min(count, len(values))).round().long()
        return [round(float(value), 6) for value in values[picked]]

    def error(self, dense: Float[torch.Tensor, "m n"]) -> float:
        """|W - W'| / |W|; overwrites `dense`."""
        return sqrt(float(dense.sub_(self.W).square_().sum()) / self.energy)

    def _fitted(self, structure: SparseProduct | Blast, bound: float) -> WeightedFit:
        error = self.error(structure.dense())
        return WeightedFit(structure, error, min(bound, error), error, (error,))

    @cached_property
    def _eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues, largest first, and eigenvectors, largest last, of W W^T or W^T W, whichever is smaller."""
        W = self.W if self.W.shape[0] <= self.W.shape[1] else self.W.mT
        values, vectors = torch.linalg.eigh(W @ W.mT)
        return values.flip(0).clamp_min(0), vectors

    @property
    def _values(self) -> torch.Tensor:
        return self._eigen[0]

    def _low_rank(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors (m, r) and (r, n) of the nearest matrix of rank r, of like size."""
        values, vectors = self._eigen
        level = values[:rank].sqrt().sqrt().clamp_min(EPS * float(values[0].sqrt().sqrt()))
        basis = vectors[:, -rank:].flip(1)  # only these are copied
        if self.W.shape[0] <= self.W.shape[1]:
            return basis * level, (basis.mT @ self.W) / level[:, None]
        return (self.W @ basis) / level, (basis * level).mT.contiguous()

    def _tail(self, values: torch.Tensor, rank: int) -> float:
        """Relative error that the values beyond `rank` force on a matrix, less what rounding may have added."""
        slack = values.shape[-1] ** 2 * EPS * float(values.max())
        return sqrt(max(float(values[..., rank:].sum()) - slack, 0.0) / self.energy)

    def _blast_bound(self, blocks: tuple[int, int], rank: int) -> float:
        """Rows of blocks have rank r at most, and so have columns of blocks."""
        bound = 0.0
        for W, count in ((self.W, blocks[0]), (self.W.mT, blocks[1])):
            parts = W.reshape(count, W.shape[0] // count, -1) if W.is_contiguous() else W.tensor_split(count)
            grams = torch.stack([p @ p.mT if p.shape[0] <= p.shape[1] else p.mT @ p for p in parts])
            values = torch.linalg.eigvalsh(grams).flip(-1).clamp_min(0)
            bound = max(bound, self._tail(values, rank))
        return bound

    def _blast(self, blocks: tuple[int, int], rank: int, seed: int) -> Blast:
        """Alternating least squares from the nearest matrix of rank r; block rows are independent given V, so one at a
        time is in memory, and given U the blocks of V are independent.
        """
        (A, B), (m, n) = blocks, self.W.shape
        left, right = self._low_rank(rank)
        U, V = left.reshape(A, m // A, rank), right.reshape(rank, B, n // B).transpose(0, 1).contiguous()
        noise = torch.Generator().manual_seed(seed)
        D = 1 + NOISE * torch.randn(A, B, rank, generator=noise, dtype=torch.float64)
        before = float("inf")
        for done in range(ROUNDS):
            gram = V @ V.mT  # (B, r, r)
            normal, wanted = torch.zeros_like(gram), torch.zeros_like(V)
            for a in range(A):
                W = (
                    self.W[a * (m // A) : (a + 1) * (m // A)].reshape(m // A, B, n // B).transpose(0, 1)
                )  # (B, m/A, n/B)
                seen = W @ V.mT  # (B, m/A, r)
                U[a] = _left(gram, D[a], seen)
                rhs = (U[a] * seen).sum(1)
                D[a] = solve(U[a].mT @ U[a] * gram, rhs[..., None])[..., 0]
                U[a] = _left(gram, D[a], seen)
                normal += D[a][:, :, None] * D[a][:, None, :] * (U[a].mT @ U[a])
                wanted += D[a][:, :, None] * (U[a].mT @ W)
            V = solve(normal, wanted)
            error = self.energy - float((V * wanted).sum())
            if done >= FEWEST and error >= (1 - ENOUGH) * before:
                break
            before = error
        return _balanced(U, D, V)


def _left(gram: torch.Tensor, D: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The best basis (m/A, r) of one row of blocks, for couplings D (B, r)."""
    normal = (D[:, :, None] * D[:, None, :] * gram).sum(0)
    return solve(normal, (seen * D[:, None, :]).sum(0).mT).mT


def _balanced(U: torch.Tensor, D: torch.Tensor, V: torch.Tensor) -> Blast:
    """The same matrix with the largest columns of U and rows of V of like size, and couplings up to 1."""
    u, d, v = U.norm(dim=1).amax(0), D.abs().amax(dim=(0, 1)), V.norm(dim=2).amax(0)
    u, d, v = (torch.where(x > 0, x, torch.ones_like(x)) for x in (u, d, v))
    level = (u * d * v).sqrt()
    return Blast(U * (level / u), D / d, V * (level / v)[:, None])
