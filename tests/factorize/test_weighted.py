import math
from itertools import pairwise
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatwing import Chain, factorize
from flatwing.factorize import Metric, WeightedFit, factorize_weighted
from flatwing.factorize.metric import cholesky
from flatwing.factorize.weighted import balanced, conjugate_gradients, weighted_lower_bound
from searching import least
from strategies import as_user, chainable_chains, dense_product, draw_product

ROUNDING = 1e-9


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def metric_of(n: int, seed: int = 0, samples: int | None = None, damp: float = 0.0) -> Metric:
    """Correlated inputs whose directions differ a hundredfold in variance."""
    x = normal(samples or 4 * n, n, seed=seed) @ torch.diag(torch.logspace(0, -1, n, dtype=torch.float64))
    x = x @ normal(n, n, seed=seed + 1)
    return Metric(x.mT @ x / len(x), damp)


def error_of(W: torch.Tensor, fit: WeightedFit, metric: Metric) -> float:
    """The relative error by its definition, through another root of the covariance than the library's."""
    values, vectors = torch.linalg.eigh(metric.covariance)
    root = vectors * values.clamp_min(0).sqrt()
    return float(((W - dense_product(fit.structure)) @ root).norm() / (W @ root).norm())


def best_of_many(W: torch.Tensor, chain: Chain, metric: Metric, starts: int = 20) -> float:
    """The smallest relative error that general-purpose optimization finds from random starts."""
    root = cholesky(metric.covariance)
    supports = [p.support().double() for p in chain]
    factors = [normal(starts, *s.shape, seed=i).requires_grad_() for i, s in enumerate(supports)]

    def errors() -> torch.Tensor:
        product = factors[0] * supports[0]
        for w, s in zip(factors[1:], supports[1:], strict=True):
            product = product @ (w * s)
        return ((W - product) @ root).square().sum((1, 2))

    return sqrt(least(factors, errors)) / float((W @ root).norm())


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=40)
def test_low_rank_is_eckart_young_in_the_norm_of_the_data(m: int, n: int, rank: int, seed: int) -> None:
    W, metric = normal(m, n, seed=seed), metric_of(n, seed)
    fit = factorize_weighted(W, Chain.low_rank(m, n, rank), metric)
    values, vectors = torch.linalg.eigh(metric.covariance)
    whitened = torch.linalg.svdvals(W @ vectors * values.sqrt())
    wanted = float(whitened[rank:].norm() / whitened.norm())
    assert fit.error == pytest.approx(wanted, rel=1e-6, abs=1e-7)
    assert fit.lower_bound == pytest.approx(fit.error, rel=1e-6, abs=1e-7)
    assert fit.history[-1] == pytest.approx(fit.error, abs=1e-7)


def test_low_rank_without_weights_is_the_plain_factorization() -> None:
    W = normal(6, 8)
    for rank in (1, 3, 5):
        chain = Chain.low_rank(6, 8, rank)
        fit = factorize_weighted(W, chain, Metric.identity(8))
        assert fit.error == pytest.approx(factorize(W, chain).certificate.error, rel=1e-9)
        assert fit.unweighted_error == pytest.approx(fit.error, rel=1e-9)


@pytest.mark.parametrize(
    "chain",
    [
        Chain.monarch(12, 12, 3),
        Chain.monarch(12, 8, (3, 2), rank=2),
        Chain.monarch(8, 12, (2, 4)),
        Chain.butterfly(8),
        Chain.from_radices((2, 2, 3), (3, 2, 2), (2, 1)),
    ],
    ids=str,
)
def test_other_chains_without_weights_are_at_least_as_good_as_the_plain_factorization(chain: Chain) -> None:
    W = normal(*chain.shape)
    fit = factorize_weighted(W, chain, Metric.identity(chain.shape[1]), sweeps=30)
    assert fit.error <= factorize(W, chain).certificate.error + ROUNDING


@given(chainable_chains(max_factors=3, max_size=30), st.integers(0, 1000))
@settings(max_examples=60)
def test_every_fit_keeps_its_promises(chain: Chain, seed: int) -> None:
    W, metric = normal(*chain.shape, seed=seed), metric_of(chain.shape[1], seed)
    fit = factorize_weighted(W, chain, metric, sweeps=4)
    assert fit.structure.chain == chain
    assert all(b <= a + ROUNDING for a, b in pairwise(fit.history))
    assert 0 <= fit.lower_bound <= fit.error <= 1 + ROUNDING
    assert fit.error == pytest.approx(error_of(W, fit, metric), abs=1e-7)
    assert fit.error == pytest.approx(fit.history[-1], abs=1e-7)
    assert fit.unweighted_error == pytest.approx(float((W - dense_product(fit.structure)).norm() / W.norm()), abs=1e-9)


