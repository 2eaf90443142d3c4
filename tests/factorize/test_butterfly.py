"""The hierarchical algorithm on values: what each cut leaves, and that moving the weight changes no product."""

from functools import reduce
from math import sqrt
from random import Random

import pytest
import torch

from cases import by_projections, random_chain, random_matrix
from flatwing import Chain
from flatwing.factorize import butterfly
from flatwing.factorize.butterfly import chunks, cut, hierarchical, orthonormal_columns
from flatwing.structure.factor import extract
from flatwing.structure.split import Split
from strategies import dense_factor

DTYPES = [torch.float64, torch.complex128]


def irredundant(count: int) -> list[Chain]:
    rng, found = Random(0), []
    while len(found) < count:
        chain = random_chain(rng).reduced()
        if len(chain) > 2:
            found.append(chain)
    return found


def run(A: torch.Tensor, chain: Chain, order: list[int], orthonormalize: bool = True) -> tuple[list, dict]:
    return hierarchical(extract(A, chain.pattern), tuple(chain), order, orthonormalize)


def dense(factors: list[torch.Tensor], chain: Chain) -> torch.Tensor:
    return reduce(torch.matmul, [dense_factor(w, p) for w, p in zip(factors, chain, strict=True)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_order_is_a_sequence_of_projections(dtype: torch.dtype) -> None:
    rng = Random(1)
    for chain in irredundant(20):
        A = random_matrix(chain, "gaussian", dtype)
        order = rng.sample(range(1, len(chain)), len(chain) - 1)
        factors, tails = run(A, chain, order)
        expected, steps = by_projections(A, chain, order)
        torch.testing.assert_close(dense(factors, chain), expected, rtol=1e-6, atol=1e-6)
        assert list(tails) == order
        for s, step in zip(order, steps, strict=True):
            assert tails[s].shape == (chain[s].a, chain[s - 1].d)
            assert float(tails[s].sum().sqrt()) == pytest.approx(step, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_of_peeled_ends_add_up(dtype: torch.dtype) -> None:
    for chain in irredundant(20):
        A = random_matrix(chain, "gaussian", dtype)
        inside = extract(A, chain.pattern)
        splits = list(range(1, len(chain)))
        for order in (splits, splits[::-1], [1, *splits[:0:-1]]):
            factors, tails = run(A, chain, order)
            whole = dense(factors, chain)
            error = float((inside - extract(whole, chain.pattern)).norm() ** 2)
            assert sum(float(t.sum()) for t in tails.values()) == pytest.approx(error, rel=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_left_to_right_leaves_orthonormal_block_columns(dtype: torch.dtype) -> None:
    for chain in irredundant(10):
        A = random_matrix(chain, "gaussian", dtype)
        splits = list(range(1, len(chain)))
        factors, _ = run(A, chain, splits)
        for s in splits:
            u = Split(chain[s - 1], chain[s]).left_blocks(factors[s - 1])
            torch.testing.assert_close(u.mH @ u, torch.eye(u.shape[-1], dtype=dtype).expand(*u.shape[:4], -1, -1))
        factors, _ = run(A, chain, splits[::-1])
        for s in splits[1:]:  # the last cut leaves the weight on its right
            v = Split(chain[s - 1], chain[s]).right_blocks(factors[s])
            torch.testing.assert_close(v @ v.mH, torch.eye(v.shape[-2], dtype=dtype).expand(*v.shape[:4], -1, -1))


def test_without_orthonormalization_balanced_orders_differ() -> None:
    chain = Chain.butterfly(16)
    A = random_matrix(chain, "scaled")
    with_qr, without = (dense(run(A, chain, [2, 1, 3], ortho)[0], chain) for ortho in (True, False))
    assert float((with_qr - without).norm() / A.norm()) > 1e-3


@pytest.mark.parametrize("weight", ["right", "left", "both"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize(
    "chain",
    [Chain.from_radices((5, 2), (2, 3), (2,)), Chain.from_radices((2, 3), (3, 7), (1,), 2, 2), Chain.monarch(9, 9, 3)],
    ids=str,
)
def test_a_cut_is_the_best_of_its_rank(chain: Chain, dtype: torch.dtype, weight: str) -> None:
    split = Split(*chain)
    values = torch.randn(chain.pattern.blocks, chain.pattern.b, chain.pattern.c, dtype=dtype)
    left, right, tails = cut(split, values, weight)
    u, v, blocks = split.left_blocks(left), split.right_blocks(right), split.blocks(values)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-7, "atol": 1e-7}
    U, sigma, Vh = torch.linalg.svd(blocks, full_matrices=False)
    r = split.rank
    torch.testing.assert_close(u @ v, (U[..., :r] * sigma[..., None, :r]) @ Vh[..., :r, :], **close)
    best = sigma[..., r:].double().square().sum(-1).reshape(split.regions)
    torch.testing.assert_close(tails, best, **close)
    gram_u, gram_v = u.mH @ u, v @ v.mH
    eye = torch.eye(r, dtype=dtype).expand_as(gram_u)
    if weight == "right":
        torch.testing.assert_close(gram_u, eye, **close)
    elif weight == "left":
        torch.testing.assert_close(gram_v, eye, **close)
    else:  # both sides carry the root of every singular value
        torch.testing.assert_close(gram_u.diagonal(dim1=-2, dim2=-1).real, sigma[..., :r], **close)
        torch.testing.assert_close(gram_v.diagonal(dim1=-2, dim2=-1).real, sigma[..., :r], **close)


@pytest.mark.parametrize("weight", ["right", "left", "both"])
def test_cutting_zeros(weight: str) -> None:
    for chain in (Chain.monarch(9, 9, 3), Chain.from_radices((5, 2), (2, 5), (2,))):
        pattern = chain.pattern
        left, right, tails = cut(Split(*chain), torch.zeros(pattern.blocks, pattern.b, pattern.c), weight)
        assert bool(torch.isfinite(left).all() and torch.isfinite(right).all())
        assert not bool(dense([left, right], chain).any())
        assert not bool(tails.any())


def test_small_pieces_give_the_same_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.from_radices((4, 6), (6, 5), (2,), a1=2, dL=3)
    values = torch.randn(chain.pattern.blocks, chain.pattern.b, chain.pattern.c, dtype=torch.float64)
    whole = cut(Split(*chain), values)
    monkeypatch.setattr(butterfly, "chunks", lambda blocks: chunks(blocks, 300))
    pieces = cut(Split(*chain), values)
    torch.testing.assert_close(dense(list(whole[:2]), chain), dense(list(pieces[:2]), chain))
    torch.testing.assert_close(whole[2], pieces[2])


@pytest.mark.parametrize("dims", [(0, 1, 2, 3), (0, 2, 3), (3,)])
@pytest.mark.parametrize("size", [1, 100, 1000, 1 << 20])
def test_chunks_cover_everything_once(size: int, dims: tuple[int, ...]) -> None:
    blocks = torch.zeros(3, 2, 5, 4, 2, 3)
    pieces = list(chunks(blocks, size, dims))
    for index in pieces:
        blocks[index] += 1
        kept = [d for d in range(4) if d not in dims]
        assert all(blocks[index].shape[d] == blocks.shape[d] for d in kept)
    assert bool((blocks == 1).all())
    if size == 100 and len(dims) == 4:
        assert all(blocks[index].numel() * 4 <= 100 for index in pieces)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_weight_moves_and_the_product_stays(rank: int, dtype: torch.dtype) -> None:
    u, v = torch.randn(7, 5, rank, dtype=dtype), torch.randn(7, rank, 4, dtype=dtype)
    u[0], u[1, :, 0] = 0, 0  # a zero block, and one without full rank
    q, rest = orthonormal_columns(u, v)
    eps = torch.finfo(dtype).eps
    assert float((q.mH @ q - torch.eye(rank)).abs().max()) < 16 * eps
    torch.testing.assert_close(q @ rest, u @ v, rtol=32 * eps, atol=32 * eps)


def test_progress_counts_cuts() -> None:
    chain, calls = Chain.butterfly(16), []
    values = extract(random_matrix(chain, "gaussian"), chain.pattern)
    hierarchical(values, tuple(chain), [2, 1, 3], True, lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_errors_without_orthonormalization_can_pass_the_bound() -> None:
    """Why the certificate promises nothing there: a scaled last factor makes an early cut lose what matters later."""
    worst = 0.0
    for seed in range(40):
        torch.manual_seed(seed)
        chain = Chain.butterfly(16)
        A = random_matrix(chain, "scaled")
        plain, good = (dense(run(A, chain, [1, 2, 3], ortho)[0], chain) for ortho in (False, True))
        worst = max(worst, float((A - plain).norm() / (A - good).norm()))
    assert worst > 1.05
    assert worst < sqrt(len(chain)) * 10
