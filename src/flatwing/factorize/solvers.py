"""Block solvers: the best rank-r approximation of many small blocks at once, each with a checked result.

A solver sees blocks of shape (k, small, large) with small <= large, the smaller side first, from a matrix whose largest
entry is near 1. Registering one makes
`factorize` use it where it is supported, and makes the contract kit test it against the singular value decomposition.
"""

from __future__ import annotations

import abc
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Num
from typing_extensions import override

from ..core import Registry


class Truncation(NamedTuple):
    """Rank-r approximation basis @ coefficients of each block."""

    basis: torch.Tensor  # (k, small, r), orthonormal columns
    coefficients: torch.Tensor  # (k, r, large), equal to basis^H @ block
    tail: torch.Tensor  # (k,), float64: squared Frobenius norm of block - basis @ coefficients


class BlockSolver(abc.ABC):
    """Law: `tail` is the true residual, and within `TOLERANCE` (plus rounding) of what the truncated SVD leaves."""

    preference: int
    """Solvers are tried in ascending order."""

    @abc.abstractmethod
    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        """None if supported, else a reason a user can act on."""

    @abc.abstractmethod
    def truncate(self, blocks: Num[torch.Tensor, "k small large"], rank: int) -> Truncation:
        """Approximate each block; 1 <= rank < small."""


SOLVERS: Registry[BlockSolver] = Registry("block solver")
# How much more than the optimum a tail may hold, relative to itself.
TOLERANCE = 1e-8
# Power iteration must do better: the next cut sees the angle of the vector, of which the tail is only the square.
ANGLE_TOLERANCE = {torch.float64: 1e-14, torch.complex128: 1e-14, torch.float32: 1e-9, torch.complex64: 1e-9}
MAX_ROUNDS, ROUNDS_AT_ONCE, SQUARING = 12, 3, 16
FEW = 10**5  # matrices times size^3 that LAPACK solves sooner than more rounds of many small operations


def select_solver(small: int, large: int, rank: int, device: torch.device) -> BlockSolver:
    """The first solver, in order of preference, that supports these blocks."""
    for solver in sorted(SOLVERS.values(), key=lambda s: s.preference):
        if solver.unsupported_because(small, large, rank, device) is None:
            return solver
    raise ValueError(f"no block solver supports blocks of {small} x {large}, rank {rank}, on {device}.")


def energy(blocks: Num[torch.Tensor, "k ..."]) -> Float[torch.Tensor, " k"]:
    """Squared Frobenius norm of each block: rows are summed in the dtype of the blocks, blocks in float64."""
    real = torch.view_as_real(blocks).flatten(-2) if blocks.is_complex() else blocks
    rows = torch.linalg.vector_norm(real, dim=-1).double()
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).square() if rows.ndim > 1 else rows.square()


@final
class ClosedForm(BlockSolver):
    """Two rows, rank one: the rotation that diagonalizes the 2 x 2 Gram matrix.

    Its first row is the approximation and its second row the residual, so even a tail at the level of rounding has
    correct digits.
    """

    preference = 10

    @override
    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        return None if small == 2 and rank == 1 else "only for blocks with two rows or columns, rank 1"

    @override
    def truncate(self, blocks: torch.Tensor, rank: int) -> Truncation:
        gram = blocks @ blocks.mH
        g11, g22, g12 = gram[:, 0, 0].real, gram[:, 1, 1].real, gram[:, 0, 1]
        # half angle, with the phase of g12 on the first entry: basis = (cos * phase, sin)
        half = 0.5 * torch.atan2(2 * g12.abs(), g11 - g22)
        cos, sin = half.cos(), half.sin()
        phase = torch.where(g12 == 0, torch.ones_like(g12), torch.sgn(g12))
        first, second = cos * phase, sin.to(phase.dtype)
        rotation = torch.stack([first.conj(), second.conj(), -second, first], dim=-1).reshape(-1, 2, 2)
        rotated = rotation @ blocks
        basis = torch.stack([first, second], dim=-1)[..., None]
        return Truncation(basis, rotated[:, :1], energy(rotated[:, 1:]))


PROVABLE, PROVABLE_SHORT = 1e-140, 1e-24
"""Squared norms of blocks, of float64 and of float32, below which squares of squares fall below all numbers."""


@final
class Power(BlockSolver):
    """Rank one by power iteration on the Gram matrix of the small side, accepted only with a proof.

    `top_vector` bounds what the best vector could capture beyond the one found. Blocks that do not pass, such as noise,
    are handed to `Lapack`.
    """

    preference = 20

    @override
    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        return None if rank == 1 else "only for rank 1"

    @override
    def truncate(self, blocks: torch.Tensor, rank: int) -> Truncation:
        tolerance, eps = ANGLE_TOLERANCE[blocks.dtype], torch.finfo(blocks.dtype).eps
        u, theta, _, missing = top_vector(blocks @ blocks.mH, tolerance)
        coefficients = u.mH @ blocks
        tail = energy(torch.baddbmm(blocks, u, coefficients, alpha=-1))
        solved = missing <= tolerance * tail + (64 * eps) ** 2 * theta
        least = PROVABLE_SHORT if eps > 1e-10 else PROVABLE
        solved &= (theta >= least) | (theta == 0)  # of smaller ones, the proof loses its digits
        result = Truncation(u, coefficients, tail)
        if not bool(solved.all()):
            again = (~solved).nonzero()[:, 0]
            exact = SOLVERS["lapack"].truncate(blocks[again], 1)
            for mine, theirs in zip(result, exact, strict=True):
                mine[again] = theirs
        return result


