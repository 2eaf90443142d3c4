"""PALM: any number of sparse factors by proximal steps, one factor after another; what FAuST users call palm4MSA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Num

from ..core import as_matrix, require_number, require_whole
from ..structure import MaskedProduct, Support
from .certificate import rounding_level
from .descent import polish, random_factor
from .factorization import Factorization
from .fixed import certify, cut_bound, half_note
from .projections import Projection, projections_of

DIRECTIONS = ("r2l", "l2r")
SMALL = 16  # side up to which the spectral norm is computed; beyond, power iteration costs less
# Steps of power iteration at first, and from where the last sweep ended; and the share that they may have missed.
POWERS, MARGIN = (20, 2), 0.02
NOISE = 4 * torch.finfo(torch.float64).eps  # relative errors that differ by less are the same
POLISH = 1000  # steps of L-BFGS at the end
WARM = 10  # sweeps before that where all supports are given: more took longer and did not end lower
THEOREM = "no guarantee: alternating steps end in a critical point; the lower bound is of the supports and sizes"

Matrix = Num[torch.Tensor, "_ _"]


def palm(
    A: Any,
    projections: Any,
    *,
    sizes: Sequence[int] | None = None,
    sweeps: int = 300,
    tolerance: float = 1e-7,
    direction: str = "r2l",
    starts: int = 1,
    seed: int = 0,
    polishing: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Factorization[MaskedProduct]:
    """Approximate A (m, n) by a product of any number of factors, each in the set of its projection. No guarantee.

    Args:
        A: torch tensor or numpy array, real or complex; computed in double precision, returned in its own, float16 and
            bfloat16 in float32.
        projections: one per factor, leftmost first: a text such as "splin(2)" (see `PROJECTIONS`), a boolean mask or
            whatever else `Support` takes, or a matrix that is kept (one of only zeros and ones is refused: it could be
            either); or one text for all, such as "spcol(2)*5".
        sizes: inner sizes of the product, one fewer than factors; default: what masks say, else the smaller of m and n.
        sweeps: at most so many updates of every factor; 10 where masks are given for all and `polishing` follows.
        tolerance: stop when a sweep lowers the error by no more than this share of it; at least 0.
        direction: "r2l" updates the rightmost factor first, "l2r" the leftmost.
        starts: the best of so many is returned. The first begins with a zero factor and identities, as FAuST does,
            unless a mask is given; the others, and all of them with masks, with random values.
        seed: of the random values.
        polishing: where projections only say how many entries there are, improve the values of the entries found by
            L-BFGS on all factors together.
        progress: called as progress(what, done, total).

    The supports of the result are where its factors are not zero, or the given masks. `certificate.lower_bound` follows
    from the sizes and masks alone; elsewhere than for masks it is mostly 0, and the ratio is then not known. Many
    factors at once mostly end in a bad critical point: a Hadamard matrix larger than 4 x 4 is found by `hierarchical`,
    not by this. Raises `ValueError` for shapes that do not multiply or fit, unknown projections, numbers that are not
    whole, NaN or Inf, `TypeError` for what is no matrix or projection. Cost of a sweep: about 8 dense products per
    factor, plus the projections.
    Source: Bolte, Sabach, Teboulle, "Proximal alternating linearized minimization", Math. Program. 146, 2014; Le
    Magoarou and Gribonval (2016), Algorithm 2; S_j -> factors, lambda -> their common scale.

    >>> H = torch.tensor([[1.0, 1], [1, -1]]).double()
    >>> result = palm(torch.kron(H, H), "splincol(2)*2")
    >>> result.certificate.exact, result.product.nnz
    (True, 16)
    """
    matrix = as_matrix(A)
    targets = projections_of(projections)
    shapes = factor_shapes(targets, sizes, (matrix.shape[0], matrix.shape[1]), matrix.dtype)
    sweeps, starts = require_whole("sweeps", sweeps, good=300), require_whole("starts", starts)
    seed = require_whole("seed", seed, least=0)
    tolerance = require_number("tolerance", tolerance, 0, good=1e-7)
    require_direction(direction)
    wide, scale = scaled(matrix)
    generator = np.random.default_rng(seed)
    masked = any(one.name == "supp" for one in targets)
    fixed = all(one.rule.fixed and one.rule.entries for one in targets)
    ends: list[State] = []
    for start in range(starts):
        random = generator if start or masked else None
        state = State(begin(wide, targets, shapes, direction, random), targets, direction)
        state.run(wide, min(sweeps, WARM) if fixed and polishing else sweeps, tolerance)
        if polishing:
            state.polish(wide)
        ends.append(state)
        if progress is not None:
            progress("starts", start + 1, starts)
        if state.error <= rounding_level(torch.float64, len(targets)):
            break
    best = min(ends, key=lambda state: state.error)
    notes = (f"best of {len(ends)} starts, {best.count} sweeps",)
    return finish(matrix, wide, scale, best, shapes, (*notes, *half_note(A)))


@final
@dataclass
class State:
    """Factors on their way: each of norm 1, their product times `scale` is the approximation."""

    factors: list[Matrix]
    targets: Sequence[Projection]
    direction: str = "r2l"
    scale: float = 1.0
    error: float = float("inf")
    """Relative error after the last sweep."""
    count: int = 0
    """Sweeps so far."""
    _tops: dict[tuple[int, bool], Matrix] = field(default_factory=dict)

    def run(self, A: Num[torch.Tensor, "m n"], sweeps: int, tolerance: float) -> None:
        """Sweep until nothing changes; ends with the best factors on the way."""
        best = (self.error, list(self.factors), self.scale)
        for _ in range(sweeps):
            before = self.error
            self.sweep(A)
            self.count += 1
            if self.error < best[0]:
                best = (self.error, list(self.factors), self.scale)
            if abs(before - self.error) <= tolerance * self.error + NOISE:
                break
        self.error, self.factors, self.scale = best

    def sweep(self, A: Num[torch.Tensor, "m n"]) -> None:
        """One step of every factor, then the best scale.

        With L and R what is left and right of factor S, the step is 1 / |scale L R|^2 down the slope of
        |A - scale L S R|^2 / 2, followed by the projection.
        """
        factors, last = self.factors, len(self.factors) - 1
        backwards = self.direction == "r2l"
        # what has not been updated yet is multiplied once, the other side grows with the sweep
        waiting = factors[:-1] if backwards else factors[:0:-1]
        ahead = list(accumulate(waiting, torch.matmul if backwards else lambda done, one: one @ done))
        behind: Matrix | None = None
        for k in range(last, -1, -1):
            j = k if backwards else last - k
            L, R = (ahead[k - 1] if k else None, behind) if backwards else (behind, ahead[k - 1] if k else None)
            rate = (self.scale * self._norm(L, j, True) * self._norm(R, j, False)) ** 2
            if rate > 0:
                rest = A.sub(reduce(torch.matmul, [M for M in (L, factors[j], R) if M is not None]), alpha=self.scale)
                slope = rest if L is None else L.mH @ rest
                slope = slope if R is None else slope @ R.mH
                factors[j] = self.targets[j](factors[j].add(slope, alpha=self.scale / rate))
            behind = factors[j] if behind is None else factors[j] @ behind if backwards else behind @ factors[j]
        assert behind is not None
        energy = float(torch.linalg.vector_norm(behind).square())
        if energy > 0:
            self.scale = float(torch.vdot(behind.reshape(-1), A.reshape(-1)).real) / energy
        norm = float(torch.linalg.vector_norm(A))
        self.error = float(torch.linalg.vector_norm(A - self.scale * behind)) / norm if norm else 0.0

    def supports(self) -> list[Support]:
        """The given masks, or where factors are not zero."""
        return [
            target.arguments[0] if target.name == "supp" else Support.non_zeros(factor)
            for target, factor in zip(self.targets, self.factors, strict=True)
        ]

    def polish(self, A: Num[torch.Tensor, "m n"]) -> None:
        """Improve the values where the factors are not zero, all together, if the sets leave them free."""
        exact = self.error <= rounding_level(torch.float64, len(self.factors)) / 4
        if exact or not all(target.rule.entries for target in self.targets):
            return
        root = abs(self.scale) ** (1 / len(self.factors))
        sizes = [root if self.scale > 0 else -root, *[root] * (len(self.factors) - 1)]
        given = [factor.numpy(force=True) * size for factor, size in zip(self.factors, sizes, strict=True)]
        found = polish(A.numpy(force=True), given, [support.array for support in self.supports()], POLISH)
        norms = [float(np.linalg.norm(factor)) for factor in found]
        if all(norms):
            self.factors = [torch.from_numpy(f / norm).to(A.device) for f, norm in zip(found, norms, strict=True)]
            self.scale = float(np.prod(norms))
            rest = A - self.scale * reduce(torch.matmul, self.factors)
            self.error = float(torch.linalg.vector_norm(rest) / torch.linalg.vector_norm(A))

    def _norm(self, side: Matrix | None, j: int, left: bool) -> float:
        """The spectral norm of one side, or a little more; beyond small sizes from where the last sweep ended."""
        if side is None:
            return 1.0
        if min(side.shape) <= SMALL:
            return float(torch.linalg.matrix_norm(side, 2))
        vector, powers = self._tops.get((j, left)), POWERS[1]
        if vector is None:
            # a start that depends on nothing random, and that no structured matrix is likely to be orthogonal to
            vector, powers = torch.cos(1.7 * torch.arange(1.0, side.shape[1] + 1)).to(side), POWERS[0]
        back, size = side.mH, 0.0
        for _ in range(powers):
            vector = back @ (side @ vector)
            size = float(torch.linalg.vector_norm(vector))
            if size == 0:
                return 0.0
            vector = vector / size
        self._tops[j, left] = vector
        return (1 + MARGIN) * size**0.5


def factor_shapes(
    targets: Sequence[Projection], sizes: Sequence[int] | None, shape: tuple[int, int], dtype: torch.dtype
) -> list[tuple[int, int]]:
    """Shapes of the factors of an m x n product; refuses what does not multiply or suit the projections."""
    m, n = shape
    inner = [min(m, n)] * (len(targets) - 1)
    if sizes is not None:
        if not hasattr(sizes, "__len__") or isinstance(sizes, str):
            raise ValueError(f"sizes is {sizes!r}. Rule: a list, one between two factors, such as {inner}.")
        if len(sizes) != len(inner):
            raise ValueError(f"there are {len(sizes)} sizes for {len(targets)} factors. Rule: one between two factors.")
        inner = [require_whole(f"size {k}", size, good=min(m, n)) for k, size in enumerate(sizes)]
    for k, target in enumerate(targets):
        if sizes is None and target.shape is not None:
            if k > 0:
                inner[k - 1] = target.shape[0]
            if k < len(inner):
                inner[k] = target.shape[1]
    shapes = list(zip([m, *inner], [*inner, n], strict=True))
    for k, (target, here) in enumerate(zip(targets, shapes, strict=True)):
        try:
            if target.shape is not None and target.shape != here:
                raise ValueError(f"its shape is {target.shape}, its place in the product of {m} x {n} is {here}.")
            target.set(torch.ones(here, dtype=dtype))
        except ValueError as error:
            raise ValueError(f"factor {k}, {target}: {error}") from error
    return shapes


def require_direction(direction: str) -> None:
    """Refuse what is no order of updates."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r} is unknown. Rule: {' or '.join(map(repr, DIRECTIONS))}.")


