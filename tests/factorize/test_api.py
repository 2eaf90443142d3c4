"""`factorize` as a user calls it: what it returns, batches, redundant and transposed chains, reports of cuts."""

from dataclasses import asdict
from math import sqrt
from random import Random

import pytest
import torch

from cases import KINDS, by_formula, explicit_tails, random_chain, random_matrix, relative_error, support
from flatwing import Chain, Factorization, SparseProduct, factorize
from flatwing.structure import transforms
from strategies import as_user

RECTANGULAR = Chain.from_radices((2, 3, 2), (3, 2, 2), (1, 2))
FIVE = Chain.butterfly(32)


def test_result_of_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    A = torch.randn(16, 16, dtype=torch.float64)
    result = factorize(A, "butterfly(16)")
    assert isinstance(result.product, SparseProduct)
    assert result.product.chain == Chain.butterfly(16)
    assert result.product.dtype == torch.float64
    assert result.certificates == (result.certificate,)
    assert result.permutation == "none"
    assert result.notes == ()
    assert str(result) == f"(1,2,2,8)(2,2,2,4)(4,2,2,2)(8,2,2,1), 128 parameters (50.0% of dense): {result.certificate}"
    assert capsys.readouterr().out == ""


def test_the_best_order_is_the_better_of_the_two_ends() -> None:
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        A = random_matrix(FIVE, "spiky")
        left, right, best = (factorize(A, FIVE, order=o) for o in ("l2r", "r2l", "best"))
        assert best.certificate.error == min(left.certificate.error, right.certificate.error)
        assert best.order in (left.order, right.order)
        assert factorize(A, FIVE).certificate == best.certificate
        seen.add(best.order)
    assert seen == {(1, 2, 3, 4), (4, 3, 2, 1)}


