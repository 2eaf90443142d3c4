"""The hierarchical algorithm: cut the matrix into two factors, then cut the factors, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, reduce
from itertools import product as cartesian
from math import ceil, prod

import torch
from jaxtyping import Float, Num

from ..structure.pattern import Pattern
from ..structure.split import Split
from .solvers import select_solver

CHUNK_BYTES = 1 << 21  # blocks are solved in pieces that stay in the cache of one core


def hierarchical(
    values: Num[torch.Tensor, "blocks b c"],
    patterns: tuple[Pattern, ...],
    order: Sequence[int],
    orthonormalize: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[torch.Tensor], dict[int, Float[torch.Tensor, "_ _"]]]:
    """Factor values for a chainable chain, and per split the squared errors that its truncation made, block by block.

    `values` are the entries of the matrix on the support of the whole chain, shape (a*d, b, c). With
    `orthonormalize`, the factors left of the node being cut have orthonormal block columns and those to the right
    orthonormal block rows, so each error is an error of the whole matrix. Each cut leaves the weight on the side of the
    next cut: orders that peel ends need no QR at all. `progress` is called as progress(done, total) after each cut.

    Cost: O(m n max b) for left-to-right. Source: Algorithm 6.1 of Zheng et al., "Butterfly factorization with error
    guarantees".
    """
    nodes = [(0, len(patterns))]
    data = [values]
    centre = 0  # the node that carries the weight; all others are orthonormal towards it
    tails: dict[int, torch.Tensor] = {}
    for step, s in enumerate(order):
        target = next(i for i, (lo, hi) in enumerate(nodes) if lo < s < hi)
        if orthonormalize:
            centre = _move_centre(data, nodes, patterns, centre, target)
        lo, hi = nodes[target]
        split = split_at(patterns, lo, s, hi)
        rightwards = step + 1 == len(order) or order[step + 1] > s
        weight = ("right" if rightwards else "left") if orthonormalize else "both"
        left, right, tails[s] = cut(split, data[target], weight)
        nodes[target : target + 1] = [(lo, s), (s, hi)]
        data[target : target + 1] = [left, right]
        centre = target + rightwards
        if progress is not None:
            progress(step + 1, len(order))
    return data, tails


@lru_cache(maxsize=4096)
def split_at(patterns: tuple[Pattern, ...], lo: int, s: int, hi: int) -> Split:
    """The cut at s of the product of the factors lo ... hi-1."""
    return Split(reduce(Pattern.__mul__, patterns[lo:s]), reduce(Pattern.__mul__, patterns[s:hi]))


def _move_centre(
    data: list[torch.Tensor], nodes: list[tuple[int, int]], patterns: tuple[Pattern, ...], centre: int, target: int
) -> int:
    """Carry the weight from node `centre` to node `target` by QR, leaving orthonormal nodes behind."""
    while centre != target:
        i = centre if centre < target else centre - 1  # the pair (i, i + 1) that the weight crosses
        (lo, s), (_, hi) = nodes[i], nodes[i + 1]
        split = split_at(patterns, lo, s, hi)
        u, v = split.left_blocks(data[i]), split.right_blocks(data[i + 1])
        if centre < target:
            u, v = orthonormal_columns(u, v)
        else:
            v, u = (x.mH for x in orthonormal_columns(v.mH, u.mH))
        data[i], data[i + 1] = split.left_values(u), split.right_values(v)
        centre += 1 if centre < target else -1
    return centre


def orthonormal_columns(
    u: Num[torch.Tensor, "... rows r"], v: Num[torch.Tensor, "... r columns"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, R v) with u = Q R, block by block; for r = 1 a normalization. The product u v does not change."""
    if u.shape[-1] > 1:
        q, r = torch.linalg.qr(u)
        return q, r @ v
    norm = torch.linalg.vector_norm(u, dim=-2, keepdim=True)
    unit = torch.zeros_like(u)
    unit[..., 0, :] = 1  # a zero block gets some unit vector: its weight is zero
    return torch.where(norm > 0, u / norm, unit), norm.to(v.dtype) * v


