"""The hierarchical scheme of FAuST: split one sparse factor off after another, and refit all of them each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from math import ceil
from typing import Any, final

from ..core import Registry, as_matrix, require_whole
from ..structure import MaskedProduct
from .factorization import Factorization
from .fixed import half_note
from .projections import Projection, numbers_of, parameters_rule, projections_of
from .proximal import State, begin, factor_shapes, finish, require_direction, scaled

TOLERANCE = 1e-9  # relative change of the error below which a run of sweeps ends


@final
@dataclass(frozen=True, slots=True)
class Scheme:
    """What is split off, step by step: projections of the sparse factors, and of what is left beside each of them.

    With `side` "right" what is left stands right of the factor and is split next; with "left" it stands left. The last
    residual is the last factor. `sizes` are the inner sizes, in the order of the steps; default: the smaller side of
    the matrix. Raises `ValueError` unless there are as many residuals as factors, and at least one, and as many sizes.

    >>> print(Scheme.of("splincol(2)*2", "splincol(4) splincol(2)"))
    splincol(2) | splincol(4), splincol(2) | splincol(2)
    """

    factors: tuple[Projection, ...]
    residuals: tuple[Projection, ...]
    side: str = "right"
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        steps = len(self.factors)
        if steps != len(self.residuals) or not steps:
            raise ValueError(
                f"there are {steps} factors and {len(self.residuals)} residuals. "
                "Rule: as many of each, at least one; the last residual becomes the last factor."
            )
        if self.side not in ("left", "right"):
            raise ValueError(f"side={self.side!r} is unknown. Rule: 'left' or 'right', where the residual stands.")
        if self.sizes is not None:
            if not hasattr(self.sizes, "__len__") or len(self.sizes) != steps:
                raise ValueError(f"sizes is {self.sizes!r} for {steps} steps. Rule: a tuple, one per step.")
            for k, size in enumerate(self.sizes):
                require_whole(f"size {k}", size)

    @staticmethod
    def of(factors: Any, residuals: Any, *, side: str = "right", sizes: tuple[int, ...] | None = None) -> Scheme:
        """A scheme from descriptions of projections, texts or lists (see `projections_of`)."""
        return Scheme(projections_of(factors), projections_of(residuals), side, sizes)

    def __str__(self) -> str:
        order = zip(self.factors, self.residuals, strict=True)
        if self.side == "left":
            return ", ".join(f"{rest} | {one}" for one, rest in order)
        return ", ".join(f"{one} | {rest}" for one, rest in order)


SCHEMES: Registry[Callable[..., Scheme]] = Registry("scheme")


@SCHEMES.register("hadamard")
def hadamard_scheme(m: int, n: int) -> Scheme:
    """For Hadamard-like matrices of size 2^L: L factors with 2 entries per row or column (FAuST's "hadamard").

    >>> print(hadamard_scheme(8, 8))
    splincol(2) | splincol(4), splincol(2) | splincol(2)
    """
    steps = n.bit_length() - 1
    if m != n or n != 2**steps or steps < 2:
        raise ValueError(f"the scheme 'hadamard' for {m} x {n}. Rule: square, a power of two >= 4. Else: 'square'.")
    return square_scheme(m, n, steps, 2)


@SCHEMES.register("square")
def square_scheme(m: int, n: int, factors: int, k: int) -> Scheme:
    """For square matrices: so many factors with k entries per row or column; residuals halve their entries each time.

    >>> print(square_scheme(6, 6, 3, 2))
    splincol(2) | splincol(3), splincol(2) | splincol(2)
    """
    if m != n or factors < 2:
        raise ValueError(f"the scheme 'square' with {factors} factors for {m} x {n}. Rule: square, at least 2 factors.")
    rests = [f"splincol({max(k, ceil(n / 2**i))})" for i in range(1, factors)]
    return Scheme.of(f"splincol({k})*{factors - 1}", rests)


@SCHEMES.register("rectangular")
def rectangular_scheme(m: int, n: int, factors: int, k: int, s: int, *, rho: float = 0.8, P: float = 1.4) -> Scheme:
    """For any matrix: one factor with k entries per long line, the others square with s per line (FAuST's "rectmat").

    With q = min(m, n): the long factor, q x n or m x q, has k entries in each of its columns or rows, the square ones
    s q entries, and residual i = 0, 1, ... has P q^2 rho^i entries; `rho` and `P` have no unit. The long factor is the
    rightmost of a wide matrix, the leftmost of a tall one. Raises `ValueError` for fewer than 2 factors, rho or P <= 0.

    >>> print(rectangular_scheme(4, 9, 3, 2, 2))
    sp(23) | spcol(2), sp(18) | sp(8)
    """
    if factors < 2 or rho <= 0 or P <= 0:
        raise ValueError(f"factors={factors}, rho={rho}, P={P}. Rule: at least 2 factors, rho > 0 and P > 0.")
    short, wide = min(m, n), m <= n
    rests = [f"sp({ceil(P * short**2 * rho**i)})" for i in range(factors - 1)]
    others = [f"sp({s * short})"] * (factors - 2)
    return Scheme.of([f"{'spcol' if wide else 'splin'}({k})", *others], rests, side="left" if wide else "right")


def parse_scheme(text: str, m: int, n: int) -> Scheme:
    """The scheme that a text such as "hadamard" or "rectangular(5,10,4)" means for an m x n matrix.

    >>> parse_scheme("hadamard", 8, 8) == hadamard_scheme(8, 8)
    True
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None:
        raise ValueError(f"{text[:60]!r} is no scheme. Rule: NAME or NAME(NUMBERS), NAME of {', '.join(SCHEMES)}.")
    make, numbers = SCHEMES[match[1]], numbers_of(match[2])
    wanted = [p.name for p in signature(make).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][2:]
    if len(numbers) != len(wanted) or 0 in numbers:
        raise ValueError(f"{text.strip()!r} does not fit {match[1]}{parameters_rule(wanted)}")
    return make(m, n, *numbers)


def hierarchical(
    A: Any,
    scheme: Scheme | str,
    *,
    sweeps: int = 30,
    refits: int = 30,
    direction: str = "r2l",
    polishing: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Factorization[MaskedProduct]:
    """Approximate A (m, n) by a product of many sparse factors, split off one by one. No guarantee.

    Args:
        A: torch tensor or numpy array, real or complex; computed in double precision, returned in its own, float16 and
            bfloat16 in float32.
        scheme: what is split off: a `Scheme`, or a text for one of `SCHEMES`: "hadamard", "square(factors,k)",
            "rectangular(factors,k,s)".
        sweeps: of the two factors of each split, at most.
        refits: sweeps of all factors so far against A, after each split, at most.
        direction: "r2l" updates the rightmost factor first, "l2r" the leftmost.
        polishing: improve the values on the entries found, as in `palm`.
        progress: called as progress(what, done, total).

    Deterministic. The result is as that of `palm`, and says as little about the optimum. Raises `ValueError` as `palm`
    and for schemes that do not fit. Cost: with J factors, 2 `sweeps` + J `refits` / 2 sweeps of a factor per split.
    Source: Le Magoarou and Gribonval (2016), Algorithm 3; T_l -> residual, E_l and its tilde -> factors and residuals.

    >>> import torch
    >>> H = torch.tensor([[1.0, 1], [1, -1]]).double()
    >>> result = hierarchical(torch.kron(H, torch.kron(H, H)), "hadamard")
    >>> result.certificate.exact, result.product.nnz
    (True, 48)
    """
    matrix = as_matrix(A)
    m, n = matrix.shape
    plan = parse_scheme(scheme, m, n) if isinstance(scheme, str) else scheme
    if not isinstance(plan, Scheme):
        raise TypeError(f"the scheme is a {type(plan).__name__}. Rule: a text such as 'square(4,2)', or a Scheme.")
    sweeps, refits = require_whole("sweeps", sweeps, good=30), require_whole("refits", refits, good=30)
    require_direction(direction)
    left, steps = plan.side == "left", len(plan.factors)
    sizes = plan.sizes or (min(m, n),) * steps
    for step in range(steps):  # all that can be refused is refused before any work
        factor_shapes(*_so_far(plan, step, sizes), (m, n), matrix.dtype)
    wide, scale = scaled(matrix)
    done: list[Any] = []  # factors split off, in the order of the product
    whole = State([wide], ())
    for step in range(steps):
        rest, unit = scaled(whole.factors[0 if left else -1])
        pair = _pair(plan.factors[step], plan.residuals[step], left)
        shape = (rest.shape[0], rest.shape[1])
        split = State(
            begin(rest, pair, factor_shapes(pair, [sizes[step]], shape, rest.dtype), direction, None), pair, direction
        )
        split.run(rest, sweeps, TOLERANCE)
        targets = _so_far(plan, step, sizes)[0]
        factors = [*split.factors, *done] if left else [*done, *split.factors]
        whole = State(factors, targets, direction, whole.scale * split.scale * unit)
        whole.run(wide, refits, TOLERANCE)
        done = whole.factors[1:] if left else whole.factors[:-1]
        if progress is not None:
            progress("splits", step + 1, steps)
    if polishing:
        whole.polish(wide)
    shapes = [(factor.shape[0], factor.shape[1]) for factor in whole.factors]
    return finish(matrix, wide, scale, whole, shapes, (f"hierarchical: {plan}", *half_note(A)))


def _pair(factor: Projection, residual: Projection, left: bool) -> tuple[Projection, Projection]:
    return (residual, factor) if left else (factor, residual)


def _so_far(plan: Scheme, step: int, sizes: tuple[int, ...]) -> tuple[list[Projection], list[int]]:
    """Projections and inner sizes of all factors after a step, in the order of the product."""
    targets = [*plan.factors[: step + 1], plan.residuals[step]]
    inner = list(sizes[: step + 1])
    return (targets[::-1], inner[::-1]) if plan.side == "left" else (targets, inner)
