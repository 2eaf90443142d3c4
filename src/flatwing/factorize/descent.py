"""Two factors on supports that no theorem covers: alternating least squares from many starts, polished by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Num

from ..structure import Support

SWEEPS, POLISH = 50, 2000
SLOW = 1e-4  # relative progress of a sweep below which L-BFGS takes over
RIDGE = 1e-12  # of the largest diagonal entry: keeps the systems solvable where factors run away
SAME = 1e-6  # relative difference of errors that counts as the same end

Matrix = Num[np.ndarray, "_ _"]


def descend(
    A: Num[torch.Tensor, "m n"],
    supports: tuple[Support, Support],
    starts: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Num[torch.Tensor, "m r"], Num[torch.Tensor, "r n"], tuple[str, ...]]:
    """The best X and Y of `starts` descents, and what a reader should know about the others.

    Each begins with normal random values on the supports. The problems are small and the steps many: numpy, which
    spends less on a call than torch. Cost of a sweep: a least-squares problem per distinct row and column support.
    """
    target = A.numpy(force=True)
    S, T = (support.array for support in supports)
    generator = np.random.default_rng(seed)
    ends: list[tuple[float, Matrix, Matrix]] = []
    for start in range(starts):
        X, Y = (_random(mask, target.dtype, generator) for mask in (S, T))
        error = np.inf
        for _ in range(SWEEPS):
            X = _rows(target, Y, S)
            Y = _rows(target.T, X.T, T.T).T
            before, error = error, float(np.linalg.norm(target - X @ Y))
            if not error < before * (1 - SLOW):
                break
        X, Y = _polish(target, X, Y, S, T)
        ends.append((float(np.linalg.norm(target - X @ Y)), X, Y))
        if progress is not None:
            progress("descents", start + 1, starts)
    best, X, Y = min(ends, key=lambda end: end[0])
    same = sum(error <= best * (1 + SAME) + 1e-14 for error, _, _ in ends)
    left, right = (torch.from_numpy(np.ascontiguousarray(factor)).to(A.device) for factor in (X, Y))
    return left, right, (f"best of {starts} descents; {same} of them ended there",)


def _random(mask: Bool[np.ndarray, "_ _"], dtype: np.dtype, generator: np.random.Generator) -> Matrix:
    values = generator.standard_normal(mask.shape).astype(dtype)
    if dtype.kind == "c":
        values += 1j * generator.standard_normal(mask.shape)
    return np.where(mask, values, 0)


def _rows(A: Matrix, Y: Matrix, mask: Bool[np.ndarray, "_ _"]) -> Matrix:
    """The X on a mask that is best for A ~ X Y: rows with the same support are one least-squares problem."""
    X = np.zeros(mask.shape, dtype=A.dtype)
    kinds, which = np.unique(mask, axis=0, return_inverse=True)
    for k, kind in enumerate(kinds):
        if kind.any():
            rows, basis = np.flatnonzero(which.reshape(-1) == k), Y[kind]
            gram = basis @ basis.conj().T
            ridge = RIDGE * (float(np.abs(gram.diagonal()).max()) or 1.0)
            solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), basis @ A[rows].conj().T)
            X[np.ix_(rows, np.flatnonzero(kind))] = solved.conj().T
    return X


def _polish(
    A: Matrix, X: Matrix, Y: Matrix, S: Bool[np.ndarray, "_ _"], T: Bool[np.ndarray, "_ _"]
) -> tuple[Matrix, Matrix]:
    """L-BFGS on the values of both factors together; alternating steps are slow where the two depend on each other."""
    from scipy.optimize import minimize  # here, because importing it is slow

    count, real = int(S.sum()), np.float64
    dtype = A.dtype

    def factors(values: np.ndarray) -> tuple[Matrix, Matrix]:
        entries = values.view(dtype)
        left, right = np.zeros_like(X), np.zeros_like(Y)
        left[S], right[T] = entries[:count], entries[count:]
        return left, right

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        left, right = factors(values)
        rest = left @ right - A
        slopes = np.concatenate([(rest @ right.conj().T)[S], (left.conj().T @ rest)[T]])
        return float(np.square(np.abs(rest)).sum()), 2 * slopes.view(real)

    first = np.concatenate([X[S], Y[T]]).view(real)
    done = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": POLISH, "ftol": 0, "gtol": 1e-15})
    left, right = factors(done.x)
    return (left, right) if np.linalg.norm(A - left @ right) < np.linalg.norm(A - X @ Y) else (X, Y)