def fix_signs(factors: Sequence[torch.Tensor], patterns: tuple[Pattern, ...]) -> list[torch.Tensor]:
    """The same product with the first row of every left block real and non-negative.

    Signs (phases) between two factors are arbitrary; this choice makes results repeatable from one linear algebra
    library to the next, and gives the Hadamard matrix the factors of the textbook.
    """
    fixed = list(factors)
    for i in range(len(fixed) - 1):
        split = split_at(patterns, i, i + 1, i + 2)
        u, v = split.left_blocks(fixed[i]), split.right_blocks(fixed[i + 1])
        phase = torch.sgn(u[..., :1, :])
        phase = torch.where(phase == 0, torch.ones_like(phase), phase)
        fixed[i], fixed[i + 1] = split.left_values(u * phase.conj()), split.right_values(v * phase.mT)
    return fixed


def cut(
    split: Split, values: Num[torch.Tensor, "blocks b c"], weight: str = "right"
) -> tuple[torch.Tensor, torch.Tensor, Float[torch.Tensor, "columns rows"]]:
    """Left values, right values and squared errors (float64) of the best rank-r approximation of every block.

    `weight` says who carries the singular values: "right" (left blocks orthonormal), "left", or "both" (square roots).
    """
    blocks = split.blocks(values)
    *grid, rows, columns = blocks.shape
    r = split.rank
    left = values.new_empty(split.left.blocks, split.left.b, split.left.c)
    right = values.new_empty(split.right.blocks, split.right.b, split.right.c)
    tails = torch.empty(grid, dtype=torch.float64, device=values.device)
    u, v = split.left_blocks(left), split.right_blocks(right)  # views: results are written where they belong
    flip = columns < rows
    sides = min(rows, columns), max(rows, columns)
    solver = select_solver(*sides, r, values.device)
    for index in chunks(blocks):
        piece = blocks[index]
        shape = piece.shape[:4]
        basis, coefficients, tail = solver.truncate((piece.mH if flip else piece).reshape(-1, *sides), r)
        if weight == "both":
            root = torch.linalg.vector_norm(coefficients, dim=2, keepdim=True).sqrt()
            basis = basis * root.mT.to(basis.dtype)
            coefficients = torch.where(root > 0, coefficients / root, 0)
        elif (weight == "left") != flip:  # the coefficients are to be orthonormal instead of the basis
            coefficients, basis = (x.mH for x in orthonormal_columns(coefficients.mH, basis.mH))
        if flip:
            basis, coefficients = coefficients.mH, basis.mH
        u[index] = basis.reshape(*shape, rows, r)
        v[index] = coefficients.reshape(*shape, r, columns)
        tails[index] = tail.reshape(shape)
    return left, right, tails.reshape(split.regions)


def chunks(
    blocks: torch.Tensor, size: int = CHUNK_BYTES, dims: Sequence[int] = (0, 1, 2, 3)
) -> Iterator[tuple[slice, ...]]:
    """Slices of the first four dimensions that cut `blocks` into pieces of about `size` bytes; all of it on a GPU.

    Only the given dimensions are cut.
    """
    sizes = list(blocks.shape[:4])
    limit = max(1, size // (blocks.element_size() * prod(blocks.shape[4:])))
    steps = list(sizes)
    if blocks.device.type == "cpu":
        for dim in dims:
            rest = prod(steps) // steps[dim]
            steps[dim] = max(1, min(steps[dim], limit // rest))
            if prod(steps) <= limit:
                break
    # pieces of equal size: no small remainder at the end
    steps = [ceil(count / ceil(count / step)) for count, step in zip(sizes, steps, strict=True)]
    for corner in cartesian(*(range(0, count, step) for count, step in zip(sizes, steps, strict=True))):
        yield tuple(slice(i, i + step) for i, step in zip(corner, steps, strict=True))
