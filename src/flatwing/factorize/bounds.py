"""What no product of a chain can beat: tails of the matrix at every split, and the tree bound made of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Num

from ..structure.split import Split
from .butterfly import chunks
from .compiled import split_tails, supports, works
from .compiled import tree_bound as compiled_tree_bound
from .solvers import TOLERANCE, select_solver, top_vector
from .story import Story

STRIP_BYTES = 1 << 21  # larger than what `cut` uses: many small Gram matrices are made of one strip


def tree_bound(tails: Story) -> Float[np.ndarray, "columns rows"]:
    """Squared lower bound on the error of any product, from the squared tails of neighbouring splits, per region.

    A region (column cluster of the first split, row cluster of the last) is tiled by the blocks of every split, so its
    error is at least what either half of a bracketing leaves; the larger of the two counts, recursively. Result: shape
    (columns of the first split, rows of the last), to be summed.
    """
    if works(torch.float64):
        return compiled_tree_bound(tails)
    level = list(tails)
    while len(level) > 1:
        # level[i] covers the splits i ... i + width - 1; join each with its right neighbour
        joined = []
        for lower, upper in pairwise(level):
            columns, rows = lower.shape[0], upper.shape[1]
            by_rows = lower.reshape(columns, -1, rows).sum(1)
            by_columns = upper.reshape(columns, -1, rows).sum(1)
            joined.append(np.maximum(by_rows, by_columns))
        level = joined
    return level[0]


def matrix_tails(
    values: Num[torch.Tensor, "blocks b c"], splits: Sequence[Split], careful: bool
) -> list[Float[torch.Tensor, "_ _"]]:
    """Squared tails of every block of every split of the matrix: never more than the truth, up to rounding.

    With `careful`, each split is solved on its own and the residual measured: right for tails of any size, slow.
    Otherwise all splits share two Gram matrices in float64 (the rows of one split contain the rows of the splits before
    it, the columns those of the splits after it), which loses tails below about 1e-12 of the energy.
    """
    if careful:
        return [tails_by_residual(values, split) for split in splits]
    tails = [torch.empty(split.regions, dtype=torch.float64, device=values.device) for split in splits]
    wide = [i for i, split in enumerate(splits) if split.block_shape[0] <= split.block_shape[1]]
    tall = [i for i in range(len(splits)) if i not in wide]
    _tails_by_gram(values, splits, wide[::-1], tails, rows=True)  # from the longest rows downwards
    _tails_by_gram(values, splits, tall, tails, rows=False)
    return tails


def tails_by_residual(values: Num[torch.Tensor, "blocks b c"], split: Split) -> Float[torch.Tensor, "columns rows"]:
    """Squared tails of every block of one split, each measured as the residual of a checked solver."""
    if split.rank == 1 and supports(values):
        return torch.from_numpy(split_tails(values, [split])[1])
    blocks = split.blocks(values)
    rows, columns = split.block_shape
    tails = torch.empty(blocks.shape[:4], dtype=torch.float64, device=values.device)
    solver = select_solver(min(rows, columns), max(rows, columns), split.rank, values.device)
    for index in chunks(blocks):
        piece = blocks[index].reshape(-1, rows, columns)
        tail = solver.truncate(piece.mH if columns < rows else piece, split.rank).tail
        tails[index] = tail.reshape(tails[index].shape)
    return tails.reshape(split.regions)


def _tails_by_gram(
    values: torch.Tensor, splits: Sequence[Split], chosen: list[int], tails: list[torch.Tensor], rows: bool
) -> None:
    """Fill `tails` for the `chosen` splits, ordered so that each Gram matrix contains the next one.

    Works in strips that hold whole blocks of all chosen splits: some row clusters with all columns, or the reverse.
    """
    if not chosen:
        return
    blocks = splits[chosen[0]].blocks(values)
    double = torch.promote_types(values.dtype, torch.float64)
    a, c1, b2, d = blocks.shape[:4]
    for strip in chunks(blocks, STRIP_BYTES, dims=(0, 2, 3) if rows else (0, 1, 3)):
        piece = blocks[strip].to(double)
        gram = piece @ piece.mH if rows else piece.mH @ piece
        for i in chosen:
            _, columns, row_clusters, _ = splits[i].grid
            if rows:
                gram = _inner_row_gram(gram, columns, splits[i].left.b)
                view = tails[i].view(a, columns, row_clusters // b2, b2, d)[strip[0], :, :, strip[2], strip[3]]
            else:
                gram = _inner_column_gram(gram, row_clusters, splits[i].right.c)
                view = tails[i].view(a, c1, columns // c1, row_clusters, d)[strip[0], strip[1], :, :, strip[3]]
            tail = gram_tails(gram.reshape(-1, *gram.shape[-2:]), splits[i].rank)
            view.copy_(tail.reshape(view.shape))


def _inner_row_gram(gram: torch.Tensor, columns: int, size: int) -> torch.Tensor:
    """Gram matrices (a, columns, rows, d, size, size) of an earlier split, inside those of a later one.

    The earlier blocks take every rho-th row and pi neighbouring column clusters.
    """
    a, c, b, d, m, _ = gram.shape
    rho, pi = m // size, c // columns
    inner = gram.reshape(a, columns, pi, b, d, size, rho, size, rho).diagonal(dim1=6, dim2=8)
    return inner.sum(2).movedim(-1, 2).reshape(a, columns, rho * b, d, size, size)


def _inner_column_gram(gram: torch.Tensor, rows: int, size: int) -> torch.Tensor:
    """Gram matrices (a, columns, rows, d, size, size) of a later split, inside those of an earlier one.

    The later blocks take pieces of neighbouring columns and every row of several row clusters.
    """
    a, c, b, d, n, _ = gram.shape
    pi, rho = n // size, b // rows
    inner = gram.reshape(a, c, rho, rows, d, pi, size, pi, size).diagonal(dim1=5, dim2=7)
    return inner.sum(2).movedim(-1, 2).reshape(a, c * pi, rows, d, size, size)


def gram_tails(gram: Num[torch.Tensor, "k s s"], rank: int) -> Float[torch.Tensor, " k"]:
    """Sum of all but the `rank` largest eigenvalues of each Gram matrix, never over-estimated beyond rounding.

    For rank one a vector from power iteration is enough where it is proved good enough; the rest goes to LAPACK.
    """
    total = gram.diagonal(dim1=1, dim2=2).real.sum(1)
    size = gram.shape[-1]
    if rank >= size:
        return torch.zeros_like(total)
    if rank > 1:
        return gram_tails_by_eigenvalues(gram, rank)
    if size == 2:
        difference, g12 = (gram[:, 0, 0] - gram[:, 1, 1]).real, gram[:, 0, 1].abs()
        return (0.5 * (total - torch.sqrt(difference.square() + 4 * g12.square()))).clamp_min(0)
    _, theta, rest, missing = top_vector(gram, TOLERANCE)
    tails = (rest - missing).clamp_min(0)
    unsolved = missing > TOLERANCE * rest + torch.finfo(torch.float64).eps * theta
    if bool(unsolved.any()):
        again = unsolved.nonzero()[:, 0]
        tails[again] = gram_tails_by_eigenvalues(gram[again], rank)
    return tails


def gram_tails_by_eigenvalues(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """The same by LAPACK alone."""
    return torch.linalg.eigvalsh(gram)[:, : gram.shape[-1] - rank].clamp_min(0).sum(1)
