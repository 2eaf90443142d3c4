"""Alternating least squares: every sweep helps or changes nothing, and no bound is passed."""

from random import Random

import pytest
import torch

from cases import KINDS, by_formula, noisy, random_chain, random_matrix, relative_error, support
from flatwing import Chain, SparseProduct, factorize
from flatwing.factorize.problem import Problem
from flatwing.factorize.refine import refine_factors
from flatwing.structure import transforms
from strategies import draw_product

SITES = [1, 2]
DYADIC64 = Chain.butterfly(64)


def errors(A: torch.Tensor, chain: Chain, sweeps: list[int], sites: int) -> list[float]:
    return [factorize(A, chain, order="l2r", refine=k, refine_sites=sites).certificate.error for k in sweeps]


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_never_grows_and_stays_above_the_bound(kind: str, dtype: torch.dtype, sites: int) -> None:
    rng, gained = Random(0), 0
    for _ in range(8):
        chain = random_chain(rng)
        A = random_matrix(chain, kind, dtype)
        for order in ("l2r", "balanced"):
            plain = factorize(A, chain, order=order)
            before = plain.certificate.error
            for sweeps in (1, 2, 4):
                result = factorize(A, chain, order=order, refine=sweeps, refine_sites=sites)
                proof = result.certificate
                assert proof.error <= before, "not even by rounding"
                assert proof.error >= proof.lower_bound
                assert proof.exact or proof.lower_bound == pytest.approx(plain.certificate.lower_bound, rel=1e-7)
                assert proof.error == pytest.approx(relative_error(A, result.product), rel=1e-9, abs=1e-13)
                assert result.product.chain == chain
                before = proof.error
            gained += before < plain.certificate.error * (1 - 1e-6)
    assert gained > 0 or kind == "noisy product"


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_any_start_improves_sweep_by_sweep(dtype: torch.dtype, sites: int) -> None:
    """From random factors: monotone, above the lower bound, and far better than the start."""
    rng = Random(3)
    for seed in range(12):
        chain = random_chain(rng, max_size=36).reduced()
        if len(chain) < 3:
            continue
        A = random_matrix(chain, "gaussian", dtype)
        problem, norm = Problem.of(A, chain), float(A.norm())
        bound = factorize(A, chain).certificate.lower_bound
        factors = list(draw_product(chain, dtype=dtype, seed=seed).factors)
        history = [problem.error(factors).item() ** 0.5 / norm]
        for _ in range(6):
            factors = refine_factors(problem, factors, 1, sites)
            history.append(problem.error(factors).item() ** 0.5 / norm)
            assert history[-1] <= history[-2] * (1 + 1e-12)
            assert history[-1] >= bound * (1 - 1e-9)
        assert history[-1] < min(1.0, history[0])


def test_a_sweep_is_stationary_at_the_optimum() -> None:
    """With all other factors fixed, the last updated factor is the least-squares solution."""
    chain = Chain.butterfly(8)
    A = random_matrix(chain, "gaussian", torch.complex128)
    product = factorize(A, chain, refine=1).product
    factors = [w.detach().clone() for w in product.factors]
    factors[-1].requires_grad_()
    error = (SparseProduct(chain, factors).dense() - A).abs().square().sum()
    (gradient,) = torch.autograd.grad(error, factors[-1])
    assert float(gradient.abs().max()) < 1e-12
    for i in range(2):
        free = [w.detach().clone() for w in factors]
        free[i].requires_grad_()
        (gradient,) = torch.autograd.grad((SparseProduct(chain, free).dense() - A).abs().square().sum(), free[i])
        assert float(gradient.abs().max()) > 1e-9, "one sweep is not yet the end"


def test_many_sweeps_reach_a_stationary_point() -> None:
    chain = Chain.butterfly(8)
    A = random_matrix(chain, "gaussian")
    factors = [w.detach().clone().requires_grad_() for w in factorize(A, chain, refine=3000).product.factors]
    error = (SparseProduct(chain, factors).dense() - A).square().sum()
    for gradient in torch.autograd.grad(error, factors):
        assert float(gradient.abs().max()) < 1e-4 * float(A.norm())


