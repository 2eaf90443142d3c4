"""Split: how a factor pattern falls into independent blocks when it is cut into two chainable factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Num

from .pattern import Pattern


@final
@dataclass(frozen=True)
class Split:
    """The cut of the pattern `left * right` into `left` and `right`, of rank r = left.rank(right).

    A matrix with that pattern is tiled by `blocks` disjoint blocks of rows x columns, and it is a product of the two
    factors exactly when every block has rank <= r. All methods are reshapes and transposes (views where torch can),
    linear and inverse to each other; values of a factor have shape (a*d, b, c).

    Symbols of factorization theory: (a, c1, b2, d) index the blocks, where c1 = a'/a and b2 = d_left/d.
    """

    left: Pattern
    right: Pattern

    @cached_property
    def rank(self) -> int:
        """Rank r of the blocks."""
        return self.left.rank(self.right)

    @cached_property
    def pattern(self) -> Pattern:
        """Pattern of the product."""
        return self.left * self.right

    @cached_property
    def grid(self) -> tuple[int, int, int, int]:
        """Numbers (a, c1, b2, d) that index the blocks."""
        return self.left.a, self.right.a // self.left.a, self.left.d // self.right.d, self.right.d

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of one block."""
        return self.left.b, self.right.c

    @property
    def regions(self) -> tuple[int, int]:
        """The blocks as an array: (column clusters a', row clusters d_left); block (a, c1, b2, d) is [a c1, b2 d]."""
        return self.right.a, self.left.d

    def blocks(self, values: Num[torch.Tensor, "blocks b c"]) -> Num[torch.Tensor, "a c1 b2 d rows columns"]:
        """View of the values of the product pattern, block by block."""
        a, c1, b2, d = self.grid
        return values.reshape(a, d, self.left.b, b2, c1, self.right.c).permute(0, 4, 3, 1, 2, 5)

    def unblock(self, blocks: Num[torch.Tensor, "a c1 b2 d rows columns"]) -> Num[torch.Tensor, "blocks b c"]:
        """Inverse of `blocks`."""
        return blocks.permute(0, 3, 4, 2, 1, 5).reshape(self.pattern.blocks, self.pattern.b, self.pattern.c)

    def left_values(self, u: Num[torch.Tensor, "a c1 b2 d rows r"]) -> Num[torch.Tensor, "blocks b c"]:
        """Values of the left factor from the left parts U of the blocks U V."""
        return u.permute(0, 2, 3, 4, 1, 5).reshape(self.left.blocks, self.left.b, self.left.c)

    def right_values(self, v: Num[torch.Tensor, "a c1 b2 d r columns"]) -> Num[torch.Tensor, "blocks b c"]:
        """Values of the right factor from the right parts V of the blocks U V."""
        return v.permute(0, 1, 3, 4, 2, 5).reshape(self.right.blocks, self.right.b, self.right.c)

    def left_blocks(self, left: Num[torch.Tensor, "blocks b c"]) -> Num[torch.Tensor, "a c1 b2 d rows r"]:
        """Inverse of `left_values`."""
        a, c1, b2, d = self.grid
        return left.reshape(a, b2, d, self.left.b, c1, self.rank).permute(0, 4, 1, 2, 3, 5)

    def right_blocks(self, right: Num[torch.Tensor, "blocks b c"]) -> Num[torch.Tensor, "a c1 b2 d r columns"]:
        """Inverse of `right_values`."""
        a, c1, b2, d = self.grid
        return right.reshape(a, c1, d, self.rank, b2, self.right.c).permute(0, 1, 4, 2, 3, 5)

    def expand(
        self, values: Num[torch.Tensor, "blocks b c"]
    ) -> tuple[Num[torch.Tensor, "blocks1 b1 c1"], Num[torch.Tensor, "blocks2 b2 c2"]]:
        """Values of two factors whose product is given, exactly, for a redundant split (r >= min(rows, columns)).

        One factor holds the blocks, the other identities; both are padded with zeros up to rank r. Raises `ValueError`
        if the split is not redundant: then only an approximation exists.
        """
        blocks = self.blocks(values)
        rows, columns = self.block_shape
        if self.rank < min(rows, columns):
            raise ValueError(
                f"the split {self.left} * {self.right} has rank {self.rank} and blocks of {rows} x {columns}. "
                "Rule: rank >= the smaller side; otherwise use factorize."
            )
        eye = torch.eye(min(rows, columns), dtype=values.dtype, device=values.device)
        eye = eye.expand(*blocks.shape[:4], *eye.shape)
        u, v = (eye, blocks) if rows <= columns else (blocks, eye)
        padding = self.rank - eye.shape[-1]
        u = torch.nn.functional.pad(u, (0, padding))
        v = torch.nn.functional.pad(v, (0, 0, 0, padding))
        return self.left_values(u), self.right_values(v)

    def multiply(
        self, left: Num[torch.Tensor, "blocks1 b1 c1"], right: Num[torch.Tensor, "blocks2 b2 c2"]
    ) -> Num[torch.Tensor, "blocks b c"]:
        """Values of the product of two factors: block by block U V, no approximation. Cost: 2 r nnz(product)."""
        return self.unblock(self.left_blocks(left) @ self.right_blocks(right))
