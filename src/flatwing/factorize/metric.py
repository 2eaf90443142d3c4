"""Metric: how much an error in each direction of the input matters, from the second moments of the data."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float

from ..core import as_matrix, require_number


@final
class Metric:
    """The norm |E|_C = sqrt(tr(E C E^T)) of an error E = W - W', for inputs with second moments C = E[x x^T].

    `covariance` is (n, n), symmetric positive semidefinite; `damp` times its mean diagonal is added to the diagonal, so
    that directions no sample showed still cost something. `root` is the lower triangular L with L L^T = C. All float64.

    Raises `ValueError` for a matrix that is not real, square, symmetric, finite or positive, or a negative `damp`.

    >>> metric = Metric(torch.diag(torch.tensor([4.0, 1.0])), damp=0.0)
    >>> round(metric.norm(torch.eye(2)) ** 2, 6)
    5.0
    """

    def __init__(self, covariance: Float[torch.Tensor, "n n"], damp: float = 1e-3) -> None:
        matrix = as_matrix(covariance, "covariance")
        if matrix.is_complex():
            raise ValueError("covariance is complex. Rule: real second moments; factorize complex matrices unweighted.")
        matrix = matrix.double()
        n = matrix.shape[0]
        if matrix.shape != (n, n):
            raise ValueError(f"covariance has shape {tuple(matrix.shape)}. Rule: square, (n, n) for n inputs.")
        require_number("damp", damp, 0, good=1e-3)
        scale = float(matrix.diagonal().mean())
        if bool((matrix.diagonal() < 0).any()):
            raise ValueError("covariance has a negative diagonal, so it is not positive semidefinite. Rule: E[x x^T].")
        if not scale > 0:
            raise ValueError("covariance has trace 0: every input was zero. Rule: calibrate with inputs that vary.")
        if float((matrix - matrix.mT).abs().max()) > 1e-5 * float(matrix.abs().max()):
            raise ValueError("covariance is not symmetric. Rule: C = E[x x^T]; write (C + C.T) / 2.")
        self.damp = damp
        self.covariance = (matrix + matrix.mT) / 2
        self.covariance.diagonal().add_(damp * scale)
        self.root = cholesky(self.covariance)

    @classmethod
    def identity(cls, n: int, device: torch.device | str | None = None) -> Metric:
        """All inputs alike: the Frobenius norm."""
        return cls(torch.eye(n, dtype=torch.float64, device=device), damp=0.0)

    def norm(self, error: Float[torch.Tensor, "m n"]) -> float:
        """|E|_C. Cost: m n^2."""
        error = error.double()
        return float(((error @ self.covariance) * error).sum().clamp_min(0).sqrt())


def cholesky(matrix: Float[torch.Tensor, "*batch n n"]) -> Float[torch.Tensor, "*batch n n"]:
    """Cholesky factors; where rounding left none, of the matrix with a ridge of at most 1e-4 of its size."""
    size = matrix.diagonal(dim1=-2, dim2=-1).abs().mean(-1, keepdim=True)
    for ridge in (0.0, *(10.0**-k for k in range(14, 3, -1))):
        shifted = matrix if not ridge else matrix + torch.diag_embed((ridge * size).expand(matrix.shape[:-1]))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed.any():
            return factor
    raise ValueError("a second-moment matrix is not positive semidefinite. Rule: C = E[x x^T] of finite inputs.")


def solve(matrix: Float[torch.Tensor, "*batch n n"], rhs: Float[torch.Tensor, "*batch n k"]) -> torch.Tensor:
    """matrix^-1 rhs for symmetric positive semidefinite matrices; a ridge near rounding keeps singular ones finite."""
    size = matrix.diagonal(dim1=-2, dim2=-1).abs().mean(-1, keepdim=True)
    ridge = (1e-12 * size + 1e-300).expand(matrix.shape[:-1])
    return torch.cholesky_solve(rhs, cholesky(matrix + torch.diag_embed(ridge)))