def test_numbers_of_the_cosine_transform() -> None:
    """.9256 and .9166 after 1 and 10 sweeps are from another start: the transform has tied singular values."""
    n = 64
    j, k = torch.arange(n).double(), torch.arange(n).double()[:, None]
    C = torch.cos(torch.pi * (2 * j + 1) * k / (2 * n))
    C[0] /= 2**0.5
    A = C[:, transforms.digit_reversal((2,) * 6)]
    start, one, ten = errors(A, DYADIC64, [0, 1, 10], 1)
    assert max(s.matrix_error for s in factorize(A, DYADIC64).splits) == pytest.approx(0.7752, abs=5e-5)
    assert start == pytest.approx(0.9661, rel=0.02)
    assert one == pytest.approx(0.9256, rel=0.012)
    assert ten == pytest.approx(0.9166, rel=0.015)
    assert errors(A, DYADIC64, [10], 2)[0] < ten


def test_numbers_of_noise_and_of_a_smooth_kernel() -> None:
    found = []
    for _ in range(3):
        A = noisy(transforms.random_product(DYADIC64).dense(), 0.1)
        found.append(errors(A, DYADIC64, [0, 1, 10], 1))
    means = torch.tensor(found).mean(0).tolist()
    assert means == pytest.approx([0.0941, 0.0935, 0.0934], rel=0.02)
    assert means[0] > means[1] > means[2]
    smooth = errors(by_formula("invabs", 64, 64), DYADIC64, [0, 10], 1)
    assert smooth[1] == pytest.approx(smooth[0], rel=1e-4)


def test_the_gain_on_noise_alone() -> None:
    """.7202 -> .7005 -> .6965 on one draw: the mean of many draws gains as much."""
    chain, found = Chain.butterfly(16), []
    for _ in range(20):
        found.append(errors(torch.randn(16, 16, dtype=torch.float64), chain, [0, 1, 10], 1))
    start, one, ten = torch.tensor(found).mean(0).tolist()
    assert 1 - one / start == pytest.approx(0.0273, abs=0.012)
    assert 1 - ten / start == pytest.approx(0.0329, abs=0.012)


@pytest.mark.parametrize("sites", SITES)
def test_an_optimum_is_left_alone(sites: int) -> None:
    monarch = Chain.monarch(12, 12, 3)
    A = random_matrix(monarch, "gaussian")
    plain, refined = factorize(A, monarch), factorize(A, monarch, refine=3, refine_sites=sites)
    assert refined.certificate.error == pytest.approx(plain.certificate.error, rel=1e-12)
    exact = factorize(transforms.hadamard(32).dense(), Chain.butterfly(32), refine=3, refine_sites=sites)
    assert exact.certificate.exact
    assert exact.certificate.error < 1e-14
    zero = factorize(torch.zeros(8, 8), Chain.butterfly(8), refine=2, refine_sites=sites)
    assert zero.certificate.error == 0
    single = factorize(A, Chain.dense(12, 12), refine=2, refine_sites=sites)
    assert torch.equal(single.product.dense(), A)


@pytest.mark.parametrize("ranks", [(1, 1), (1, 2)])  # with a rank of two one split of this chain restricts nothing
def test_refinement_of_a_batch_of_a_dual_chain_with_permutations(ranks: tuple[int, int]) -> None:
    chain = Chain.from_radices((2, 3, 2), (3, 2, 2), ranks).T
    A = torch.randn(4, 12, 12, dtype=torch.float64)
    perm = torch.randperm(12), torch.randperm(12)
    plain, refined = factorize(A, chain, perm=perm), factorize(A, chain, perm=perm, refine=5)
    slack = 1 + 1e-12 if ranks == (1, 2) else 1 - 1e-6
    assert refined.certificate.error < slack * plain.certificate.error
    dense = refined.product.dense()
    for X, Y, proof in zip(A, dense, refined.certificates, strict=True):
        assert proof.error == pytest.approx(float((X - Y).norm() / X.norm()), rel=1e-9)


def test_values_outside_of_the_support_stay_zero() -> None:
    chain = Chain.from_radices((2, 2, 2), (2, 2, 2), (1, 1), a1=2, dL=2)
    A = torch.randn(chain.shape, dtype=torch.float64)
    dense = factorize(A, chain, refine=4).product.dense()
    assert not bool((dense * (1 - support(chain))).any())


def test_progress_counts_sweeps_and_stops_when_nothing_is_gained() -> None:
    calls: list[tuple[int, int]] = []
    chain = Chain.butterfly(8)
    A = random_matrix(chain, "gaussian")
    problem = Problem.of(A, chain)
    factors = list(factorize(A, chain).product.factors)
    refine_factors(problem, factors, 3, 1, lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    refine_factors(problem, factors, 10**6, 2, lambda *call: calls.append(call))
    assert 1 < len(calls) < 5000
