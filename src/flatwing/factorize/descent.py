"""Factors on supports that no theorem covers: L-BFGS on all their values together, from many starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Num

from ..structure import Support

# Steps of L-BFGS after each start, and for the best ones. Where no optimum exists the error falls for ever as the
# factors grow: a long run of every start would take the time and change no verdict.
SHORT, LONG, FINALISTS = 300, 1000, 3
STALL, STALLED = 50, 1e-13  # steps, and the relative progress in so many steps below which a run ends
SAME = 1e-6  # relative difference of errors that counts as the same end

Matrix = Num[np.ndarray, "_ _"]
Mask = Bool[np.ndarray, "_ _"]


def descend(
    A: Num[torch.Tensor, "m n"],
    supports: tuple[Support, Support],
    starts: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Num[torch.Tensor, "m r"], Num[torch.Tensor, "r n"], tuple[str, ...]]:
    """The best X and Y of `starts` descents, and what a reader should know about the others.

    Each begins with normal random values on the supports; all values move together, since alternating between the
    factors was slower and ended higher. numpy, because the problems are small and the steps many.
    """
    target = A.numpy(force=True)
    masks = [support.array for support in supports]
    generator = np.random.default_rng(seed)
    ends: list[tuple[float, list[Matrix]]] = []
    for start in range(starts):
        X, Y = polish(target, [random_factor(mask, target.dtype, generator) for mask in masks], masks, SHORT)
        ends.append((float(np.linalg.norm(target - X @ Y)), [X, Y]))
        if progress is not None:
            progress("descents", start + 1, starts)
    ends.sort(key=lambda end: end[0])
    ready = [polish(target, factors, masks, LONG) for _, factors in ends[:FINALISTS]]
    X, Y = min(ready, key=lambda end: float(np.linalg.norm(target - end[0] @ end[1])))
    same = sum(error <= ends[0][0] * (1 + SAME) + 1e-14 for error, _ in ends)
    left, right = (torch.from_numpy(np.ascontiguousarray(factor)).to(A.device) for factor in (X, Y))
    return left, right, (f"best of {starts} descents; {same} of them ended there",)


def random_factor(mask: Mask, dtype: np.dtype, generator: np.random.Generator) -> Matrix:
    """Normal random values on a mask; complex ones for a complex dtype."""
    values = generator.standard_normal(mask.shape).astype(dtype)
    if dtype.kind == "c":
        values += 1j * generator.standard_normal(mask.shape)
    return np.where(mask, values, 0)


def polish(A: Matrix, factors: Sequence[Matrix], masks: Sequence[Mask], steps: int) -> list[Matrix]:
    """The factors after L-BFGS on all values on their masks together, A ~ product; never worse than before.

    Updates of one factor at a time are slow where factors depend on each other. Cost of a step: two products of all
    factors; it ends early where the error is rounding or does not change any more.
    """
    from scipy.optimize import minimize  # here, because importing it is slow

    dtype = A.dtype
    ends = np.cumsum([0, *(int(mask.sum()) for mask in masks)])
    enough = (np.finfo(np.float64).eps * float(np.linalg.norm(A))) ** 2

    def unpack(values: np.ndarray) -> list[Matrix]:
        entries, found = values.view(dtype), [np.zeros(mask.shape, dtype) for mask in masks]
        for factor, mask, begin, end in zip(found, masks, ends, ends[1:], strict=False):
            factor[mask] = entries[begin:end]
        return found

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        parts = unpack(values)
        lefts = list(accumulate(parts[:-1], np.matmul))
        back = (lefts[-1] @ parts[-1] if lefts else parts[0]) - A
        energy = float(np.square(np.abs(back)).sum())
        slopes = []
        for k in range(len(parts) - 1, -1, -1):  # `back` is the residual times the conjugate of what is right of k
            slope = lefts[k - 1].conj().T @ back if k else back
            slopes.append(slope[masks[k]])
            back = back @ parts[k].conj().T
        return energy, 2 * np.concatenate(slopes[::-1]).view(np.float64)

    history: list[float] = []

    def watch(intermediate_result: Any) -> None:
        history.append(float(intermediate_result.fun))
        stalled = len(history) > STALL and history[-STALL - 1] - history[-1] <= STALLED * history[-1]
        if stalled or history[-1] <= enough:
            raise StopIteration

    first = np.concatenate([factor[mask] for factor, mask in zip(factors, masks, strict=True)]).view(np.float64)
    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 0, "gtol": 1e-15}
    done = minimize(loss, first, jac=True, method="L-BFGS-B", options=options, callback=watch)
    return unpack(done.x) if done.fun < loss(first)[0] else list(factors)
