"""Whether factors run away while their product converges, from norms and residuals of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import final

import numpy as np

FEWEST = 6  # points of a fit
GROWN, SHRUNK = 1.4, 4.0  # factors of the norm and of the residual below which nothing can be told
# The law is 1/2: error eps^2 and norm 1/eps on a family that runs away. Descents approach it from either side. To
# matrices that are attained the norm grows, too, while they come near; then it stops, and the exponent of the later
# half of the points falls to 0.
LEAST, LEAST_LATE, MOST = 0.15, 0.2, 0.8
SURE = 0.15  # most of two standard errors: early in a run everything moves, and nothing is a power of anything


@final
@dataclass(frozen=True, slots=True)
class Growth:
    """How the norm of factors follows the residual: norm ~ residual^(-exponent), `exponent` +- 2 `stderr`.

    `norm` and `residual` are last over first; `points` entered the fit. `late` is the exponent of the later half of
    them alone. `diverging` is the verdict.
    """

    exponent: float
    stderr: float
    norm: float
    residual: float
    points: int
    late: float = 0.0

    @property
    def diverging(self) -> bool:
        """Whether the norm grew, the residual fell, and the exponent is near 1/2 and not near 0, as of bounded factors.

        The norm by 1.4, the residual to a quarter or less. Near is between 0.15 and 0.8, with two standard errors to
        spare below, which are at most 0.15; and at least 0.2 in the later half, so that the growth goes on.
        """
        told = self.points >= FEWEST and self.norm >= GROWN and self.residual * SHRUNK <= 1
        near = self.exponent - 2 * self.stderr >= LEAST and self.exponent <= MOST
        return told and near and 2 * self.stderr <= SURE and self.late >= LEAST_LATE

    def __str__(self) -> str:
        word = "runs away" if self.diverging else "does not run away" if self.points >= FEWEST else "too few points"
        return (
            f"{word}: norm ~ residual^-{self.exponent:.2f} +- {2 * self.stderr:.2g} ({self.points} points), "
            f"norm x {self.norm:.3g} while residual x {self.residual:.3g}"
        )


def diverging(norms: Sequence[float], residuals: Sequence[float]) -> Growth:
    """Fit norm ~ residual^(-exponent) to a run, by least squares of the logarithms.

    Args:
        norms: of all factors together, at some moments of the run, in order.
        residuals: distance of their product from its limit at these moments, or anything proportional to it, such as
            how far the product moves until twice the time.

    Residuals of 0 end what is looked at: there the product has arrived. Sparse factors whose supports are not closed
    approach a matrix that they do not reach only by running away, with exponent 1/2 on families of `wellposedness`.
    Raises `ValueError` for other lengths, norms that are not positive, residuals that are negative, NaN and Inf.

    >>> eps = 2.0 ** -np.arange(1, 9)
    >>> print(diverging(list(2.83 / eps), list(eps**2)))
    runs away: norm ~ residual^-0.50 +- ... (8 points), norm x 128 while residual x 6.1e-05
    >>> diverging([3.0] * 8, list(eps**2)).diverging
    False
    """
    sizes, rests = np.asarray(norms, dtype=float), np.asarray(residuals, dtype=float)
    if sizes.shape != rests.shape or sizes.ndim != 1:
        raise ValueError(f"{sizes.shape} norms and {rests.shape} residuals. Rule: two lists of one length.")
    if not (np.isfinite(sizes).all() and np.isfinite(rests).all() and (sizes > 0).all() and (rests >= 0).all()):
        raise ValueError("a norm or residual is negative, NaN or Inf, or a norm is 0. Rule: norms > 0, residuals >= 0.")
    arrived = np.flatnonzero(rests == 0)
    count = int(arrived[0]) if len(arrived) else len(rests)
    if count < 3:
        return Growth(0.0, inf, 1.0, 1.0, count)
    x, y = np.log(rests[:count]), np.log(sizes[:count])
    slope, spread = _slope(x, y)
    if spread == 0:
        return Growth(0.0, inf, float(np.exp(y[-1] - y[0])), 1.0, count)
    left = y - y.mean() - slope * (x - x.mean())
    stderr = float(np.sqrt(np.square(left).sum() / (count - 2) / spread))
    late = -_slope(x[count // 2 :], y[count // 2 :])[0]
    return Growth(-slope, stderr, float(np.exp(y[-1] - y[0])), float(np.exp(x[-1] - x[0])), count, late)


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the line through points, 0 where all are above each other, and the sum of squares that it rests on."""
    away = x - x.mean()
    spread = float(np.square(away).sum())
    return (float(away @ (y - y.mean())) / spread if spread else 0.0), spread