@final
class Lapack(BlockSolver):
    """Any rank: Hermitian eigenvectors of the float64 Gram matrix where that is safe, else the SVD of the block.

    The Gram matrix loses singular values below sqrt(eps) sigma_1, so a block is accepted only if what it could have
    lost is small against what is left anyway.
    """

    preference = 100

    @override
    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        return None

    @override
    def truncate(self, blocks: torch.Tensor, rank: int) -> Truncation:
        work = blocks.to(torch.promote_types(blocks.dtype, torch.float64))
        values, vectors = torch.linalg.eigh(work @ work.mH)
        basis = vectors[..., -rank:].flip(-1)
        coefficients = basis.mH @ work
        tail = energy(work - basis @ coefficients)
        top = values[:, -1].clamp_min(0)
        eps = torch.finfo(torch.float64).eps
        safe = (32 * rank * eps * top <= TOLERANCE * tail) | (tail <= (8 * eps) ** 2 * top)
        if not bool(safe.all()):
            again = (~safe).nonzero()[:, 0]
            u, _, _ = torch.linalg.svd(work[again], full_matrices=False)
            basis[again] = u[..., :rank]
            coefficients[again] = basis[again].mH @ work[again]
            tail[again] = energy(work[again] - basis[again] @ coefficients[again])
        return Truncation(basis.to(blocks.dtype), coefficients.to(blocks.dtype), tail)


SOLVERS.register("closed_form")(ClosedForm())
SOLVERS.register("power")(Power())
SOLVERS.register("lapack")(Lapack())


class TopVector(NamedTuple):
    """Result of `top_vector`; energies in float64."""

    u: torch.Tensor  # (k, s, 1), unit vectors
    theta: torch.Tensor  # (k,), u^H G u
    rest: torch.Tensor  # (k,), tr G - theta
    missing: torch.Tensor  # (k,), no unit vector reaches more than theta + missing


def top_vector(
    gram: Num[torch.Tensor, "k s s"], tolerance: float, rounds: int = MAX_ROUNDS, start: torch.Tensor | None = None
) -> TopVector:
    """Power iteration on Hermitian positive matrices, with a proof of what is still missing.

    With g = G u - theta u and h >= the largest eigenvalue of G outside u, turning u by an angle phi towards any
    direction gains at most |g| sin 2 phi - (theta - h) sin^2 phi <= |g|^2 / (theta - h): that is `missing`, infinite
    where theta <= h. For h serves the smaller of the trace and the Frobenius norm of G outside u. Matrices for which
    it is below `tolerance` * rest are done; the others go on for `rounds` in all, without the finished ones, unless
    they are so few that LAPACK is faster.
    """
    total = gram.diagonal(dim1=1, dim2=2).real.sum(1).double()
    if start is None:
        power = gram
        if gram.shape[-1] <= SQUARING:  # two squarings of a tiny matrix are cheaper than four rounds
            power = gram / total.clamp_min(torch.finfo(gram.dtype).tiny).to(gram.dtype)[:, None, None]
            power = power @ power
            power = power @ power
        start = power.take_along_dim(power.diagonal(dim1=1, dim2=2).real.argmax(1)[:, None, None], dim=2)
    square = energy(gram)
    found, z = _turn(gram, start, total, square)
    unsolved = found.missing > _enough(found, tolerance, gram.dtype)
    for _ in range(ROUNDS_AT_ONCE - 1):
        if not bool(unsolved.any()):
            return found
        found, z = _turn(gram, z, total, square)
        unsolved = found.missing > _enough(found, tolerance, gram.dtype)
    again = unsolved.nonzero()[:, 0]
    if rounds > ROUNDS_AT_ONCE and len(again) * gram.shape[-1] ** 3 > FEW:
        further = top_vector(gram[again], tolerance, rounds - ROUNDS_AT_ONCE, z[again])
        for mine, theirs in zip(found, further, strict=True):
            mine[again] = theirs
    return found


def _turn(
    gram: torch.Tensor, z: torch.Tensor, total: torch.Tensor, square: torch.Tensor
) -> tuple[TopVector, torch.Tensor]:
    """What is known of the direction z (see `top_vector`), and the next direction."""
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    u = torch.where(norm > 0, z / norm, _first_unit_vector(z))
    z = gram @ u
    projection = u.mH @ z
    g = energy(z - projection * u)
    theta = projection[:, 0, 0].real.double()
    rest = total - theta
    outside = (square - theta.square() - 2 * g).clamp_min(0) + 64 * torch.finfo(gram.dtype).eps * theta.square()
    gap = theta - torch.minimum(rest, outside.sqrt())
    missing = torch.where(gap > 0, g / gap, torch.inf).where(theta > 0, 0.0)
    return TopVector(u, theta, rest, missing), z


def _enough(found: TopVector, tolerance: float, dtype: torch.dtype) -> torch.Tensor:
    """How much may be missing: a share of the rest, or what rounding makes of theta anyway."""
    return tolerance * found.rest + (64 * torch.finfo(dtype).eps) ** 2 * found.theta


def _first_unit_vector(like: torch.Tensor) -> torch.Tensor:
    unit = torch.zeros_like(like)
    unit[:, 0] = 1
    return unit