@given(chainable_chains(max_factors=3, max_size=30), st.integers(0, 1000))
@settings(max_examples=40)
def test_a_matrix_of_the_structure_is_bounded_by_nothing(chain: Chain, seed: int) -> None:
    """The bound is below the error of every product of the chain, so it is 0 for one."""
    metric = metric_of(chain.shape[1], seed)
    W = dense_product(draw_product(chain, seed=seed))
    assert weighted_lower_bound(W, chain, metric) < 1e-6


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_one_block_diagonal_factor_is_the_exact_least_squares_solution(blocks: int) -> None:
    W, metric = normal(6, 12), metric_of(12)
    chain = Chain.block_diagonal(6, 12, blocks)
    fit = factorize_weighted(W, chain, metric)
    root, support = cholesky(metric.covariance), chain.pattern.support()
    wanted = torch.zeros_like(W)
    for row in range(6):
        columns = support[row].nonzero()[:, 0]
        wanted[row, columns] = torch.linalg.lstsq(root[columns].mT, root.mT @ W[row]).solution
    torch.testing.assert_close(dense_product(fit.structure), wanted, rtol=1e-6, atol=1e-8)


def test_many_sweeps_end_where_no_factor_can_be_improved() -> None:
    chain, metric = Chain.monarch(12, 12, (3, 4), rank=2), metric_of(12)
    W = normal(12, 12)
    fit = factorize_weighted(W, chain, metric, sweeps=400)
    root = cholesky(metric.covariance)
    factors = [w.clone().requires_grad_() for w in fit.structure.factors]
    value = ((W - type(fit.structure)(chain, factors).dense()) @ root).square().sum()
    gradients = torch.autograd.grad(value, factors)
    total = float((W @ root).square().sum())
    for gradient, factor in zip(gradients, factors, strict=True):
        assert float((gradient * factor).detach().abs().sum()) < 0.05 * total
        assert float(gradient.norm() * factor.detach().norm()) < 0.05 * total
    assert fit.history[-1] < 0.97 * fit.history[0]  # the sweeps did something


def test_weights_are_worth_it() -> None:
    """In the norm of the data the fit is far better than the one that does not know the data."""
    chain, metric, W = Chain.monarch(16, 16, 4), metric_of(16), normal(16, 16)
    blind = factorize(W, chain).product.dense()
    fit = factorize_weighted(W, chain, metric)
    assert fit.error < 0.8 * metric.norm(W - blind) / metric.norm(W)
    assert fit.unweighted_error > float((W - blind).norm() / W.norm())


@pytest.mark.parametrize(
    "chain",
    [
        Chain.monarch(4, 4, 2),
        Chain.monarch(4, 6, (2, 3)),
        Chain.from_radices((2, 2), (2, 1), (1,), a1=2),
        Chain.from_radices((1, 2, 2), (2, 2, 1), (1, 1)),
    ],
    ids=str,
)
def test_no_optimization_goes_below_the_bound(chain: Chain) -> None:
    W, metric = normal(*chain.shape), metric_of(chain.shape[1])
    fit = factorize_weighted(W, chain, metric, sweeps=30)
    best = best_of_many(W, chain, metric)
    assert fit.lower_bound <= best + 1e-7
    assert fit.error <= 2 * best + 1e-7


@pytest.mark.parametrize(("A", "B", "rank"), [(2, 3, 1), (3, 2, 1), (2, 2, 2), (1, 2, 1)])
def test_the_bound_of_a_monarch_is_that_of_its_groups_of_rows(A: int, B: int, rank: int) -> None:
    """Rows of equal number modulo A pass through `rank` inner columns for each of the B column blocks."""
    m, n = 4 * A, 5 * B
    W, metric, chain = normal(m, n), metric_of(n), Chain.monarch(m, n, (A, B), rank)
    whitened, inner = W @ cholesky(metric.covariance), chain[0].c
    tail = sum(float(torch.linalg.svdvals(whitened[k::A])[inner:].square().sum()) for k in range(A))
    assert inner == rank * B
    assert weighted_lower_bound(W, chain, metric) == pytest.approx(sqrt(tail) / float(whitened.norm()), rel=1e-9)


def test_redundant_factors_change_nothing() -> None:
    long = Chain.butterfly(16, rank=2)
    W, metric = normal(16, 16), metric_of(16)
    assert long.reduced() != long
    fit, short = factorize_weighted(W, long, metric), factorize_weighted(W, long.reduced(), metric)
    assert fit.structure.chain == long
    torch.testing.assert_close(dense_product(fit.structure), dense_product(short.structure), rtol=1e-8, atol=1e-9)
    assert fit.error == pytest.approx(short.error, rel=1e-9)


@given(chainable_chains(min_factors=2, max_factors=4, max_size=40), st.integers(0, 1000))
@settings(max_examples=40)
def test_balancing_leaves_the_product_and_balances(chain: Chain, seed: int) -> None:
    product = draw_product(chain, seed=seed)
    metric = metric_of(chain.shape[1], seed)
    skewed = type(product)(chain, [w * 10.0 ** (4 * (-1) ** i) for i, w in enumerate(product.factors)])
    even = balanced(skewed, metric)
    torch.testing.assert_close(dense_product(even), dense_product(skewed), rtol=1e-9, atol=1e-9)
    left = even.factors[-2].norm(dim=-2)
    arriving = dense_product(even[len(chain) - 1 :]) @ cholesky(metric.covariance)
    a, c, d = chain[-2].a, chain[-2].c, chain[-2].d
    columns = left.reshape(a, d, c).transpose(1, 2).reshape(-1)
    # the pair at the data's end was evened out first; the passes further left scaled its left factor's rows only
    ratio = columns / arriving.norm(dim=1)
    if len(chain) == 2:
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-6, atol=0)
    else:
        assert float(ratio.max() / ratio.min()) < 1e6


