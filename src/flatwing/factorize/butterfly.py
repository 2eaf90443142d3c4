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
from .order import schedule
from .solvers import BlockSolver, energy, select_solver

NO_SIGN = 1.2e-38  # an entry that has no sign (phase) worth fixing: the reciprocal of a smaller one is infinite
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
    data = {(0, len(patterns)): values}
    tails: dict[int, torch.Tensor] = {}
    for move in schedule(len(patterns), order, orthonormalize):
        lo, s, hi = move.nodes
        split = split_at(patterns, lo, s, hi)
        if move.cut:
            data[lo, s], data[s, hi], tails[s] = cut(split, data.pop((lo, hi)), move.weight)
            if progress is not None:
                progress(len(tails), len(order))
        else:
            data[lo, s], data[s, hi] = carry(split, data[lo, s], data[s, hi], move.weight)
    return [data[i, i + 1] for i in range(len(patterns))], tails


@lru_cache(maxsize=4096)
def split_at(patterns: tuple[Pattern, ...], lo: int, s: int, hi: int) -> Split:
    """The cut at s of the product of the factors lo ... hi-1."""
    return Split(reduce(Pattern.__mul__, patterns[lo:s]), reduce(Pattern.__mul__, patterns[s:hi]))


@lru_cache(maxsize=256)
def splits_of(patterns: tuple[Pattern, ...]) -> tuple[Split, ...]:
    """The cuts of the whole chain at 1, 2, ..."""
    return tuple(split_at(patterns, 0, s, len(patterns)) for s in range(1, len(patterns)))


def carry(
    split: Split, left: Num[torch.Tensor, "blocks1 b1 c1"], right: Num[torch.Tensor, "blocks2 b2 c2"], weight: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product of two neighbours with the weight on the "right" or "left", the other one orthonormal: by QR."""
    u, v = split.left_blocks(left), split.right_blocks(right)
    if weight == "right":
        u, v = orthonormal_columns(u, v)
    else:
        v, u = (x.mH for x in orthonormal_columns(v.mH, u.mH))
    return split.left_values(u), split.right_values(v)


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
        fixed[i], fixed[i + 1] = fix_sign(split_at(patterns, i, i + 1, i + 2), fixed[i], fixed[i + 1])
    return fixed


def fix_sign(
    split: Split, left: Num[torch.Tensor, "blocks1 b1 c1"], right: Num[torch.Tensor, "blocks2 b2 c2"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for one pair of neighbours."""
    u, v = split.left_blocks(left), split.right_blocks(right)
    size = u[..., :1, :].abs()
    phase = torch.where(size > NO_SIGN, u[..., :1, :] / size, 1)
    return split.left_values(u * phase.conj()), split.right_values(v * phase.mT)


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
    for index in chunks(blocks):
        piece = blocks[index]
        shape = piece.shape[:4]
        basis, coefficients, tail = approximate(piece.reshape(-1, rows, columns), r, weight)
        u[index] = basis.reshape(*shape, rows, r)
        v[index] = coefficients.reshape(*shape, r, columns)
        tails[index] = tail.reshape(shape)
    return left, right, tails.reshape(split.regions)


def approximate(
    blocks: Num[torch.Tensor, "k rows columns"], rank: int, weight: str, solver: BlockSolver | None = None
) -> tuple[torch.Tensor, torch.Tensor, Float[torch.Tensor, " k"]]:
    """Left parts (k, rows, r), right parts (k, r, columns) and squared errors; `weight` as in `cut`."""
    rows, columns = blocks.shape[1:]
    flip = columns < rows
    if solver is None:
        solver = select_solver(min(rows, columns), max(rows, columns), rank, blocks.device)
    basis, coefficients, tail = solver.truncate(blocks.mH if flip else blocks, rank)
    if weight == "both":
        root = torch.linalg.vector_norm(coefficients, dim=2, keepdim=True).sqrt()
        basis = basis * root.mT.to(basis.dtype)
        coefficients = torch.where(root > 0, coefficients / root, 0)
    elif (weight == "left") != flip:  # the coefficients are to be orthonormal instead of the basis
        coefficients, basis = (x.mH for x in orthonormal_columns(coefficients.mH, basis.mH))
    return (coefficients.mH, basis.mH, tail) if flip else (basis, coefficients, tail)


def residual(
    values: Num[torch.Tensor, "blocks b c"], patterns: tuple[Pattern, ...], factors: Sequence[torch.Tensor]
) -> Float[torch.Tensor, "columns rows"]:
    """Squared error (float64) of the product of two or more factors, block by block of the cut in the middle.

    Cost: O(m n r), the last product is never stored.
    """
    middle = len(factors) // 2
    split = split_at(patterns, 0, middle, len(patterns))
    u = split.left_blocks(fuse(factors[:middle], patterns[:middle]))
    v = split.right_blocks(fuse(factors[middle:], patterns[middle:]))
    blocks = split.blocks(values)
    regions = torch.empty(blocks.shape[:4], dtype=torch.float64, device=blocks.device)
    for index in chunks(blocks):
        piece = (blocks[index] - u[index] @ v[index]).flatten(0, 3)
        regions[index] = energy(piece).reshape(regions[index].shape)
    return regions.reshape(split.regions)


def fuse(factors: Sequence[torch.Tensor], patterns: tuple[Pattern, ...]) -> torch.Tensor:
    """Values of a product of neighbours, as a balanced tree."""
    if len(factors) == 1:
        return factors[0]
    middle = len(factors) // 2
    split = split_at(patterns, 0, middle, len(patterns))
    return split.multiply(fuse(factors[:middle], patterns[:middle]), fuse(factors[middle:], patterns[middle:]))


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
