"""BLAST: blocks that share their bases, W_ab = U_a diag(D_ab) V_b, fitted to data by alternating least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any, final

import torch
from jaxtyping import Float

from ..core import as_matrix, nearest_divisor, require_whole
from .metric import Metric, cholesky, solve
from .weighted import ENOUGH, WeightedFit, conjugate_gradients, fitted, real_matrix

EXACT = 1024  # largest system for the couplings that is solved exactly in each round
NOISE = 0.01  # standard deviation added to the couplings at the start: equal ones would stay equal


@final
@dataclass(frozen=True)
class Blast:
    """The matrix with blocks U_a diag(D_ab) V_b, for A x B blocks and r shared basis vectors.

    `left` holds U (A, m/A, r), `coupling` D (A, B, r), `right` V (B, r, n/B). Source: Lee et al., "BLAST: block-level
    adaptive structured matrices", 2024.

    >>> Blast(torch.ones(2, 1, 1), torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.ones(2, 1, 1)).dense()
    tensor([[1., 2.],
            [3., 4.]])
    """

    left: Float[torch.Tensor, "A rows r"]
    coupling: Float[torch.Tensor, "A B r"]
    right: Float[torch.Tensor, "B r columns"]

    def dense(self) -> Float[torch.Tensor, "m n"]:
        """The matrix itself. Cost: m n r."""
        mixed = self.coupling[..., None] * self.right  # (A, B, r, n/B)
        a, b, r, columns = mixed.shape
        rows = self.left @ mixed.transpose(1, 2).reshape(a, r, b * columns)
        return rows.reshape(-1, b * columns)

    @property
    def nnz(self) -> int:
        """Number of parameters, r (m + n + A B)."""
        return self.left.numel() + self.coupling.numel() + self.right.numel()


def fit_blast(
    W: Any,
    blocks: tuple[int, int],
    rank: int,
    metric: Metric | None = None,
    *,
    rounds: int = 30,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> WeightedFit:
    """Fit a `Blast` of `blocks` = (A, B) and `rank` r to a real W (m, n) in the norm of a `metric` (default Frobenius).

    Starts from the best matrix of rank r, then solves for U, D and V in turn, each exactly; the error never grows.
    The lower bound comes from the block rows, each of rank r. Raises `ValueError` for blocks that do not divide the
    sizes or a rank below 1. Cost per round: m n (n + r) + A (B r)^3 / 3.

    >>> fit = fit_blast(torch.kron(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2)), blocks=(2, 2), rank=1)
    >>> fit.error < 1e-6, fit.structure.nnz
    (True, 12)
    """
    metric = Metric.identity(as_matrix(W, "W").shape[1]) if metric is None else metric
    W = real_matrix(W, metric)
    for size, count, name in ((W.shape[0], blocks[0], "rows"), (W.shape[1], blocks[1], "columns")):
        if count < 1 or size % count:
            near = nearest_divisor(size, count)
            raise ValueError(f"{count} blocks do not divide {size} {name}. Rule: a divisor; the nearest is {near}.")
    rank = require_whole("rank", rank, advice="With a smaller budget choose fewer blocks or low rank.")
    total = metric.norm(W)
    work = _Alternation(W, metric, blocks, min(rank, *W.shape), seed)
    history = [work.error()]
    for done in range(rounds if total else 0):
        work.round()
        history.append(work.error())
        if progress is not None:
            progress(done + 1, rounds)
        if history[-1] ** 2 >= (1 - ENOUGH) * history[-2] ** 2:
            break
    blast = work.balanced()
    bound = _lower_bound(W, metric, blocks[0], blast.left.shape[-1]) if total else 0.0
    return fitted(W, blast, blast.dense(), metric, bound, [error / (total or 1.0) for error in history])


def _lower_bound(W: torch.Tensor, metric: Metric, groups: int, rank: int) -> float:
    values = torch.linalg.svdvals((W @ metric.root).reshape(groups, W.shape[0] // groups, -1))
    return sqrt(float(values[:, rank:].square().sum() / values.square().sum()))


def _divided(size: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x / size


class _Alternation:
    """The three least-squares problems; P = W C, and M[b k, b' l] = V_b C_bb' V_b'^T is kept up to date."""

    def __init__(self, W: torch.Tensor, metric: Metric, blocks: tuple[int, int], rank: int, seed: int) -> None:
        A, B = blocks
        m, n = W.shape
        self.W, self.metric, self.shape = W, metric, (A, B, rank)
        self.P = (W @ metric.covariance).reshape(A, m // A, n)
        self.C = metric.covariance.reshape(B, n // B, B, n // B)
        self.roots = cholesky(self.C.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous())
        u, s, v = torch.linalg.svd(W @ metric.root, full_matrices=False)
        right = torch.linalg.solve_triangular(metric.root, s[:rank, None] * v[:rank], upper=False, left=False)
        self.U = u[:, :rank].reshape(A, m // A, rank)
        self.V = right.reshape(rank, B, n // B).transpose(0, 1).contiguous()
        noise = torch.Generator().manual_seed(seed)
        self.D = 1 + NOISE * torch.randn(A, B, rank, generator=noise, dtype=W.dtype).to(W.device)

    def round(self) -> None:
        A, B, r = self.shape
        V_C = torch.einsum("brp,bpcq->brcq", self.V, self.C)
        M = torch.einsum("brcq,csq->brcs", V_C, self.V)  # (B, r, B, r)
        split = self.P.unflatten(-1, (B, -1))  # (A, rows, B, n/B)
        PV = torch.einsum("aibp,bkp->aibk", split, self.V)
        self._solve_left(M, PV)
        gram = self.U.mT @ self.U  # (A, r, r)
        rhs = torch.einsum("aik,aibk->abk", self.U, PV).reshape(A, B * r)
        self.D = self._couplings(gram, M.reshape(B * r, B * r), rhs).reshape(A, B, r)
        self._solve_left(M, PV)
        self._solve_right()

    def _couplings(self, gram: torch.Tensor, M: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
        """D_a solves ((U_a^T U_a) o M) D_a = rhs_a; large systems are improved by conjugate gradients only."""
        A, B, r = self.shape
        if B * r <= EXACT:
            return solve((gram[:, None, :, None, :] * M.reshape(B, r, B, r)).reshape(A, B * r, B * r), rhs[..., None])
        rows = []
        for a in range(A):
            normal = gram[a].repeat(B, B) * M
            size = normal.diagonal().clamp_min(1e-300)
            start = self.D[a].reshape(B * r)
            rows.append(conjugate_gradients(partial(torch.mv, normal), partial(_divided, size), rhs[a], start))
        return torch.stack(rows)

    def _solve_left(self, M: torch.Tensor, PV: torch.Tensor) -> None:
        A, B, r = self.shape
        D = self.D.reshape(A, B * r)
        weighted = D[:, :, None] * M.reshape(B * r, B * r) * D[:, None, :]
        normal = weighted.reshape(A, B, r, B, r).sum((1, 3))
        rhs = torch.einsum("aibk,abk->aik", PV, self.D)
        self.U = solve(normal, rhs.mT).mT

    def _solve_right(self) -> None:
        """One V_b after the other, for all n inputs couple them; S_bc = sum_a (D_ab D_ac^T) o (U_a^T U_a)."""
        A, B, r = self.shape
        gram = self.U.mT @ self.U
        outer = self.D.reshape(A, B * r, 1) * self.D.reshape(A, 1, B * r)
        S = (outer.reshape(A, B, r, B, r) * gram.reshape(A, 1, r, 1, r)).sum(0)  # (B, r, B, r)
        wanted = torch.einsum("abk,akbp->bkp", self.D, (self.U.mT @ self.P).unflatten(-1, (B, -1)))
        own = S.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        roots = cholesky(
            own + 1e-12 * torch.diag_embed(own.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).expand(B, r))
        )
        for b in range(B):
            arriving = (self.V @ self.C[:, :, b]).reshape(B * r, -1)
            others = S[b].reshape(r, B * r) @ arriving - own[b] @ arriving[b * r : (b + 1) * r]
            left = torch.cholesky_solve(wanted[b] - others, roots[b])
            self.V[b] = torch.cholesky_solve(left.mT, self.roots[b]).mT

    def error(self) -> float:
        return self.metric.norm(self.W - Blast(self.U, self.D, self.V).dense())

    def balanced(self) -> Blast:
        """The same matrix with U_a, D_ab and V_b of like size for each basis vector."""
        u, d = self.U.norm(dim=1), self.D.abs().amax(dim=(0, 1))  # (A, r), (r,)
        v = torch.einsum("brp,bpq,brq->br", self.V, self.C.diagonal(dim1=0, dim2=2).movedim(-1, 0), self.V)
        u, d, v = (torch.where(x > 0, x, torch.ones_like(x)) for x in (u.amax(0), d, v.clamp_min(0).sqrt().amax(0)))
        level = (u * d * v).sqrt()  # of U and of V; the couplings stay near 1
        return Blast(self.U * (level / u), self.D / d, self.V * (level / v)[:, None])
