"""Certificate: what is proved about one factorization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float

from .compiled import TAILS
from .order import optimality_factor, peels_ends
from .problem import CAREFUL_BELOW, Problem
from .solvers import TOLERANCE
from .story import Story

# An error below this many roundings (times the square root of the number of factors) is no error at all.
ROUNDINGS = 64
BEST = 1 + 1e-6  # ratio up to which a product is called the best


@final
@dataclass(frozen=True, slots=True)
class Certificate:
    """Proved facts about one factorization of A, all relative to the Frobenius norm of A.

    * `error`: ||A - product|| as measured on the returned factors.
    * `lower_bound`: no product with this chain, in this order of rows and columns, whatever its values, has a smaller
      error.
    * `guarantee`: error bound for this order of cuts, from the tails of A (infinite where no theorem holds). Tails that
      the proof did not need are replaced by what the cuts or the error say about them, so it may be larger than it
      had to be; of an exact product it is factor * error.
    * `factor`: by the `theorem`, error <= factor * (best possible error) for any matrix.
    * `exact`: the error is rounding; a ratio would be meaningless, the lower bound is reported as 0.
    * `order`: of rows and columns; "given" by the caller, or "found" among others. Of an order that was found the
      bounds hold, too, but another order may allow less: the words say so.

    For a batch the norms are taken over the whole batch.
    """

    error: float
    lower_bound: float
    guarantee: float
    factor: float
    theorem: str
    exact: bool
    order: Literal["given", "found"] = "given"

    @property
    def ratio(self) -> float:
        """error / lower_bound, so the product is within this factor of the best; 1 if exact, infinite if unknown."""
        if self.exact:
            return 1.0
        return self.error / self.lower_bound if self.lower_bound > 0 else inf

    def __str__(self) -> str:
        if self.exact:
            return f"this product is exact to rounding: relative error {self.error:.1e}"
        if not isfinite(self.ratio):
            return f"relative error {self.error:.4g}; how good the best product of this shape is, is not known"
        there, here = (" in this order of rows and columns", " in this order") if self.order == "found" else ("", "")
        best = f"no product of this shape{here} can be below {self.lower_bound:.4g}"
        within = f"this product is the best any product of this shape can do{there}"
        if self.ratio > BEST:
            # rounded upwards: the sentence stays true
            within = f"this product is within {_ceil(self.ratio)}x of the best any product of this shape can do{there}"
        return f"{within}: relative error {self.error:.4g}, {best}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities become None."""
        numbers = {name: getattr(self, name) for name in ("error", "lower_bound", "ratio", "guarantee", "factor")}
        finite = {name: value if isfinite(value) else None for name, value in numbers.items()}
        words = {"theorem": self.theorem, "exact": self.exact, "order": self.order, "summary": str(self)}
        return {**finite, **words}


def rounding_level(dtype: torch.dtype, factors: int) -> float:
    """Relative error below which a product of that many factors in this dtype counts as exact."""
    return ROUNDINGS * torch.finfo(dtype).eps * sqrt(factors)


def prove(
    problem: Problem,
    error: Float[np.ndarray, " batch"],
    stories: Sequence[Story],
    order: Sequence[int],
    orthonormalize: bool,
) -> tuple[tuple[Certificate, ...], list[float | None]]:
    """The certificate of the whole batch, then one per matrix; and the relative tails of the matrix, split by split.

    `error` is the squared error that was achieved with the cuts in this order; `stories` are the squared errors of
    orthonormalized cuts of the same matrix, in the order in which they were made, the ones of `error` first; there are
    none without orthonormalization.
    """
    floor = rounding_level(problem.values.dtype, len(problem.chain))
    exact = is_rounding(problem, error)
    known: Sequence[list[float] | None] = [None] * (len(problem.chain) - 1)
    lower = np.zeros_like(error)
    if not exact.all():
        # nothing achieved can be below the optimum: where rounding says otherwise, rounding is wrong
        lower, known = problem.bounds(error, stories, ~exact)
        lower = np.where(exact, 0.0, np.minimum(lower, error))
    factor, theorem = optimality_factor(order, orthonormalize)
    eps, ends = torch.finfo(problem.values.dtype).eps, peels_ends(order)
    under = max(2 * TOLERANCE, TAILS[problem.values.dtype])  # by which share tails may be under-estimated

    norms, errors, outside, bounds = map(problem.numbers, (problem.norm, error, problem.outside, lower))
    ceilings = _ceilings(problem, stories) if None in known else []

    def certify(i: int) -> Certificate:
        norm, is_exact = norms[i], errors[i] <= floor**2 * norms[i]
        guarantee = factor * relative(errors[i], norm)
        if not is_exact and isfinite(factor):
            # a tail that nobody looked at is at most what was achieved; the others may be under-estimated a little
            parts = [
                min(errors[i] - outside[i], ceilings[place][i]) if t is None else t[i] * (1 + under)
                for place, t in enumerate(known, start=1)
            ]
            inside = sum(parts) if ends else sum(sqrt(max(part, 0.0)) for part in parts) ** 2
            guarantee = relative(outside[i] + inside, norm) + 8 * eps  # the factors are rounded, too
            if guarantee > CAREFUL_BELOW:  # so are the differences of energies that measured the tails
                guarantee = sqrt(guarantee**2 + 8 * torch.finfo(torch.float64).eps * len(known))
        # the norm that everything is relative to was summed in the dtype of the matrix
        least = 0.0 if is_exact else relative(bounds[i], norm) * (1 - 4 * eps)
        return Certificate(relative(errors[i], norm), least, guarantee, factor, theorem, is_exact)

    matrix_errors = [None if t is None else relative(outside[0] + t[0], norms[0]) for t in known]
    certificates = tuple(map(certify, range(len(norms))))
    return certificates * 2 if problem.count == 1 else certificates, matrix_errors


def is_rounding(problem: Problem, error: Float[np.ndarray, " batch"]) -> Bool[np.ndarray, " batch"]:
    """Whether the squared errors of the matrices of a batch are no more than rounding."""
    floor = rounding_level(problem.values.dtype, len(problem.chain))
    return error <= floor**2 * problem.norm


def _ceilings(problem: Problem, stories: Sequence[Story]) -> list[list[float]]:
    """Upper bounds on the squared tails of the matrix, one per place 0, 1, ...; infinite where nothing is known.

    While only ends are peeled off, the errors of the cuts add up, and after the cut at s the product so far is one of
    those that the tail at s compares the matrix with.
    """
    bounds = [[inf] * (problem.count + 1) for _ in problem.chain]
    for story in stories:
        if peels_ends(story.order):
            for s, errors in zip(story.order, story.sums(problem.count).cumsum(0), strict=True):
                bounds[s] = [*map(min, bounds[s], problem.numbers(errors))]
    return bounds


def relative(squared: float, norm: float) -> float:
    """Square root of the share of the squared norm; a zero matrix has no error."""
    return sqrt(max(squared, 0.0) / norm) if norm > 0 else 0.0


def _ceil(ratio: float) -> str:
    hundredths = int(ratio * 100)
    return f"{(hundredths + (hundredths < ratio * 100)) / 100:.2f}"
