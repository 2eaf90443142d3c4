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
# How much more than the optimum a tail may hold, relative to itself: the sixth digit of an error never moves.
TOLERANCE = {torch.float64: 1e-8, torch.complex128: 1e-8, torch.float32: 1e-5, torch.complex64: 1e-5}
MAX_ROUNDS = 12


def select_solver(small: int, large: int, rank: int, device: torch.device) -> BlockSolver:
    """The first solver, in order of preference, that supports these blocks."""
    for solver in sorted(SOLVERS.values(), key=lambda s: s.preference):
        if solver.unsupported_because(small, large, rank, device) is None:
            return solver
    raise ValueError(f"no block solver supports blocks of {small} x {large}, rank {rank}, on {device}.")


def energy(blocks: Num[torch.Tensor, "k ..."]) -> Float[torch.Tensor, " k"]:
    """Squared Frobenius norm of each block, in float64."""
    flat = torch.view_as_real(blocks) if blocks.is_complex() else blocks
    return torch.linalg.vector_norm(flat.flatten(1), dim=1).to(torch.float64).square()


@final
class ClosedForm(BlockSolver):
    """Two rows, rank one: the rotation that diagonalizes the 2 x 2 Gram matrix.

    Its first row is the approximation and its second row the residual, so even a tail at the level of rounding has
    correct digits.
    """

    preference = 10

    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        return None if small == 2 and rank == 1 else "only for blocks with two rows or columns, rank 1"

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


@final
class Power(BlockSolver):
    """Rank one by power iteration on the Gram matrix of the small side, accepted only with a proof.

    For a unit vector u with theta = u^H G u and g = G u - theta u, the energy that the best vector could capture beyond
    theta is at most |g|^2 / (theta - h) when everything outside u has energy h < theta (see `slack`). Blocks that do
    not pass, such as noise, are handed to `Lapack`.
    """

    preference = 20

    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        return None if rank == 1 else "only for rank 1"

    def truncate(self, blocks: torch.Tensor, rank: int) -> Truncation:
        gram = blocks @ blocks.mH
        tolerance, eps = TOLERANCE[blocks.dtype], torch.finfo(blocks.dtype).eps
        u = dominant_vector(gram)
        coefficients = u.mH @ blocks
        tail = energy(torch.baddbmm(blocks, u, coefficients, alpha=-1))
        theta = energy(coefficients)
        missing = slack(gram, u, theta, tail)
        solved = missing <= tolerance * tail + (64 * eps) ** 2 * theta
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

    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        return None

    def truncate(self, blocks: torch.Tensor, rank: int) -> Truncation:
        work = blocks.to(torch.promote_types(blocks.dtype, torch.float64))
        values, vectors = torch.linalg.eigh(work @ work.mH)
        basis = vectors[..., -rank:].flip(-1)
        coefficients = basis.mH @ work
        tail = energy(work - basis @ coefficients)
        top = values[:, -1].clamp_min(0)
        eps = torch.finfo(torch.float64).eps
        safe = (32 * rank * eps * top <= TOLERANCE[work.dtype] * tail) | (tail <= (8 * eps) ** 2 * top)
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


def dominant_vector(gram: Num[torch.Tensor, "k s s"]) -> Num[torch.Tensor, "k s 1"]:
    """Unit vectors near the top eigenvector of each Hermitian matrix (power iteration, no promise of convergence).

    Starts from the column with the largest diagonal entry and stops when the vectors of all matrices stand still.
    """
    k, s, _ = gram.shape
    start = gram.diagonal(dim1=1, dim2=2).real.argmax(1)
    u = gram[torch.arange(k, device=gram.device), :, start][..., None]
    eps = torch.finfo(gram.dtype).eps
    for _ in range(MAX_ROUNDS):
        norm = torch.linalg.vector_norm(u, dim=1, keepdim=True)
        u = torch.where(norm > 0, u / norm, _first_unit_vector(u))
        z = gram @ u
        change = torch.linalg.vector_norm(z - (u.mH @ z) * u, dim=1) / torch.linalg.vector_norm(z, dim=1)
        if not bool((change > 16 * eps).any()):  # NaN (a zero block) counts as converged
            break
        u = z
    norm = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    return torch.where(norm > 0, u / norm, _first_unit_vector(u))


def slack(
    gram: Num[torch.Tensor, "k s s"],
    u: Num[torch.Tensor, "k s r"],
    theta: Float[torch.Tensor, " k"],
    rest: Float[torch.Tensor, " k"],
) -> Float[torch.Tensor, " k"]:
    """Upper bound on how much more energy than theta = tr(u^H G u) any r-dimensional subspace captures.

    With g = G u - u (u^H G u), the smallest eigenvalue t of u^H G u and `rest` >= the largest eigenvalue of G outside u:
    at most |g|^2 / (t - rest), infinite if t <= rest. For every direction the gain is at most
    max_phi |g_i| sin 2 phi - (t - rest) sin^2 phi <= |g_i|^2 / (t - rest).
    """
    projected = u.mH @ gram @ u
    g = energy(gram @ u - u @ projected)
    smallest = projected[:, 0, 0].real if u.shape[-1] == 1 else torch.linalg.eigvalsh(projected)[:, 0]
    gap = smallest.double() - rest
    return torch.where(gap > 0, g / gap.clamp_min(torch.finfo(torch.float64).tiny), torch.inf).where(theta > 0, 0.0)


def _first_unit_vector(like: torch.Tensor) -> torch.Tensor:
    unit = torch.zeros_like(like)
    unit[:, 0] = 1
    return unit