def test_inner_coordinates_that_carry_nothing_stay_finite() -> None:
    product = draw_product(Chain.low_rank(4, 4, 2))
    product.factors[0][:, :, 1] = 0
    even = balanced(product, Metric.identity(4))
    torch.testing.assert_close(dense_product(even), dense_product(product), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chain", [Chain.low_rank(6, 8, 3), Chain.monarch(6, 8, (3, 2), rank=2)], ids=str)
def test_inputs_that_fill_no_space_cost_nothing_outside_it(chain: Chain) -> None:
    """With two samples the outputs on them have rank two: every structure here is exact on the data."""
    x = normal(2, 8)
    fit = factorize_weighted(normal(6, 8), chain, Metric(x.mT @ x / 2, damp=0.0))
    assert fit.error < 1e-4
    assert bool(torch.isfinite(fit.structure.dense()).all())


def test_a_dead_input_is_no_trouble() -> None:
    x = normal(40, 8)
    x[:, 3] = 0
    fit = factorize_weighted(normal(8, 8), Chain.monarch(8, 8, 2), Metric(x.mT @ x / 40, damp=1e-3))
    assert bool(torch.isfinite(fit.structure.dense()).all())
    assert fit.lower_bound <= fit.error < 1


def test_the_zero_matrix_is_exact() -> None:
    fit = factorize_weighted(torch.zeros(4, 6), Chain.monarch(4, 6, 2), metric_of(6))
    assert (fit.error, fit.lower_bound, fit.unweighted_error, fit.ratio) == (0, 0, 0, 1)
    assert bool((fit.structure.dense() == 0).all())


def test_ratio() -> None:
    W, metric = normal(6, 6), metric_of(6)
    fit = factorize_weighted(W, Chain.monarch(6, 6, 2), metric)
    assert fit.ratio == fit.error / fit.lower_bound >= 1
    assert WeightedFit(None, 0.5, 0.0, 0.5, ()).ratio == math.inf


def test_progress_counts_the_sweeps() -> None:
    seen: list[tuple[int, int]] = []
    fit = factorize_weighted(
        normal(12, 12), Chain.monarch(12, 12, 3), metric_of(12), sweeps=3, progress=lambda i, n: seen.append((i, n))
    )
    assert seen == [(i + 1, 3) for i in range(len(fit.history) - 1)]
    assert len(seen) >= 1


def test_half_precision_and_numpy_are_computed_in_double() -> None:
    W, metric, chain = normal(6, 6).half(), metric_of(6), Chain.monarch(6, 6, 2)
    fit = factorize_weighted(W, chain, metric)
    again = factorize_weighted(W.double().numpy(), chain, metric)
    assert fit.error == again.error
    assert fit.structure.dtype == torch.float64


def test_conjugate_gradients_solve_and_never_raise_the_quadratic() -> None:
    A = metric_of(8).covariance
    b, start = normal(8), normal(8, seed=3)

    def quadratic(x: torch.Tensor) -> float:
        return float(x @ A @ x / 2 - b @ x)

    values = [quadratic(conjugate_gradients(lambda x: A @ x, lambda x: x, b, start, steps)) for steps in range(12)]
    assert all(later <= earlier + 1e-9 * abs(earlier) for earlier, later in pairwise(values))
    exact = torch.linalg.solve(A, b)
    assert values[-1] == pytest.approx(quadratic(exact), rel=1e-6)
    assert torch.equal(conjugate_gradients(lambda x: A @ x, lambda x: x, A @ start, start), start)


@pytest.mark.parametrize(
    ("W", "chain", "message"),
    [
        (torch.ones(4, 6), Chain.low_rank(4, 4, 1), r"W is \(4, 6\) .*one column for each of 4 inputs"),
        (torch.ones(5, 4), Chain.low_rank(4, 4, 1), r"W is 5 x 4, .* is \(4, 4\)\. Rule: equal sizes"),
        (torch.ones(4, 4, dtype=torch.complex64), Chain.low_rank(4, 4, 1), r"complex64\. Rule: real"),
        (torch.full((4, 4), math.nan), Chain.low_rank(4, 4, 1), r"W has 16 entries that are NaN"),
        (torch.ones(4), Chain.low_rank(4, 4, 1), r"W has shape \(4,\)\. Rule: a matrix"),
        (torch.ones(4, 4), Chain([(2, 2, 2, 1), (1, 2, 2, 2)]), r"not chainable|chainable"),
    ],
)
def test_bad_matrices_are_refused(W: torch.Tensor, chain: Chain, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        factorize_weighted(W, chain, Metric.identity(4))
