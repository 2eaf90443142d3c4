"""Matrices and chains for the tests of factorization, and the definitions that the fast code is compared with."""

from collections.abc import Iterator, Sequence
from math import prod
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from flatwing import Chain, SparseProduct
from flatwing.structure import transforms

KINDS = ("gaussian", "sparse", "spiky", "scaled", "noisy product")


def random_chain(rng: Random, max_factors: int = 5, max_size: int = 72) -> Chain:
    """Any chainable chain: rectangular, ranks up to 3, a1 > 1 and dL > 1 included, redundant or not."""
    while True:
        length = rng.randint(1, max_factors)
        radices, ranks = rng.choice([((1, 2, 2, 3), (1, 2, 3)), ((2, 2, 2, 3), (1,)), ((2, 2, 3, 4), (1, 1, 2, 3))])
        q, p = ([rng.choice(radices) for _ in range(length)] for _ in range(2))
        a1, dL = rng.choice([1, 1, 1, 2]), rng.choice([1, 1, 1, 2, 3])
        if 4 <= a1 * dL * max(prod(q), prod(p)) <= max_size:
            return Chain.from_radices(q, p, [rng.choice(ranks) for _ in range(length - 1)], a1, dL)


def random_matrix(chain: Chain, kind: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A matrix of one of the `KINDS`, from the global generator."""
    A = torch.randn(chain.shape, dtype=dtype)
    if kind == "sparse":
        return A * (torch.rand(chain.shape) < 0.3)
    if kind == "spiky":
        return A**3
    if kind == "scaled":
        rows, columns = (torch.randn(n, 1).exp().square() for n in chain.shape)
        return rows * A * columns.mT
    if kind == "noisy product":
        return noisy(transforms.random_product(chain, dtype=dtype).dense(), 10 ** -(6 * float(torch.rand(()))))
    return A


def noisy(product: torch.Tensor, level: float) -> torch.Tensor:
    """The matrix plus Gaussian noise whose Frobenius norm is `level` times that of the matrix."""
    noise = torch.randn_like(product)
    return product + level * product.norm() / noise.norm() * noise


def by_formula(name: str, m: int, n: int) -> torch.Tensor:
    """Deterministic matrices of the regression tables."""
    i, j = torch.meshgrid(torch.arange(m).double(), torch.arange(n).double(), indexing="ij")
    return {
        "hilbert": 1 / (i + j + 1),
        "sin": torch.sin(1 + i + 2 * j + i * j / 7),
        "invabs": 1 / (1 + (i / m - j / n).abs()),
    }[name]


def relative_error(A: torch.Tensor, product: SparseProduct) -> float:
    """||A - product|| / ||A|| of the dense matrices, in double precision and safe from over- and underflow."""
    double = torch.promote_types(A.dtype, torch.float64)
    A, dense = A.detach().to(double), product.dense().to(double)
    size = A.abs().max()
    return float((A / size - dense / size).norm() / (A / size).norm()) if size > 0 else float(dense.norm())


class Block(NamedTuple):
    """One block of a split by its definition: its place among the regions, its rows and its columns."""

    column_cluster: int
    row_cluster: int
    rows: torch.Tensor
    columns: torch.Tensor

    def of(self, A: torch.Tensor) -> torch.Tensor:
        return A[..., self.rows[:, None], self.columns]


def explicit_blocks(chain: Chain, s: int) -> Iterator[Block]:
    """The blocks of split s in the matrix, index by index."""
    left, right = chain[:s].pattern, chain[s:].pattern
    c1, d = right.a // left.a, right.d
    for i in range(right.a):
        for l in range(left.d):  # noqa: E741 (the symbol of the definition)
            rows = [(i // c1) * left.b * left.d + t * left.d + l for t in range(left.b)]
            columns = [i * right.c * d + t * d + l % d for t in range(right.c)]
            yield Block(i, l, torch.tensor(rows), torch.tensor(columns))


def explicit_tails(A: torch.Tensor, chain: Chain) -> list[np.ndarray]:
    """Squared tails of every block of every split, by the dense SVD: arrays (column clusters, row clusters)."""
    found = []
    for s in range(1, len(chain)):
        tails = np.zeros((chain[s].a, chain[s - 1].d))
        for block in explicit_blocks(chain, s):
            sigma = torch.linalg.svdvals(block.of(A))
            tails[block.column_cluster, block.row_cluster] = float(sigma[chain.ranks[s - 1] :].square().sum())
        found.append(tails)
    return found


def explicit_tree_bound(chain: Chain, tails: Sequence[np.ndarray]) -> float:
    """The tree bound by its recursion, region by region."""

    def bound(s: int, t: int, i: int, l: int) -> float:  # noqa: E741
        if s == t:
            return float(tails[s - 1][i, l])
        d_t, a_next = chain[t - 1].d, chain[s + 1].a
        by_rows = sum(bound(s, t - 1, i, k) for k in range(chain[t - 2].d) if k % d_t == l)
        by_columns = sum(bound(s + 1, t, k, l) for k in range(a_next) if k // (a_next // chain[s].a) == i)
        return max(by_rows, by_columns)

    last = len(chain) - 1
    return sum(bound(1, last, i, k) for i in range(chain[1].a) for k in range(chain[last - 1].d))


def support(chain: Chain) -> torch.Tensor:
    """Ones where products of the chain may be non-zero."""
    a, b, c, d = chain.pattern
    return torch.kron(torch.kron(torch.eye(a), torch.ones(b, c)), torch.eye(d))


def by_projections(A: torch.Tensor, chain: Chain, order: Sequence[int]) -> tuple[torch.Tensor, list[float]]:
    """What the orthonormalized algorithm computes, on the dense matrix, and the error of each step.

    Each cut replaces every block of its split by the nearest block of the rank of the split.
    """
    current, steps = A * support(chain), []
    for s in order:
        following = current.clone()
        for block in explicit_blocks(chain, s):
            u, sigma, vh = torch.linalg.svd(block.of(current), full_matrices=False)
            r = chain.ranks[s - 1]
            following[block.rows[:, None], block.columns] = (u[:, :r] * sigma[:r]) @ vh[:r]
        steps.append(float((following - current).norm()))
        current = following
    return current, steps
