"""Margins of linear classifiers: the widest one by the nearest point of a hull, and a proof of how wide any can be.

With z_i = y_i x_i the margin of a direction w is min_i <z_i, w> / |w|. Any point v of the convex hull of the z_i proves
that no direction has a margin above |v|, because <v, w> is a mean of the <z_i, w>. The point nearest to the origin
makes the two meet, so a direction and a point of the hull together are a solution and its certificate.

numpy, not torch: these loops are thousands of products with matrices of a few kilobytes, where the call is the cost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from typing_extensions import override

from ..core import as_matrix

Vector = Float[np.ndarray, " d"]
ZERO = 1e-12  # a point of the hull this short, in units of its longest, is the origin
PATIENCE = 20  # passes without progress after which rounding is taken to be in the way


class Soft(NamedTuple):
    """What the exponential loss L is at w: `log_loss` = log L, `low` = min <v, w> over the hull, `point` = -dL/L."""

    log_loss: float
    low: float
    point: Vector


class Hull(ABC):
    """The convex hull of vectors that a direction must all have on its positive side; `scale` bounds their norms."""

    dim: int
    scale: float

    @abstractmethod
    def hardest(self, w: Vector) -> tuple[float, Vector]:
        """min <v, w> over the hull, and a vertex v that reaches it."""

    @abstractmethod
    def soft(self, w: Vector) -> Soft:
        """The loss, computed as a log-sum-exp: L itself would leave the range of floats where w is long."""

    @abstractmethod
    def centre(self) -> Vector:
        """A point inside the hull."""


class Rows(Hull):
    """The hull of the rows z_i of `z`, (n, d); with `sides`, a label 0 or 1 per row, of the means of one row per side.

    Sides leave a free intercept out of the problem exactly: a direction then separates x . w of the two classes by
    twice its margin, wherever the threshold. In the exponential loss the best threshold has a closed form, too.

    >>> Rows(np.array([[1.0, 0.0], [2.0, 0.0]])).hardest(np.array([1.0, 0.0]))[0]
    1.0
    """

    def __init__(self, z: Float[np.ndarray, "n d"], sides: Int[np.ndarray, " n"] | None = None) -> None:
        self.dim = z.shape[1]
        self.scale = float(np.sqrt((z * z).sum(1).max()))
        self.parts = [z] if sides is None else [np.ascontiguousarray(z[sides == side]) for side in (0, 1)]

    @override
    def hardest(self, w: Vector) -> tuple[float, Vector]:
        value, vertex = 0.0, np.zeros(self.dim)
        for part in self.parts:
            scores = part @ w
            row = int(scores.argmin())
            value += float(scores[row])
            vertex += part[row]
        return value / len(self.parts), vertex / len(self.parts)

    @override
    def soft(self, w: Vector) -> Soft:
        log_loss, low, point = 0.0, 0.0, np.zeros(self.dim)
        for part in self.parts:
            scores = part @ w
            least = float(scores.min())
            share = np.exp(least - scores)
            total = float(share.sum())
            log_loss += log(total / len(part)) - least
            low += least
            point += (share @ part) / total
        sides = len(self.parts)
        return Soft(log_loss / sides, low / sides, point / sides)

    @override
    def centre(self) -> Vector:
        return np.mean([part.mean(0) for part in self.parts], axis=0)

    def threshold(self, w: Vector) -> float:
        """The intercept midway between the two sides; 0 without sides."""
        if len(self.parts) == 1:
            return 0.0
        zeros, ones = (float((part @ w).min()) for part in self.parts)
        return (zeros - ones) / 2


@dataclass(frozen=True)
class MaxMargin:
    """A direction `w` (d,) of norm 1, its `margin`, and a `bound` that no direction's margin exceeds.

    `bound` is the norm of a point of the hull, hence proved; `gap` = (bound - margin) / bound is at most how far, in
    shares of the best margin, `w` is from the best. Data that does not separate: margin <= 0, and bound is about 0.
    `iterations` counts passes over the data.
    """

    w: Vector
    margin: float
    bound: float
    iterations: int

    @property
    def gap(self) -> float:
        """(bound - margin) / bound."""
        return relative_gap(self.margin, self.bound)

    @property
    def separable(self) -> bool:
        """Whether `w` has every row on its positive side."""
        return self.margin > 0


def relative_gap(margin: float, bound: float) -> float:
    """(bound - margin) / bound: at most how far a margin is from the best one; inf where the bound allows none.

    >>> relative_gap(1.5, 2.0)
    0.25
    """
    return max(bound - margin, 0.0) / bound if bound > 0 else float("inf")


def as_rows(z: Float[np.ndarray, "n d"] | Hull) -> Hull:
    """The hull of a matrix of rows, checked; a hull as it is. Raises as `flatwing.core.as_matrix` does."""
    if isinstance(z, np.ndarray):
        return Rows(as_matrix(z, "z").double().numpy())
    return z


def margin(z: Float[np.ndarray, "n d"] | Hull, w: Vector) -> float:
    """min_i <z_i, w> / |w|, in the unit of the rows: positive when `w` separates. Raises `ValueError` for w = 0.

    >>> margin(np.array([[4.0, 0.0], [0.0, 2.0]]), np.array([1.0, 0.0]))
    0.0
    """
    norm = float(np.linalg.norm(w))
    if not (norm > 0 and np.isfinite(norm)):
        raise ValueError(f"w has norm {norm}. Rule: a direction, finite and not 0, such as the mean of the rows of z.")
    return as_rows(z).hardest(np.asarray(w, dtype=float) / norm)[0]


def dual_bound(z: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"]) -> float:
    """|sum_i a_i z_i| with a = weights / sum(weights): no direction has a margin above it, whatever the weights >= 0.

    Weak duality: the margin of w is at most the a-weighted mean of <z_i, w> / |w|, and Cauchy-Schwarz does the rest.
    Raises `ValueError` for weights that are negative or sum to 0.

    >>> dual_bound(np.array([[6.0, 0.0], [0.0, 8.0]]), np.array([1.0, 1.0]))
    5.0
    """
    total = float(weights.sum())
    if not (float(weights.min()) >= 0 and 0 < total < np.inf):
        raise ValueError(f"weights sum to {total}, the least is {weights.min()}. Rule: >= 0, finite, sum above 0.")
    return float(np.linalg.norm(weights @ z) / total)


def widest_margin(z: Float[np.ndarray, "n d"] | Hull, tol: float = 1e-12, max_iter: int = 100_000) -> MaxMargin:
    """The direction of the widest margin, by the point of the hull nearest to the origin.

    Wolfe's active set: it visits finitely many faces, each solved by least squares, so it ends at rounding error and
    not at a rate. Stops at a relative gap of `tol`, when rounding leaves no progress, or after `max_iter` passes.
    Cost: n d + k^3 per pass for k rows in the active set; passes are a small multiple of the number of support vectors.
    Raises `ValueError` for a z that is not a finite matrix. Source: Wolfe (1976), Finding the nearest point in a
    polytope; the dual reading is Gordan's theorem with numbers.

    >>> best = widest_margin(np.array([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(best.margin, 12), round(best.gap, 12), best.w.round(12).tolist()
    (2.4, 0.0, [0.8, 0.6])
    """
    hull = as_rows(z)
    rows = hull.hardest(hull.centre())[1][None]
    weights = np.ones(1)
    point = rows[0]
    best = MaxMargin(point, -np.inf, np.inf, 0)
    idle = 0
    for passes in range(1, max_iter + 1):
        norm = float(np.linalg.norm(point))
        if norm <= ZERO * hull.scale:  # the origin is in the hull: nothing separates
            return MaxMargin(best.w, best.margin, min(best.bound, norm), passes)
        value, vertex = hull.hardest(point / norm)
        better = value > best.margin
        idle = 0 if better or norm < best.bound else idle + 1
        w, value = (point / norm, value) if better else (best.w, best.margin)
        best = MaxMargin(w, value, min(best.bound, norm), passes)
        if best.gap <= tol or idle == PATIENCE or any(np.array_equal(vertex, row) for row in rows):
            return best
        rows, weights = _nearest(np.vstack([rows, vertex]), np.append(weights, 0.0))
        point = weights @ rows
    return best


def _nearest(
    rows: Float[np.ndarray, "k d"], weights: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " m"]]:
    """The rows and weights of the face on which the affine nearest point lies inside, walking from `weights`."""
    while True:
        target = _affine(rows)
        if target.min() > 0:
            return rows, target
        # walk from the weights towards the target until the first one vanishes, and drop that row
        falling = target <= 0
        steps = weights[falling] / np.maximum(weights[falling] - target[falling], 1e-300)
        weights = weights + min(1.0, steps.min()) * (target - weights)
        weights[np.flatnonzero(falling)[steps.argmin()]] = 0.0
        kept = weights > 0
        rows, weights = rows[kept], weights[kept] / weights[kept].sum()


def _affine(rows: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
    """Coefficients, sum 1, of the point nearest to the origin in the affine hull of the rows."""
    from scipy.linalg import qr, solve_triangular  # here, because importing it is slow

    weights = np.eye(1, len(rows))[0]
    if len(rows) == 1:
        return weights
    # QR of the edges, not normal equations: their condition number would be squared
    factors: Any = qr((rows[1:] - rows[0]).T, mode="economic", pivoting=True, check_finite=False)
    q, r, order = factors
    sizes = np.abs(np.diag(r))
    rank = int((sizes > 1e-14 * sizes[0]).sum())
    for _ in range(2):  # the second round refines the first, whose point may be small by cancellation
        step = np.zeros(len(rows) - 1)
        step[order[:rank]] = solve_triangular(r[:rank, :rank], -(q[:, :rank].T @ (weights @ rows)), check_finite=False)
        weights += np.append(-step.sum(), step)
    return weights
