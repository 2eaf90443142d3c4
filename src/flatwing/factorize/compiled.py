"""The hierarchical algorithm in compiled loops, where that is possible; else, and for what they cannot prove, torch.

The functions here have twins written with torch alone (`butterfly.hierarchical`, `butterfly.fix_signs` and so on) that
define what is computed: the tests compare them forever. Compiled loops run for ordinary matrices on the CPU when numba
can be imported; the first call in a precision compiles for some seconds, and leaves the result in the cache of numba on
disk for later processes. Nothing here is imported with `import flatwing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from math import isfinite
from types import ModuleType
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Num
from typing_extensions import override

from ..core import compiling
from ..structure.pattern import Pattern
from ..structure.split import Split
from . import butterfly, program
from .program import Program, Step
from .solvers import SOLVERS, TOLERANCE, BlockSolver, Truncation
from .story import Story

NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}
# How much more than the optimum a vector may leave, relative: the next cut sees the root of it.
ANGLES = {torch.float64: 1e-20, torch.complex128: 1e-20, torch.float32: 1e-11, torch.complex64: 1e-11}
# How much less than the truth a tail may be, relative: no more than `solvers.TOLERANCE` where bounds are final.
TAILS = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-5, torch.complex64: 1e-5}


@lru_cache(maxsize=1)
def loops() -> ModuleType | None:
    """The compiled functions, or None where numba is missing or told not to compile."""
    try:
        import numba

        if numba.config.DISABLE_JIT:  # pyright: ignore
            return None
        from . import compiled_steps
    except Exception:  # missing, or not of this machine: there are many ways, and torch computes the same
        return None
    return compiled_steps


@lru_cache(maxsize=len(NUMPY))
def of_any_rank(dtype: torch.dtype) -> Callable[..., int] | None:
    """The compiled step of rank r > 1, or None where it cannot be had: only who needs it waits until it is compiled."""
    if not works(dtype):
        return None
    with _compiling("any rank", dtype):
        try:
            from .compiled_rank_steps import run as step

            for example in (program.blockwise(1, 3, 3, 2), program.signs((Pattern(1, 3, 2, 1), Pattern(1, 2, 3, 1)))):
                values, work = np.zeros(9, NUMPY[dtype]), np.zeros(example.entries, NUMPY[dtype])
                step(values, work, np.empty(example.numbers), example.table[0], 0.0, 0.0)
        except Exception:  # as above
            return None
    return step


@lru_cache(maxsize=len(NUMPY))
def works(dtype: torch.dtype) -> bool:
    """Whether the loops can be compiled for this dtype: the first call tries."""
    compiled = loops()
    if compiled is None or dtype not in NUMPY:
        return False
    nothing = np.empty(0, NUMPY[dtype])
    with _compiling("rank 1", dtype):
        try:
            compiled.run(nothing, nothing, np.empty(0), np.empty((0, 0), np.int64), 0, 0, 0.0, 0.0)
            compiled.squared_norms(nothing.reshape(0, 0), np.empty(0))
            compiled.tree_bound(np.zeros(1), np.ones((1, 2), np.int64))
        except Exception:  # whatever a compiler may run into: torch computes the same
            return False
    return True


def _compiling(rank: str, dtype: torch.dtype) -> AbstractContextManager[None]:
    compiled = loops()
    what = f"loops of the factorization of {rank} for {str(dtype).removeprefix('torch.')}"
    return compiling(what, lambda: None if compiled is None else compiled.run.stats.cache_path)


def supports(values: torch.Tensor) -> bool:
    """Whether the compiled loops can work on these values."""
    return values.device.type == "cpu" and works(values.dtype)


def attempt(
    values: Num[torch.Tensor, "blocks b c"],
    patterns: tuple[Pattern, ...],
    order: Sequence[int],
    orthonormalize: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[torch.Tensor], Story, Float[np.ndarray, "columns rows"]]:
    """What `butterfly.hierarchical` returns, the signs fixed, and the `butterfly.residual` of that, as numbers.

    The factors share no memory with the values.
    """
    if len(patterns) == 1:
        return [values.clone()], Story.of({}), np.zeros((1, 1))
    if supports(values):
        steps = program.attempt(patterns, tuple(order), orthonormalize)
        work = np.empty(steps.entries, NUMPY[values.dtype])
        tails = run(steps, values, work, progress)
        _, at, shape = steps.tails[-1]
        left = tails[at:].reshape(shape)
        if isfinite(left.sum()):  # else a number left its range; torch has other intermediate results
            return _factors(steps, work), Story(tails, steps.tails[:-1]), left
    factors, tails = butterfly.hierarchical(values, patterns, order, orthonormalize, progress)
    factors = butterfly.fix_signs(factors, patterns)
    story = Story.of({s: errors.numpy(force=True) for s, errors in tails.items()})
    return factors, story, butterfly.residual(values, patterns, factors).numpy(force=True)


def fix_signs(factors: Sequence[torch.Tensor], patterns: tuple[Pattern, ...]) -> list[torch.Tensor]:
    """`butterfly.fix_signs`."""
    if len(factors) == 1 or not supports(factors[0]):
        return butterfly.fix_signs(factors, patterns)
    steps = program.signs(patterns)
    work = _memory(steps, factors)
    run(steps, factors[0], work)
    return _factors(steps, work)


def residual(
    values: Num[torch.Tensor, "blocks b c"], patterns: tuple[Pattern, ...], factors: Sequence[torch.Tensor]
) -> Float[torch.Tensor, "columns rows"]:
    """`butterfly.residual`."""
    if not supports(values):
        return butterfly.residual(values, patterns, factors)
    steps = program.residual(patterns)
    return torch.from_numpy(Story(run(steps, values, _memory(steps, factors)), steps.tails)[0])


def squared_norms(matrices: Num[torch.Tensor, "batch *shape"]) -> Float[np.ndarray, " batch"]:
    """`problem.squared_norms`."""
    compiled = loops()
    assert compiled is not None
    flat, found = matrices.contiguous().numpy(force=True), np.empty(len(matrices))
    compiled.squared_norms(flat.reshape(len(flat), -1), found)
    return found


def split_tails(values: Num[torch.Tensor, "blocks b c"], splits: Sequence[Split]) -> Story:
    """Squared tails of every block of each split, never more than the truth up to rounding: residuals, less what a
    better approximation might take off.
    """
    steps = program.tails(tuple(splits))
    work = np.empty(1, NUMPY[values.dtype])
    return Story(run(steps, values, work), steps.tails)


def tree_bound(tails: Story) -> Float[np.ndarray, "columns rows"]:
    """`bounds.tree_bound`."""
    compiled = loops()
    assert compiled is not None
    level, (columns, rows) = tails.numbers.copy(), (tails.places[0][2][0], tails.places[-1][2][1])
    compiled.tree_bound(level, tails.shapes)
    return level[: columns * rows].reshape(columns, rows)


@final
class Compiled(BlockSolver):
    """Compiled loops: two rows in closed form, others by subspace iteration with a proof, or else by torch."""

    preference = 5

    @override
    def unsupported_because(self, small: int, large: int, rank: int, device: torch.device) -> str | None:
        if rank > 1 and rank >= small:
            return f"nothing is cut off at rank {rank} of {small}"
        possible = device.type == "cpu" and loops() is not None
        return None if possible else "only for the CPU, where numba can be imported and may compile"

    @override
    def truncate(self, blocks: torch.Tensor, rank: int) -> Truncation:
        k, small, large = blocks.shape
        if not works(blocks.dtype):
            return SOLVERS["lapack" if rank > 1 else "closed_form" if small == 2 else "power"].truncate(blocks, rank)
        steps = program.blockwise(k, small, large, rank)
        work = np.empty(steps.entries, NUMPY[blocks.dtype])
        tails = run(steps, blocks, work)
        basis, coefficients = _factors(steps, work)
        return Truncation(basis, coefficients, torch.from_numpy(tails))


SOLVERS.register("compiled")(Compiled())


def run(
    steps: Program, values: torch.Tensor, work: np.ndarray, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Do all steps in place of `work`; returns the squared tails that they measured.

    Steps that the compiled loop cannot do, and blocks that it could not prove, are done by torch.
    """
    compiled = loops()
    assert compiled is not None
    flat = values.contiguous().numpy(force=True).reshape(-1)
    tails = np.full(steps.numbers, -1.0)  # nothing is proved yet
    eps = torch.finfo(values.dtype).eps
    # tails are squares of angles: where nothing else is wanted, less will do
    limits = (ANGLES[values.dtype] if steps.entries else TAILS[values.dtype]), eps
    done, last, cuts = 0, len(steps.steps), 0
    while done < last:
        stop = last if progress is None else done + 1
        done = compiled.run(flat, work, tails, steps.table, done, stop, *limits)
        if done < stop:
            step = steps.steps[done]
            more = of_any_rank(values.dtype) if step.split.rank > 1 else None
            if more is None or more(flat, work, tails, steps.table[done], *limits) > 0:
                _by_torch(step, values, torch.from_numpy(work), torch.from_numpy(tails))
            done += 1
        if progress is not None and steps.steps[done - 1].kind == program.CUT:
            cuts += 1
            progress(cuts, sum(step.kind == program.CUT for step in steps.steps))
    return tails


