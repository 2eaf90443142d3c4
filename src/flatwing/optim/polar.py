"""Orthogonal factors of matrices by products of matrices only: iterations of odd polynomials on the singular values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float

Quintic = tuple[float, float, float]  # a, b, c of a x + b x^3 + c x^5
SMALLEST = 5e-4  # singular values below this share of the Frobenius norm are not resolved
MARGIN = 1.01  # rounding must not lift a singular value above what the polynomials are made for
ERROR = 0.02


def newton_schulz(
    matrix: Float[torch.Tensor, "m n"], coefficients: Quintic, steps: int, eps: float
) -> Float[torch.Tensor, "m n"]:
    """About U V^T of matrix = U S V^T, in bfloat16, bit for bit as `torch.optim.Muon` computes it.

    With Muon's coefficients singular values end between 0.68 and 1.14, and not at 1; those below 0.003 of the Frobenius
    norm end lower. Cost: `steps` times 3 products on the smaller side, in bfloat16. Source: Jordan (2024), Muon.

    >>> newton_schulz(torch.diag(torch.tensor([3.0, -1.0])), (3.4445, -4.775, 2.0315), 5, 1e-7).diagonal().sign()
    tensor([ 1., -1.], dtype=torch.bfloat16)
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.bfloat16, copy=True)  # a matrix that is bfloat16 already must not be scaled in place
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=eps))
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def polar(
    x: Float[torch.Tensor, "m n"], lower: float, upper: float, error: float = ERROR
) -> Float[torch.Tensor, "m n"]:
    """U V^T of x = U S V^T within `error` for singular values in [lower, upper]; those below end below 1 + `error`.

    Computed in x's dtype, float32 or wider: half precision does not carry polynomials this steep.
    Cost: 3 products on the smaller side per polynomial of `quintics`.

    >>> x = torch.diag(torch.tensor([1.0, -0.01, 0.0]))
    >>> polar(x, 5e-4, 1.0).diagonal().round(decimals=1) + 0.0
    tensor([ 1., -1.,  0.])
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for a, b, c in quintics(lower, upper, error):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@lru_cache(maxsize=64)
def quintics(lower: float, upper: float, error: float = ERROR) -> tuple[Quintic, ...]:
    """Odd quintics whose composition p is closest to 1 on [lower, upper], as many as max |1 - p| <= `error` needs.

    Each is the best there is on the interval that the one before it leaves, and compositions of best ones are best
    (Amsel et al., 2025, The Polar Express, theorem 3.1).

    >>> len(quintics(0.7, 1.2)), len(quintics(5e-4, 1.0))
    (1, 6)
    """
    found: list[Quintic] = []
    while 1 - lower > error or upper - 1 > error:
        best, distance = best_quintic(lower, upper)
        found.append(best)
        lower, upper = 1 - distance, 1 + distance
    return tuple(found)


def best_quintic(lower: float, upper: float) -> tuple[Quintic, float]:
    """The odd quintic p with the least max |1 - p| on [lower, upper], and that distance, by Remez' exchange.

    p - 1 reaches +-distance with alternating signs at four points: the ends, and where p' is 0 (Chebyshev).
    Raises `ValueError` unless 0 < lower < upper.

    >>> (a, b, c), distance = best_quintic(0.5, 1.5)
    >>> abs(1 - (a * 0.5 + b * 0.5**3 + c * 0.5**5)) - distance < 1e-12
    True
    """
    if not 0 < lower < upper < np.inf:
        raise ValueError(f"the interval is [{lower}, {upper}]. Rule: 0 < lower < upper. Take [0.0005, 1].")
    points = lower + (upper - lower) * np.array([0.0, 0.25, 0.75, 1.0])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    a = b = c = distance = 0.0
    for _ in range(50):
        a, b, c, distance = np.linalg.solve(np.stack([points, points**3, points**5, signs], 1), np.ones(4))
        turns = np.sqrt((-3 * b + np.array([-1, 1]) * np.sqrt(9 * b * b - 20 * a * c)) / (10 * c))
        moved = np.array([lower, *np.sort(turns), upper])
        if np.abs(moved - points).max() <= 1e-12 * upper:
            break
        points = moved
    return (float(a), float(b), float(c)), abs(float(distance))


@lru_cache(maxsize=16)
def span(coefficients: Quintic, steps: int) -> tuple[float, float]:
    """Least and largest value that `newton_schulz` makes of a singular value of 0.01 to 1, in exact arithmetic.

    >>> [round(value, 2) for value in span((3.4445, -4.775, 2.0315), 5)]
    [0.68, 1.13]
    """
    a, b, c = coefficients
    x = np.geomspace(1e-2, 1.0, 20_001)
    for _ in range(steps):
        x = a * x + b * x**3 + c * x**5
    return float(x.min()), float(x.max())
