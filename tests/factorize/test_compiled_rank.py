"""Blocks of rank r > 1 in compiled loops against the singular value decomposition and against torch."""

from typing import Any

import numpy as np
import pytest
import torch

from flatwing import Chain, factorize
from flatwing.factorize import butterfly, compiled, compiled_rank, compiled_rank_steps, program
from flatwing.factorize.solvers import SOLVERS
from flatwing.structure import transforms

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
WIDE |= {dtype: dtype for dtype in DTYPES[1::2]}
SHAPES = [(3, 4, 2), (4, 4, 2), (4, 300, 2), (8, 40, 4), (16, 16, 5), (20, 24, 3), (65, 70, 2)]


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> np.ndarray:
    return torch.randn(*shape, dtype=dtype).numpy()


def solve(blocks: torch.Tensor, rank: int) -> tuple[np.ndarray, list[torch.Tensor]]:
    """What the loops alone find: squared tails, negative where nothing was proved, and the parts of each block."""
    steps = program.blockwise(*blocks.shape, rank)
    work, tails = np.empty(steps.entries, compiled.NUMPY[blocks.dtype]), np.empty(steps.numbers)
    limits = compiled.ANGLES[blocks.dtype], torch.finfo(blocks.dtype).eps
    flat = blocks.resolve_conj().contiguous().numpy().reshape(-1)
    resisted = compiled_rank_steps.run(flat, work, tails, steps.table[0], *limits)
    assert resisted == (tails < 0).sum()
    parts = [
        torch.from_numpy(work[place : place + p.nnz].reshape(p.blocks, p.b, p.c)).to(WIDE[blocks.dtype])
        for place, p in steps.factors
    ]
    return tails, parts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_become_orthonormal_and_the_product_stays(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    for spoil in (
        "nothing",
        "a zero row",
        "two equal rows",
        "multiples",
        "nearly dependent",
        "all zero",
        "huge and tiny",
    ):
        x, y = numbers(4, 6, dtype=dtype), numbers(4, 5, dtype=dtype)
        if spoil == "a zero row":
            x[1] = 0
        elif spoil == "two equal rows":
            x[2] = x[0]
        elif spoil == "multiples":
            x[1:] = np.outer([1.5, -0.3, 1e-3], x[0])
        elif spoil == "nearly dependent":
            x[3] = x[0] - x[1] + 4 * eps * x[3]
        elif spoil == "all zero":
            x[:] = 0
        elif spoil == "huge and tiny":
            x[0], x[3] = x[0] * 1e15, x[3] * 1e-15
        before = x.T @ y
        compiled_rank.orthonormalize(x, y)
        assert np.abs(x @ x.conj().T - np.eye(4)).max() <= 16 * eps, spoil
        assert np.abs(x.T @ y - before).max() <= 64 * eps * max(np.abs(before).max(), 1e-30), spoil


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("kind", ["random", "graded", "tied", "rank one", "zero", "sorted already"])
def test_eigenvalues_come_in_order(kind: str, dtype: Any) -> None:
    rows = torch.randn(9, 12, dtype=torch.complex128 if dtype is np.complex128 else torch.float64)
    rows = {
        "random": rows,
        "graded": rows * 10.0 ** -torch.arange(9.0, dtype=torch.float64)[:, None],
        "tied": torch.linalg.qr(rows.mH).Q.mH,
        "rank one": rows[:, :1] @ rows[:1],
        "zero": 0 * rows,
        "sorted already": torch.diag_embed(torch.arange(9, 0, -1)).to(rows.dtype),
    }[kind]
    gram = (rows @ rows.mH).numpy()
    a, v = gram.copy(), np.empty_like(gram)
    compiled_rank.jacobi(a, v, 2.2e-16, 2.2e-16 * gram.trace().real)
    scale = 1e-14 * max(gram.trace().real, 1e-300)
    assert np.abs(np.diag(a) - np.linalg.eigvalsh(gram)[::-1]).max() <= scale
    assert np.abs(v @ v.conj().T - np.eye(9)).max() <= 1e-14
    assert np.abs(gram - (v.T * np.diag(a)) @ v.conj()).max() <= 8 * scale


def test_small_eigenvalues_of_graded_matrices_keep_their_digits() -> None:
    scales = 10.0 ** -np.arange(6.0)
    inner = np.eye(6) + 0.1 * np.ones((6, 6))
    a, v = scales[:, None] * inner * scales, np.empty((6, 6))
    with_digits = 1 / np.linalg.eigvalsh(np.linalg.inv(inner) / scales[:, None] / scales)
    compiled_rank.jacobi(a, v, 2.2e-16, 0.0)
    np.testing.assert_allclose(np.diag(a)[-1], with_digits[-1], rtol=1e-13)


@pytest.mark.parametrize("angle", [1e-6, 1e-2, 0.3])
def test_no_space_captures_more_than_the_gain_says(angle: float) -> None:
    """The bound on random matrices and spaces, some far from the best: it holds, and near the optimum it is close."""
    for _ in range(200):
        values = torch.tensor([5.0, 3.0, 1.0, 0.8, 0.1, 0.1], dtype=torch.float64) * (0.5 + torch.rand(6).double())
        vectors = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
        G = (vectors * values) @ vectors.T
        u = torch.linalg.qr(vectors[:, :2] + angle * torch.randn(6, 2, dtype=torch.float64)).Q
        u = u @ torch.linalg.eigh(u.T @ G @ u).eigenvectors.flip(1)
        theta = (u.T @ G @ u).diagonal()
        g = G @ u - u * theta
        outside = torch.linalg.qr(torch.cat([u, torch.randn(6, 4, dtype=torch.float64)], 1)).Q[:, 2:]
        h = float(torch.linalg.eigvalsh(outside.T @ G @ outside)[-1])
        rest = float(G.trace() - theta.sum())
        missing = float(values.topk(2).values.sum() - theta.sum())
        gain = compiled_rank._gain(theta.numpy(), g.T.contiguous().numpy(), rest, h, 2.2e-16)
        assert missing <= gain + 1e-14
        assert gain <= rest
        if angle < 1e-4 and theta[1] > 2 * h:
            assert gain <= 3 * missing + 1e-14


def spectrum(small: int, large: int, dtype: torch.dtype, sigma: torch.Tensor) -> torch.Tensor:
    """Forty blocks with these singular values."""
    wide = WIDE[dtype]
    u = torch.linalg.qr(torch.randn(40, small, small, dtype=wide)).Q
    v = torch.linalg.qr(torch.randn(40, large, small, dtype=wide)).Q
    return (u * sigma.double()) @ v.mH


def kinds_of_blocks(small: int, large: int, rank: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    wide, place = WIDE[dtype], torch.arange(small)
    noise = torch.randn(40, small, large, dtype=wide)
    product = torch.randn(40, small, rank, dtype=wide) @ torch.randn(40, rank, large, dtype=wide)
    return {
        "noise": noise,
        "exact": product,
        "nearly exact": product + 1e-2 * noise,
        "almost exact": product + 1e-7 * noise,
        "of smaller rank": product[:, :, :1] @ product[:, :1],
        "zero": 0 * noise,
        "one entry": noise * torch.nn.functional.one_hot(torch.tensor(large - 1), large),
        "all equal": spectrum(small, large, dtype, torch.ones(small)),
        "equal in pairs": spectrum(small, large, dtype, 2.0 ** -(place // 2)),
        "equal at the cut": spectrum(small, large, dtype, torch.where(place <= rank, 1.0, 1e-3)),
        "wide": spectrum(small, large, dtype, 10.0 ** -(1.5 * place)),
        "second direction weak": spectrum(small, large, dtype, torch.where(place == 0, 1.0, 1e-4 * 0.1**place)),
        "tiny": 1e-10 * (product + 0.01 * noise),
        "huge": 1e13 * (product + 0.01 * noise),
        "some rows tiny": noise * torch.where(place % 2 == 0, 1.0, 1e-30)[:, None],
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_proved_is_the_truncated_svd(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    small, large, rank = shape
    eps, wide = torch.finfo(dtype).eps, WIDE[dtype]
    few = small <= compiled_rank.EIGENVALUES
    for name, exact in kinds_of_blocks(small, large, rank, dtype).items():
        blocks = exact.to(dtype)
        sigma = torch.linalg.svdvals(blocks.to(wide)).square()
        best, rounding = sigma[:, rank:].sum(1).sqrt(), 32 * eps * sigma.sum(1).sqrt()
        excess = 1e-9 if wide == dtype else 1e-6  # sums of float32 numbers are no better than that
        for given in (blocks, blocks.mH):
            tails, (left, right) = solve(given, rank)
            proved = torch.from_numpy(tails >= 0)
            if "equal" not in name and (few or not name.endswith(("noise", "rows tiny"))):
                assert bool(proved.all()), f"{name}: nothing is left to torch"
            found = torch.from_numpy(tails).clamp_min(0).sqrt()
            true = (given.to(wide) - left @ right).flatten(1).norm(dim=1)
            for tail in (found, true):
                over, under = tail <= best * (1 + excess) + rounding, tail >= best * (1 - excess) - rounding
                assert bool((over | ~proved).all()), f"{name}: tails are not over-estimated"
                assert bool((under | ~proved).all()), f"{name}: nothing is better than the best"
            off = (left.mH @ left - torch.eye(rank, dtype=wide)).abs().amax((1, 2))
            assert bool(((off <= 32 * eps) | ~proved).all()), f"{name}: orthonormal"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", ["right", "left", "both"])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)], ids=str)
def test_who_carries_the_weight(shape: tuple[int, int], weight: str, dtype: torch.dtype) -> None:
    chain = Chain.from_radices((shape[0], 3), (2, shape[1]), (2,), 2, 3)
    split = butterfly.splits_of(chain.patterns)[0]
    values = torch.randn(split.pattern.blocks, split.pattern.b, split.pattern.c, dtype=dtype)
    left, right, _ = butterfly.cut(split, values, weight)
    u, v = split.left_blocks(left), split.right_blocks(right)
    writer = program._Writer(chain.patterns)
    writer.step(program.CUT, 0, 1, 2, weight)
    steps = writer.program()
    work = np.empty(steps.entries, values.numpy().dtype)
    compiled.run(steps, values, work)
    mine = compiled._factors(steps, work)
    p, q = split.left_blocks(mine[0]), split.right_blocks(mine[1])
    eps = torch.finfo(dtype).eps
    assert bool((p @ q - u @ v).abs().max() <= 1e4 * eps)
    norms = p.norm(dim=-2), q.norm(dim=-1)
    theirs = u.norm(dim=-2), v.norm(dim=-1)
    for one, other in zip(norms, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e3 * eps, atol=1e3 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_certificates_are_those_of_torch(rank: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.butterfly(64, rank=rank)
    clean = transforms.random_product(chain, dtype=dtype).dense()
    noise = torch.randn(64, 64, dtype=dtype)
    A = torch.stack([clean + 0.05 * noise * clean.norm() / noise.norm(), noise])
    fast = factorize(A, chain)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "loops", lambda: None)
        compiled.works.cache_clear()
        slow = factorize(A, chain)
    compiled.works.cache_clear()
    for mine, other in zip((fast.certificate, *fast.certificates), (slow.certificate, *slow.certificates), strict=True):
        assert mine.error == pytest.approx(other.error, rel=1e-6)
        assert mine.lower_bound == pytest.approx(other.lower_bound, rel=1e-4)
        assert mine.guarantee == pytest.approx(other.guarantee, rel=1e-4)
        assert mine.lower_bound <= mine.error <= mine.guarantee


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-14), (torch.float64, 1e-150)])
def test_blocks_whose_products_have_no_digits_are_left_to_torch(dtype: torch.dtype, size: float) -> None:
    assert (solve((size * torch.randn(3, 4, 6).double()).to(dtype), 2)[0] < 0).all()


def test_ties_are_left_to_torch_and_solved() -> None:
    tied = spectrum(6, 8, torch.float64, torch.ones(6))
    assert (solve(tied, 2)[0] < 0).all()
    found = SOLVERS["compiled"].truncate(tied, 2)
    np.testing.assert_allclose(found.tail, 4, rtol=1e-12)


def test_only_who_needs_it_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(compiled, "of_any_rank", lambda dtype: asked.append(dtype))
    factorize(torch.randn(16, 16), Chain.butterfly(16))
    assert asked == []
    exact = transforms.random_product(Chain.butterfly(32, rank=2)).dense()
    result = factorize(exact, Chain.butterfly(32, rank=2))  # None was the answer: torch computes
    assert asked
    assert result.certificate.exact


def test_a_compiler_that_fails_leaves_rank_two_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise RuntimeError("no machine code for you")

    compiled.of_any_rank.cache_clear()
    monkeypatch.setattr(compiled_rank_steps, "run", broken)
    try:
        assert compiled.of_any_rank(torch.float32) is None
        assert SOLVERS["compiled"].truncate(torch.randn(5, 4, 6), 2).basis.shape == (5, 4, 2)
    finally:
        compiled.of_any_rank.cache_clear()


@pytest.mark.parametrize("size", [1.0, 1e-60, 1e-75, 1e-85, 1e-100, 1e-140])
@pytest.mark.parametrize("rank", [1, 2])
def test_tails_of_tiny_blocks_are_no_larger_than_the_truth(rank: int, size: float) -> None:
    """Squares of squares fall below all numbers long before the entries do."""
    for shape in ((50, 5, 9), (10, 20, 24)):
        blocks = size * torch.randn(*shape, dtype=torch.float64)
        values = torch.linalg.svdvals(blocks / size)
        truth = size**2 * values[:, rank:].square().sum(1)
        tails = SOLVERS["compiled"].truncate(blocks, rank).tail
        assert bool((tails <= truth * (1 + 1e-8)).all())
        assert bool((tails >= truth * (1 - 1e-6)).all())


def test_near_ties_of_tiny_blocks_in_short_precision() -> None:
    """What bounds the rest is a square of squares, too."""
    singular = torch.tensor([1.0, 1.0, 0.9995, *[0.01] * 21], dtype=torch.float64)
    for size in (1.0, 1e-10, 1e-11):
        bases = [torch.linalg.qr(torch.randn(20, n, 24, dtype=torch.float64))[0] for n in (24, 40)]
        blocks = (size * (bases[0] * singular) @ bases[1].mT).float()
        truth = torch.linalg.svdvals(blocks.double())[:, 2:].square().sum(1)
        steps = program.blockwise(*blocks.shape, 2)
        tails = SOLVERS["compiled"].truncate(blocks, 2).tail
        assert steps.numbers == len(tails)
        assert bool((tails <= truth * (1 + 1e-4)).all()), size


@pytest.mark.parametrize("rank", [1, 2])
def test_what_is_no_number_is_not_called_zero(rank: int) -> None:
    found = SOLVERS["compiled"].truncate(torch.full((2, 5, 9), float("nan"), dtype=torch.float64), rank)
    assert bool(found.tail.isnan().all())


def test_ranks_that_cut_nothing_off_are_left_to_others() -> None:
    reason = SOLVERS["compiled"].unsupported_because(3, 5, 3, torch.device("cpu"))
    assert reason == "nothing is cut off at rank 3 of 3"
    assert SOLVERS["compiled"].unsupported_because(1, 5, 1, torch.device("cpu")) is None
