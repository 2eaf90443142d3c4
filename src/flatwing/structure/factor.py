"""One factor: its values (a*d, b, c) applied to vectors, written into a matrix, and read out of one."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Num

from .pattern import Pattern


def with_batch(pattern: Pattern, batch: int) -> Pattern:
    """The pattern of a batch of factors: a block-diagonal matrix, so the batch multiplies a."""
    return Pattern(pattern.a * batch, pattern.b, pattern.c, pattern.d)


def apply_factor(w: Num[torch.Tensor, "blocks b c"], x: Num[torch.Tensor, "n k"], d: int) -> torch.Tensor:
    """The definition: y[i, :, l] = w[i d + l] x[i, :, l] for every block, as one batched product."""
    blocks, b, c = w.shape
    a, k = blocks // d, x.shape[-1]
    y = w @ x.reshape(a, c, d, k).transpose(1, 2).reshape(blocks, c, k)
    return y.reshape(a, d, b, k).transpose(1, 2).reshape(a * b * d, k)


def embed(values: Num[torch.Tensor, "*batch blocks b c"], pattern: Pattern) -> Num[torch.Tensor, "*batch m n"]:
    """The matrix I_a (x) ... (x) I_d with the given blocks, zeros elsewhere. Cost: m*n memory."""
    a, b, c, d = pattern
    batch = values.shape[:-3]
    full = values.new_zeros(*batch, a, b, d, a, c, d)
    # the diagonals over a and over d are a view of the zeros; writing there is differentiable in `values`
    view = full.diagonal(dim1=-6, dim2=-3).diagonal(dim1=-4, dim2=-2)  # (*batch, b, c, a, d)
    view.copy_(values.reshape(*batch, a, d, b, c).movedim((-4, -3), (-2, -1)))
    return full.reshape(*batch, *pattern.shape)


def extract(matrix: Num[torch.Tensor, "*batch m n"], pattern: Pattern) -> Num[torch.Tensor, "*batch blocks b c"]:
    """The entries of a matrix on the support of a pattern, as values (a*d, b, c): the orthogonal projection."""
    a, b, c, d = pattern
    batch = matrix.shape[:-2]
    grid = matrix.reshape(*batch, a, b, d, a, c, d).diagonal(dim1=-6, dim2=-3).diagonal(dim1=-4, dim2=-2)
    return cast(torch.Tensor, grid.movedim((-2, -1), (-4, -3)).reshape(*batch, a * d, b, c))


def without_support(matrix: Num[torch.Tensor, "*batch m n"], pattern: Pattern) -> Num[torch.Tensor, "*batch m n"]:
    """The matrix with zeros on the support of a pattern: what no factor of that pattern can hold."""
    a, b, c, d = pattern
    rest = matrix.clone()
    grid = rest.view(*matrix.shape[:-2], a, b, d, a, c, d)
    grid.diagonal(dim1=-6, dim2=-3).diagonal(dim1=-4, dim2=-2).zero_()
    return rest
