"""Two factors on fixed supports: the optimum where it is known in closed form, descent and a bound where it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Num

from ..core import as_matrix, require_whole
from ..structure import MaskedProduct, Support, Tractability, tractability, wellposedness
from ..structure.support import as_supports, product_support
from ..structure.tractable import two_supports
from .certificate import BEST, Certificate, relative, rounding_level
from .descent import descend
from .factorization import Factorization
from .rectangles import lost_energy, rectangle_bound

EXISTENCE = {
    "closed": "a best product exists for every matrix (closed)",
    "not closed": "a best product need not exist (not closed): for some matrices the error falls for ever while the "
    "factors grow; wellposedness(supports) shows one",
    "undecided": "whether a best product exists for every matrix is not known (undecided); where the error falls for "
    "ever while the factors grow, there is none",
}
ELSEWHERE = {
    "closed": EXISTENCE["closed"],
    "not closed": "no product is better for this matrix; for some matrices a best product does not exist (not closed): "
    "wellposedness(supports) shows one",
    "undecided": "no product is better for this matrix; whether a best product exists for every other is not known "
    "(undecided)",
}
"""What is said instead where the error is as small as the lower bound: no more than that, for rounding may hide that
factors run away."""
THEOREMS = {
    1: "optimal: rank-one supports disjoint or equal (Le, Riccietti, Gribonval 2023, Theorem 1)",
    2: "optimal: disjoint rectangular remainders (Le, Riccietti, Gribonval 2023, Theorem 2)",
    0: "no theorem: the lower bound is of disjoint rectangles",
}


def factorize_fixed(
    A: Any,
    supports: Sequence[Any],
    *,
    starts: int = 20,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Factorization[MaskedProduct]:
    """Approximate A (m, n) by X @ Y with supp X in S1 (m, r) and supp Y in S2 (r, n), and prove how good that is.

    Args:
        A: torch tensor or numpy array, real or complex; computed in double precision, returned in its own, float16 and
            bfloat16 in float32.
        supports: S1 and S2, boolean arrays or `Support`s in the order of the product.
        starts: where the supports are not tractable, so many descents from random values; the best one is returned.
        seed: of the random values.
        progress: called as progress(what, done, total).

    Where `tractability(S1, S2)` holds the result is optimal and the certificate says so: ratio 1. Elsewhere the problem
    is NP-hard, the certificate's `lower_bound` is rigorous, and the result is within `ratio` of optimal; the infimum
    may then not be attained at all: the notes say what `wellposedness` knows about that. Raises `ValueError` for
    supports that do not multiply or do not fit A, NaN or Inf, numbers that are not whole, `TypeError` for masks that
    are not boolean. Cost: one SVD per class of rank-one supports, or `starts` descents of 300 steps.
    Source: Le, Riccietti, Gribonval, "Spurious valleys, NP-hardness, and tractability of sparse matrix factorization
    with fixed support", SIAM J. Matrix Anal. Appl. 44(2), 2023; (I, J) -> supports, J transposed.

    >>> A = torch.arange(6.0).reshape(2, 3)
    >>> result = factorize_fixed(A, [torch.ones(2, 1) > 0, torch.ones(1, 3) > 0])
    >>> round(result.certificate.error, 3), round(result.certificate.ratio, 6)
    (0.135, 1.0)
    """
    left, right = _two(supports)
    matrix = as_matrix(A)
    shape = (left.shape[0], right.shape[1])
    if tuple(matrix.shape) != shape:
        m, n = matrix.shape
        raise ValueError(
            f"A is {m} x {n}, a product on supports {left.shape} and {right.shape} is {shape[0]} x {shape[1]}. "
            f"Rule: equal sizes; the supports are (m, r) and (r, n). Give supports ({m}, r) and (r, {n})."
        )
    starts, seed = require_whole("starts", starts, good=20), require_whole("seed", seed, least=0)
    wide = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    scale = float(wide.abs().max()) or 1.0  # squares of large or tiny entries would leave the range of numbers
    wide = wide / scale
    verdict = tractability(left, right)
    outside = _energy(wide[~torch.from_numpy(verdict.reachable).to(wide.device)])
    notes: tuple[str, ...] = ()
    if verdict.tractable:
        X, Y, (least, most) = solve_tractable(wide, verdict, left.shape[1])
        bounds = outside + least, outside + most
    else:
        X, Y, notes = descend(wide, (left, right), starts, seed, progress)
        bounds = rectangle_bound(wide, verdict), np.inf
    balanced = (X * scale**0.5).to(matrix.dtype), (Y * scale**0.5).to(matrix.dtype)
    product = MaskedProduct([left, right], balanced)
    certificate = certify(matrix, product, bounds, THEOREMS[verdict.theorem])
    notes = (*notes, str(verdict), *half_note(A))
    if not verdict.tractable:
        found = certificate.ratio <= BEST
        notes = (*notes, (ELSEWHERE if found else EXISTENCE)[wellposedness(left, right).status])
    return Factorization(product, certificate, (), (), "none", notes, (certificate,))


def _two(supports: Sequence[Any]) -> tuple[Support, Support]:
    found = as_supports(supports)
    if len(found) > 2:
        raise ValueError(
            f"got {len(found)} supports. Rule: two, of shapes (m, r) and (r, n), for which there are theorems and "
            "bounds. For more: palm(A, supports), as `flatwing factorize --support` does."
        )
    return two_supports(found)


def solve_tractable(
    A: Num[torch.Tensor, "m n"], verdict: Tractability, r: int
) -> tuple[Num[torch.Tensor, "m r"], Num[torch.Tensor, "r n"], tuple[float, float]]:
    """The optimal X and Y for tractable supports with r columns, and what they lose of the reachable entries.

    The loss, squared, is given as what it is at least, and at most: singular values are rounded. Each class that is not
    complete gets the truncated SVD of A on its remainder; what then is missing where complete classes are is theirs to
    hold, each entry by one of them.
    """
    X, Y = A.new_zeros(A.shape[0], r), A.new_zeros(r, A.shape[1])
    least = most = 0.0
    for one in verdict.classes:
        if one.complete or not one.remainder.any():
            continue
        rows, columns = (torch.from_numpy(side).to(A.device) for side in (one.left_rows, one.left_columns))
        U, sigma, Vh = torch.linalg.svd(A[rows[:, None], columns], full_matrices=False)
        rank = min(len(one.members), len(sigma))
        members = torch.from_numpy(one.members[:rank]).to(A.device)
        root = sigma[:rank].sqrt()
        X[rows[:, None], members] = U[:, :rank] * root
        Y[members[:, None], columns] = root[:, None] * Vh[:rank]
        lost = lost_energy(sigma.numpy(force=True), rank)
        least, most = least + lost[0], most + lost[1]
    free = torch.from_numpy(verdict.covered).to(A.device)
    rest = torch.where(free, A - X @ Y, 0)
    for one in verdict.classes:
        if not one.complete:
            continue
        rows, columns, members = (torch.from_numpy(k).to(A.device) for k in (one.rows, one.columns, one.members))
        here = (rows[:, None], columns)
        held, rest[here] = rest[here].clone(), 0
        if len(rows) <= len(columns):
            members = members[: len(rows)]
            X[rows, members] = 1
            Y[members[:, None], columns] = held
        else:
            members = members[: len(columns)]
            X[rows[:, None], members] = held
            Y[members, columns] = 1
    return X, Y, (least, most)


def cut_bound(A: Num[torch.Tensor, "m n"], supports: Sequence[Support]) -> float:
    """A number that ||A - product||^2 is at least, for any number of factors on these supports.

    Cut between any two factors, such a product is one of two factors on the supports of what they multiply to: the best
    of the bounds of all cuts. Raises `ValueError` where every product is zero. Cost: as `rectangle_bound`, per cut.
    """
    try:
        whole = product_support(supports)
        lefts, rights = (list(accumulate(side, join)) for side, join in _sides(supports))
        verdicts = [tractability(left, right) for left, right in zip(lefts, reversed(rights), strict=True)]
    except ValueError as error:
        raise ValueError(f"the product of these supports is zero everywhere: {error}") from error
    bounds = [_energy(A[~whole.mask.to(A.device)])]
    for verdict in verdicts:
        outside = _energy(A[~torch.from_numpy(verdict.reachable).to(A.device)])
        members = 1 + max(int(one.members.max()) for one in verdict.classes)
        bounds.append(outside + solve_tractable(A, verdict, members)[2][0] if verdict else rectangle_bound(A, verdict))
    return max(bounds)


def _sides(supports: Sequence[Support]) -> Iterator[tuple[Sequence[Support], Callable[[Support, Support], Support]]]:
    yield supports[:-1], lambda done, one: done @ one
    yield supports[:0:-1], lambda done, one: one @ done


def certify(
    A: Num[torch.Tensor, "m n"], product: MaskedProduct, bounds: tuple[float, float], theorem: str
) -> Certificate:
    """The certificate of a product of A, given what the squared error of the best one on its supports is at least.

    The second of the bounds is what it is at most, if this product is known to be the best, else infinite. They are
    for A divided by its largest absolute entry: squares of others may be out of range.
    """
    wide = torch.complex128 if A.is_complex() else torch.float64
    target, factors = A.to(wide), [factor.to(wide) for factor in product.factors]
    scale = float(target.abs().max()) or 1.0
    target = target / scale
    achieved = factors[0]
    for factor in factors[1:]:
        achieved = achieved @ factor
    squared, norm = _energy(target - achieved / scale), _energy(target)
    error = relative(squared, norm)
    exact = error <= rounding_level(A.dtype, len(factors))
    eps = torch.finfo(torch.float64).eps
    # nothing achieved is below the optimum; and the bound was itself rounded
    lower = 0.0 if exact else min(relative(bounds[0], norm) * (1 - 64 * eps), error)
    optimal = bounds[1] < np.inf
    guarantee = relative(bounds[1], norm) * (1 + 64 * eps) + rounding_level(A.dtype, len(factors))
    return Certificate(error, lower, guarantee if optimal else np.inf, 1.0 if optimal else np.inf, theorem, exact)


def half_note(A: Any) -> tuple[str, ...]:
    """What to tell who gives a matrix of 16 bits: what `factorize` does with it, too."""
    name = str(getattr(A, "dtype", None)).removeprefix("torch.")
    return (f"{name} input: computed in float64, factors in float32",) if name in ("float16", "bfloat16") else ()


def _energy(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values).square())
