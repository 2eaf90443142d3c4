"""Sparse factors that lose least on the data: minimise |(W - K_1 ... K_L) C^(1/2)| over the values of a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, final

import torch
from jaxtyping import Float

from ..core import as_matrix, threads_for
from ..structure import Chain, Pattern, SparseProduct
from ..structure.factor import embed, extract
from .compiled import attempt
from .metric import Metric, cholesky, solve

CG_STEPS = 12  # per factor and sweep; each one lowers the error, the next sweep goes on from there
ENOUGH = 1e-3  # a sweep that lowers the squared error by a smaller share ends the alternation


@final
@dataclass(frozen=True)
class WeightedFit:
    """An approximation of W that was fitted to data, and what is proved about it; errors are relative.

    `error` is |W - W'|_C / |W|_C, no product of this structure is below `lower_bound`, `unweighted_error` is the same
    in the Frobenius norm, `history` the error after each sweep: it never grows.
    """

    structure: Any
    error: float
    lower_bound: float
    unweighted_error: float
    history: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """error / lower_bound: the fit is within this factor of the best possible; infinite if nothing is known."""
        return self.error / self.lower_bound if self.lower_bound > 0 else (1.0 if self.error == 0 else inf)


def factorize_weighted(
    W: Any,
    chain: Chain,
    metric: Metric,
    *,
    sweeps: int = 6,
    progress: Callable[[int, int], None] | None = None,
) -> WeightedFit:
    r"""Fit the factors of a chainable `chain` to a real matrix W (m, n) in the norm of a `metric` of n inputs.

    First the part of C^{1/2} that the last factor can absorb (a block of C per column cluster) is moved into the matrix
    and the hierarchical algorithm cuts it. Where that part is all of C, as for low rank, this is optimal (Eckart-Young
    in the norm of C). Otherwise alternating least squares follows: for fixed other factors A, B the best K solves
    $A^T A K B C B^T = A^T W C B^T$ on its support, by conjugate gradients from the current K, preconditioned with the
    diagonal blocks. The error never grows. Computed in float64; factors are balanced between neighbours.

    Raises `ValueError` for sizes that differ, chains that are not chainable, and complex or non-finite W.
    Cost per sweep: about 12 L products of an m x n matrix with the inner sizes of the chain.

    >>> W, C = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0]))
    >>> fit = factorize_weighted(W, Chain.low_rank(2, 2, rank=1), Metric(C, damp=0.0))
    >>> round(fit.error, 4), round(fit.lower_bound, 4)  # the data make the small singular value the large one
    (0.5547, 0.5547)
    """
    W = real_matrix(W, metric)
    if tuple(W.shape) != chain.shape:
        raise ValueError(f"W is {W.shape[0]} x {W.shape[1]}, {chain} is {chain.shape}. Rule: equal sizes.")
    chain.require_chainable()
    total = metric.norm(W)
    with threads_for(max(max(p.b, p.c) for p in chain)):
        product = _absorbed(W, chain.reduced(), metric)
        error = metric.norm(W - product.dense())
        history = [error / total if total else 0.0]
        if chain.reduced()[-1].c < W.shape[1] and total:  # otherwise the cut was in the right norm already
            for sweep in range(sweeps):
                product = _swept(W, product, metric)
                before, error = error, metric.norm(W - product.dense())
                history.append(error / total)
                if progress is not None:
                    progress(sweep + 1, sweeps)
                if error**2 >= (1 - ENOUGH) * before**2:
                    break
        product = balanced(product, metric)
        bound = weighted_lower_bound(W, chain, metric) if total else 0.0
    product = product if product.chain == chain else product.expanded(chain)
    return fitted(W, product, product.dense(), metric, bound, history)


def fitted(
    W: torch.Tensor, structure: Any, dense: torch.Tensor, metric: Metric, bound: float, history: Sequence[float]
) -> WeightedFit:
    """The fit with its errors measured on what is returned; a bound that rounding lifted above the error is lowered."""
    total, frobenius = metric.norm(W), float(W.norm())
    error = metric.norm(W - dense) / total if total else 0.0
    unweighted = float((W - dense).norm()) / frobenius if frobenius else 0.0
    return WeightedFit(structure, error, min(bound, error), unweighted, tuple(history))


def real_matrix(W: Any, metric: Metric) -> Float[torch.Tensor, "m n"]:
    """W in float64; raises `ValueError` if it is complex or does not have as many columns as the metric."""
    matrix = as_matrix(W, "W")
    n = metric.covariance.shape[0]
    if matrix.is_complex() or matrix.shape[1] != n:
        raise ValueError(f"W is {tuple(matrix.shape)} {matrix.dtype}. Rule: real, one column for each of {n} inputs.")
    return matrix.double()


def weighted_lower_bound(W: Float[torch.Tensor, "m n"], chain: Chain, metric: Metric) -> float:
    """No product of the chain has a smaller relative error |W - W'|_C / |W|_C; exact for low rank.

    At each cut the rows fall into groups that use their own inner columns only, so every group of a product has a
    bounded rank; the groups are separate in this norm, and Eckart-Young bounds each. Cost: O(m^2 n) per cut.
    """
    best, whole = 0.0, W @ metric.root
    total = float(whole.square().sum())
    for s in range(1, len(chain)):
        left = chain[:s].pattern
        a, b, c, d = left
        groups = whole.reshape(a, b, d, -1).transpose(1, 2).reshape(a * d, b, -1)
        best = max(best, _tail(groups, c), _tail(whole[None], left.shape[1]))
    return sqrt(best / total) if total else 0.0


def _tail(groups: Float[torch.Tensor, "groups b n"], rank: int) -> float:
    """Energy of the matrices beyond their `rank` largest singular values."""
    if rank >= min(groups.shape[1:]):
        return 0.0
    values = torch.linalg.svdvals(groups)
    return float(values[:, rank:].square().sum())


def _absorbed(W: torch.Tensor, chain: Chain, metric: Metric) -> SparseProduct:
    """Cut W M, where M holds the blocks of C^(1/2) that the last factor can absorb, and divide that factor by M."""
    a, b, c, d = chain[-1]
    inner = Pattern(a, c, c, d)
    blocks = cholesky(extract(metric.covariance, inner))
    values = extract(W @ embed(blocks, inner), chain.pattern)
    factors, _, _ = attempt(values, chain.patterns, range(1, len(chain)))
    factors[-1] = torch.linalg.solve_triangular(blocks, factors[-1].reshape(a * d, b, c), upper=False, left=False)
    return SparseProduct(chain, [w.reshape(p.blocks, p.b, p.c) for w, p in zip(factors, chain, strict=True)])


def _swept(W: torch.Tensor, product: SparseProduct, metric: Metric) -> SparseProduct:
    """One pass of least squares over all factors, from the right end to the left one."""
    factors, chain = list(product.factors), product.chain
    lefts = [torch.eye(W.shape[0], dtype=W.dtype, device=W.device)]
    for p, w in zip(chain.patterns[:-1], factors[:-1], strict=True):
        lefts.append(lefts[-1] @ embed(w, p))
    right = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    target = W @ metric.covariance
    for i in range(len(factors) - 1, -1, -1):
        gram = right @ metric.covariance @ right.mT
        factors[i] = _least_squares(lefts[i], gram, lefts[i].mT @ target @ right.mT, chain[i], factors[i], i == 0)
        right = embed(factors[i], chain[i]) @ right
    return SparseProduct(chain, factors)


def _least_squares(
    left: torch.Tensor, gram: torch.Tensor, rhs: torch.Tensor, pattern: Pattern, start: torch.Tensor, first: bool
) -> torch.Tensor:
    """Lower the error over the values of one factor K: solve (left^T left) K gram = rhs on the support."""
    a, b, c, d = pattern
    g = extract(gram, Pattern(a, c, c, d))
    wanted = extract(rhs, pattern)
    if first:  # nothing stands to the left: every row is a problem of its own, solved exactly
        return solve(g, wanted.mT).mT
    normal = left.mT @ left
    n = extract(normal, Pattern(a, b, b, d))

    def apply(values: torch.Tensor) -> torch.Tensor:
        return extract(normal @ embed(values, pattern) @ gram, pattern)

    def precondition(values: torch.Tensor) -> torch.Tensor:
        return solve(g, solve(n, values).mT).mT

    return conjugate_gradients(apply, precondition, wanted, start)


def conjugate_gradients(
    apply: Callable[[torch.Tensor], torch.Tensor],
    precondition: Callable[[torch.Tensor], torch.Tensor],
    rhs: torch.Tensor,
    start: torch.Tensor,
    steps: int = CG_STEPS,
) -> torch.Tensor:
    """Improve `start` for apply(x) = rhs with a symmetric positive semidefinite `apply`; the quadratic never grows."""
    x, residual = start, rhs - apply(start)
    z = precondition(residual)
    direction, rho = z, (residual * z).sum()
    first = rho
    for _ in range(steps):
        if not rho > 1e-14 * first:  # converged (or the start was the solution)
            break
        image = apply(direction)
        curvature = (direction * image).sum()
        if not curvature > 0:
            break
        x = x + rho / curvature * direction
        residual = residual - rho / curvature * image
        z = precondition(residual)
        rho, before = (residual * z).sum(), rho
        direction = z + rho / before * direction
    return x


def balanced(product: SparseProduct, metric: Metric) -> SparseProduct:
    """The same product with |K_l e_j| equal to the size of what arrives at inner coordinate j: half precision keeps it.

    What arrives is measured in the metric at the last factor and in the Frobenius norm elsewhere.
    """
    factors, chain = list(product.factors), product.chain
    for i in range(len(factors) - 2, -1, -1):
        left, right = chain[i], chain[i + 1]
        columns = _spread(factors[i].norm(dim=-2), left.a, left.d)  # one number per inner coordinate
        if i == len(factors) - 2:
            last = embed(factors[-1], right)
            rows = ((last @ metric.covariance) * last).sum(-1).clamp_min(0).sqrt()
        else:
            rows = _spread(factors[i + 1].norm(dim=-1), right.a, right.d)
        scale = (rows / columns).sqrt()
        scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
        factors[i] = factors[i] * _gather(scale, left.a, left.c, left.d)[:, None, :]
        factors[i + 1] = factors[i + 1] / _gather(scale, right.a, right.b, right.d)[:, :, None]
    return SparseProduct(chain, factors)


def _spread(values: torch.Tensor, a: int, d: int) -> torch.Tensor:
    """Numbers per block and position, (a d, k), as one per coordinate (i, position, l)."""
    return values.reshape(a, d, -1).transpose(1, 2).reshape(-1)


def _gather(coordinates: torch.Tensor, a: int, k: int, d: int) -> torch.Tensor:
    """Inverse of `_spread`: (a d, k)."""
    return coordinates.reshape(a, k, d).transpose(1, 2).reshape(a * d, k)