def scaled(matrix: Matrix) -> tuple[Matrix, float]:
    """The matrix in double precision with largest entry 1, and that entry: the steps then depend on no unit."""
    wide = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    scale = float(wide.abs().max()) or 1.0
    return wide / scale, scale


def begin(
    A: Matrix,
    targets: Sequence[Projection],
    shapes: Sequence[tuple[int, int]],
    direction: str,
    generator: np.random.Generator | None,
) -> list[Matrix]:
    """Random factors of norm 1; or without a generator zero for the first to be updated and identities."""
    if generator is None:
        eyes = [torch.eye(*shape, dtype=A.dtype, device=A.device) for shape in shapes]
        zeroed = -1 if direction == "r2l" else 0
        eyes[zeroed] = torch.zeros_like(eyes[zeroed])
        return eyes
    dtype = np.dtype(str(A.dtype).removeprefix("torch."))
    full = (np.ones(shape, dtype=bool) for shape in shapes)
    drawn = (torch.from_numpy(random_factor(mask, dtype, generator)).to(A.device) for mask in full)
    return [target(values) for target, values in zip(targets, drawn, strict=True)]


def finish(
    matrix: Matrix,
    wide: Matrix,
    scale: float,
    state: State,
    shapes: Sequence[tuple[int, int]],
    notes: tuple[str, ...],
) -> Factorization[MaskedProduct]:
    """The product of a state with its certificate, for the matrix in its own dtype and unit."""
    targets, count = state.targets, len(state.factors)
    supports = state.supports()
    root = abs(state.scale) ** (1 / count)
    factors = [factor * root for factor in state.factors]
    factors[0] = factors[0] * (-1 if state.scale < 0 else 1)
    factors = [(factor * scale ** (1 / count)).to(matrix.dtype) for factor in factors]
    product = MaskedProduct(supports, factors)
    bound = cut_bound(wide, [target.support(shape) for target, shape in zip(targets, shapes, strict=True)])
    certificate = certify(matrix, product, (bound, np.inf), THEOREM)
    return Factorization(product, certificate, (), (), "none", notes, (certificate,))