@pytest.mark.parametrize("order", ["l2r", "r2l", "balanced", (1, 4, 2, 3), (2, 4, 1, 3), (3, 4, 2, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_a_product_is_found_again_in_every_order(dtype: torch.dtype, order: str | tuple[int, ...]) -> None:
    for chain in (FIVE, Chain.from_radices((2, 3, 2, 2, 3), (3, 2, 2, 3, 2), (1, 2, 2, 1), a1=2, dL=2)):
        A = transforms.random_product(chain, dtype=dtype).dense()
        result = factorize(A, chain, order=order)
        assert result.certificate.exact
        assert relative_error(A, result.product) < 1e-13
        assert sorted(result.order) == [1, 2, 3, 4]


def test_orders_that_differ_in_one_bracketing_differ() -> None:
    """With orthonormalization the permutation counts, not only the tree."""
    A = by_formula("sin", 16, 16)
    first, second = (factorize(A, Chain.butterfly(16), order=o) for o in ((2, 1, 3), (2, 3, 1)))
    assert first.certificate.error != pytest.approx(second.certificate.error, rel=1e-6)
    assert first.certificate.lower_bound == pytest.approx(second.certificate.lower_bound, rel=1e-12)


def test_redundant_factors_change_nothing_but_the_number_of_factors() -> None:
    rng, found = Random(0), 0
    while found < 40:
        chain = random_chain(rng)
        if not chain.redundant_splits:
            continue
        found += 1
        A = random_matrix(chain, KINDS[found % 5])
        long, short = factorize(A, chain), factorize(A, chain.reduced())
        assert long.product.chain == chain
        assert abs(relative_error(A, long.product) - short.certificate.error) <= 1e-13
        assert asdict(long.certificate) == asdict(short.certificate)
        redundant = {split.position for split in long.splits if split.redundant}
        assert redundant == set(chain.redundant_splits)
        assert set(long.order) | redundant == set(range(1, len(chain)))
        for split in long.splits:
            assert not split.redundant or (split.error, split.matrix_error) == (0.0, 0.0)


def test_transposed_chains_are_the_transposed_problem() -> None:
    rng = Random(0)
    for _ in range(30):
        chain = random_chain(rng)
        if len(chain) < 2 or chain.T.chainable:
            continue
        A = random_matrix(chain, "gaussian", torch.complex128).mT
        order = rng.sample(range(1, len(chain)), len(chain) - 1)
        dual = factorize(A, chain.T, order=order)
        direct = factorize(A.mT, chain, order=[len(chain) - s for s in order])
        assert dual.product.chain == chain.T
        assert dual.certificate == direct.certificate
        torch.testing.assert_close(dual.product.dense(), direct.product.dense().mT, rtol=1e-12, atol=1e-12)
        assert relative_error(A, dual.product) == pytest.approx(dual.certificate.error, abs=1e-12)
        assert [s.position for s in dual.splits] == list(range(1, len(chain)))
        for split, mirrored in zip(dual.splits, reversed(direct.splits), strict=True):
            assert split.position == len(chain) - mirrored.position
            assert split.block_shape == mirrored.block_shape[::-1]
            assert (split.error, split.matrix_error) == (mirrored.error, mirrored.matrix_error)


def test_named_orders_of_transposed_chains_are_as_seen_by_the_user() -> None:
    A, chain = by_formula("sin", 16, 16), Chain.butterfly(16)
    for order, mirrored in (("l2r", "r2l"), ("r2l", "l2r"), ("best", "best"), ("balanced", "balanced")):
        dual, direct = factorize(A, chain.T, order=order), factorize(A.mT, chain, order=mirrored)
        assert dual.certificate == direct.certificate
    assert factorize(A, chain.T, order="l2r").order == (1, 2, 3)


def test_fourier_by_rows_needs_the_dual_chain() -> None:
    F = torch.fft.fft(torch.eye(16, dtype=torch.complex128))
    A = F[transforms.digit_reversal((2,) * 4)]
    assert factorize(A, Chain.butterfly(16).T).certificate.exact
    assert factorize(A, Chain.butterfly(16), order="l2r").certificate.error == pytest.approx(0.64, abs=0.01)


@pytest.mark.parametrize("chain", [FIVE, FIVE.T, Chain.butterfly(32, rank=2)], ids=["chain", "dual", "redundant"])
def test_a_batch_shares_a_chain(chain: Chain) -> None:
    A = torch.randn(2, 3, 32, 32, dtype=torch.complex128) * torch.logspace(-3, 3, 6).reshape(2, 3, 1, 1)
    result = factorize(A, chain, order="l2r")
    assert result.product.shape == (2, 3, 32, 32)
    assert len(result.certificates) == 6
    dense = result.product.dense()
    for i, proof in enumerate(result.certificates):
        single = factorize(A.flatten(0, 1)[i], chain, order="l2r").certificate
        for name in ("error", "lower_bound", "guarantee", "factor"):
            assert getattr(proof, name) == pytest.approx(getattr(single, name), rel=1e-9), name
        X, Y = A.flatten(0, 1)[i], dense.flatten(0, 1)[i]
        assert proof.error == pytest.approx(float((X - Y).norm() / X.norm()), rel=1e-9)
    assert result.certificate.error == pytest.approx(float((A - dense).norm() / A.norm()), rel=1e-9)


def test_exactness_is_told_matrix_by_matrix() -> None:
    good, bad = transforms.hadamard(32).dense(), torch.randn(32, 32, dtype=torch.float64)
    proofs = factorize(torch.stack([good, bad, 0 * bad]), FIVE)
    assert [p.exact for p in proofs.certificates] == [True, False, True]
    assert proofs.certificates[0].lower_bound == 0
    assert not proofs.certificate.exact


def test_matrices_of_a_batch_may_be_of_very_different_size() -> None:
    for dtype, scale in ((torch.float32, 1e-25), (torch.float64, 1e-200), (torch.float64, 1e200)):
        A = torch.randn(3, 16, 16, dtype=dtype)
        A[1] *= scale
        chain = Chain.butterfly(16, (4, 4))
        result = factorize(A, chain, order="l2r")
        for i, proof in enumerate(result.certificates):
            single = factorize(A[i], chain, order="l2r")
            assert proof.error == pytest.approx(single.certificate.error, rel=1e-5)
            assert proof.lower_bound == pytest.approx(single.certificate.lower_bound, rel=1e-5)
            part = SparseProduct(chain, [w[i] for w in result.product.factors])
            assert relative_error(A[i], part) == pytest.approx(proof.error, rel=1e-5)


def test_reports_of_the_cuts() -> None:
    rng = Random(2)
    for _ in range(20):
        chain = random_chain(rng).reduced()
        A = random_matrix(chain, "gaussian")
        result, norm = factorize(A, chain, order="l2r"), float(A.norm())
        outside = float((A * (1 - support(chain))).norm())
        assert [s.position for s in result.splits] == list(range(1, len(chain)))
        for split, tails in zip(result.splits, explicit_tails(A, chain), strict=True):
            left, right = chain[: split.position].pattern, chain[split.position :].pattern
            assert split.rank == chain.ranks[split.position - 1]
            assert (split.blocks, split.block_shape) == (tails.size, (left.b, right.c))
            assert split.matrix_error == pytest.approx(sqrt(outside**2 + tails.sum()) / norm, rel=1e-7)
            assert split.error <= split.matrix_error * (1 + 1e-9)
        squares = (outside / norm) ** 2 + sum(split.error**2 for split in result.splits)
        assert result.certificate.error == pytest.approx(sqrt(squares), rel=1e-9)


@pytest.mark.parametrize("chain", [Chain.dense(5, 7), Chain.block_diagonal(6, 8, 2)], ids=str)
def test_one_factor_is_a_projection(chain: Chain) -> None:
    A = torch.randn(chain.shape, dtype=torch.float64)
    result = factorize(A, chain)
    torch.testing.assert_close(result.product.dense(), A * support(chain), rtol=0, atol=0)
    error = float((A * (1 - support(chain))).norm() / A.norm())
    assert result.certificate.error == pytest.approx(error, rel=1e-12, abs=1e-15)
    assert result.certificate.factor == 1
    if error:
        assert result.certificate.lower_bound == pytest.approx(error, rel=1e-12)
    assert (result.order, result.splits) == ((), ())


def test_progress_is_told() -> None:
    calls: list[tuple[str, int, int]] = []
    factorize(torch.randn(16, 16), Chain.butterfly(16), refine=2, progress=lambda *call: calls.append(call))
    assert all(isinstance(what, str) and 0 < done <= total for what, done, total in calls)
    assert len({what for what, _, _ in calls}) >= 2
    assert sum(done == total for _, done, total in calls) >= 2


def test_results_are_the_same_twice() -> None:
    for chain in (FIVE, Chain.butterfly(32, (4, 8)), Chain.low_rank(32, 32, 3)):
        A = random_matrix(chain, "gaussian", torch.complex64)
        first, second = (factorize(A, chain, order="balanced", refine=2) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first.product.factors, second.product.factors, strict=True))
        assert first.certificate == second.certificate


def test_a_result_is_a_value() -> None:
    with as_user():
        result = factorize(torch.eye(4), Chain.butterfly(4))
    assert isinstance(result, Factorization)
    with pytest.raises(AttributeError, match="order"):
        result.order = ()  # type: ignore[misc]
