"""Tails at every rank of every cut that a matrix allows: what `choose` searches over."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import final

import torch
from jaxtyping import Float, Num

from ..core import divisors, threads_for
from ..structure import Pattern
from ..structure.split import Split
from .butterfly import chunks


@final
@dataclass(frozen=True)
class Cut:
    """A place where a chain of an m x n matrix may be cut, and what each rank there would lose.

    `rows` and `columns` are the products of the radices q and p before the cut; the matrix falls into
    columns * m / rows blocks of rows x (n / columns).
    """

    rows: int
    columns: int
    tails: Float[torch.Tensor, " ranks"]
    """Squared error when every block keeps rank 1, 2, ..., min(rows, n / columns); relative, float64."""


def places(m: int, n: int, work: float) -> list[tuple[int, int]]:
    """Cuts (rows, columns) to consider, at a cost of about `work` multiplications.

    The straight ways come first: rows and columns grow together (butterflies), or against each other (block low rank,
    from the low-rank matrix to the block-diagonal ends). What lies between follows as far as the work allows.
    """
    every = [(q, p) for q in divisors(m) for p in divisors(n) if q > 1 and p < n]

    def bend(place: tuple[int, int]) -> tuple[float, float]:
        x = log(place[0]) / log(m)
        y = log(place[1]) / log(n) if n > 1 else 0.0
        return min(abs(x - y), abs(x - (1 - y))), abs(x - 0.5) + abs(y - 0.5)

    chosen, spent = [], 0.0
    for q, p in sorted(every, key=lambda place: (bend(place), place)):
        cost = m * n * min(q, n // p) * 8.0
        if not chosen or spent + cost <= work:
            chosen.append((q, p))
            spent += cost
    return sorted(chosen)


def measure(matrices: Num[torch.Tensor, "k m n"], rows: int, columns: int, precise: bool) -> Cut:
    """Singular value tails of all blocks of one cut, summed over matrices that share it.

    `precise` takes singular values; otherwise the eigenvalues of float64 Gram matrices serve, which is several times
    faster and right down to a relative error of about 1e-7.
    """
    k, m, n = matrices.shape
    split = Split(Pattern(k, rows, columns, m // rows), Pattern(k * columns, m // rows, n // columns, 1))
    blocks = split.blocks(matrices)
    small = min(split.block_shape)
    double = torch.promote_types(matrices.dtype, torch.float64)
    energies = torch.zeros(small, dtype=torch.float64, device=matrices.device)
    with threads_for(small):
        for index in chunks(blocks):
            piece = blocks[index].reshape(-1, *split.block_shape).to(double)
            if precise:
                energies += torch.linalg.svdvals(piece).square().sum(0)
            else:
                piece = piece if split.block_shape[0] <= split.block_shape[1] else piece.mH
                energies += torch.linalg.eigvalsh(piece @ piece.mH).flip(-1).clamp_min(0).sum(0)
    # sums from the smallest up: small tails keep their digits
    tails = energies.flip(0).cumsum(0).flip(0)
    return Cut(rows, columns, torch.cat([tails[1:], tails.new_zeros(1)]))