def _by_torch(step: Step, values: torch.Tensor, work: torch.Tensor, tails: torch.Tensor) -> None:
    """One step, or what the compiled loop left of it: blocks whose tail is negative."""
    split = step.split

    def part(place: int, pattern: Pattern) -> torch.Tensor:
        return work[place : place + pattern.nnz].view(pattern.blocks, pattern.b, pattern.c)

    if step.kind in (program.CUT, program.TAILS):
        node = values if step.node == program.VALUES else part(step.node, split.pattern)
        found = tails[step.tails :][: split.regions[0] * split.regions[1]].view(split.grid)
        blocks, solver = split.blocks(node), SOLVERS["power" if split.rank == 1 else "lapack"]
        size = max(1, butterfly.CHUNK_BYTES // (blocks.element_size() * blocks.shape[4:].numel()))
        for index in zip(*(i.split(size) for i in (found < 0).nonzero(as_tuple=True)), strict=True):
            u, v, tail = butterfly.approximate(blocks[index], split.rank, step.weight, solver)
            found[index] = tail if step.kind == program.CUT else tail * (1 - TOLERANCE) ** 2
            if step.kind == program.CUT:
                split.left_blocks(part(step.left, split.left))[index] = u
                split.right_blocks(part(step.right, split.right))[index] = v
        return
    left, right = part(step.left, split.left), part(step.right, split.right)
    if step.kind == program.SIGNS:
        new = butterfly.fix_sign(split, left, right)
    else:
        new = butterfly.carry(split, left, right, "right" if step.kind == program.TO_RIGHT else "left")
    left.copy_(new[0])
    right.copy_(new[1])


def _memory(steps: Program, factors: Sequence[torch.Tensor]) -> np.ndarray:
    work = np.empty(steps.entries, NUMPY[factors[0].dtype])
    for (place, pattern), factor in zip(steps.factors, factors, strict=True):
        work[place : place + pattern.nnz] = factor.numpy(force=True).reshape(-1)
    return work


def _factors(steps: Program, work: np.ndarray) -> list[torch.Tensor]:
    """Each factor in memory of its own."""
    return [torch.from_numpy(work[piece].reshape(shape).copy()) for piece, shape in steps.pieces]
