import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing.factorize import Metric
from flatwing.factorize.metric import cholesky, solve
from strategies import as_user


def second_moments(n: int, samples: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(samples, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.mT @ x / samples


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 100))
def test_the_norm_is_the_mean_squared_output_on_the_data(n: int, m: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, error = torch.randn(50, n, dtype=torch.float64, generator=g), torch.randn(m, n, dtype=torch.float64, generator=g)
    metric = Metric(x.mT @ x / 50, damp=0.0)
    assert metric.norm(error) ** 2 == pytest.approx(float((x @ error.mT).square().sum(1).mean()), rel=1e-10)


def test_damping_adds_a_share_of_the_mean_variance() -> None:
    C = second_moments(5, 40)
    metric = Metric(C, damp=0.25)
    wanted = C + 0.25 * float(C.diagonal().mean()) * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(metric.covariance, wanted, rtol=1e-14, atol=0)
    assert metric.damp == 0.25


def test_what_was_given_stays_as_it_was() -> None:
    C = second_moments(4, 20)
    before = C.clone()
    Metric(C, damp=0.5)
    assert torch.equal(C, before)


def test_the_root_is_lower_triangular_and_gives_the_matrix() -> None:
    metric = Metric(second_moments(6, 30), damp=0.0)
    assert torch.equal(metric.root, metric.root.tril())
    torch.testing.assert_close(metric.root @ metric.root.mT, metric.covariance, rtol=1e-12, atol=1e-14)


def test_the_identity_is_the_frobenius_norm() -> None:
    E = torch.randn(3, 7)
    metric = Metric.identity(7)
    assert metric.norm(E) == pytest.approx(float(E.double().norm()), rel=1e-12)
    assert torch.equal(metric.root, torch.eye(7, dtype=torch.float64))


@pytest.mark.parametrize("samples", [1, 3])
def test_a_singular_matrix_has_a_root_without_damping(samples: int) -> None:
    C = second_moments(8, samples)
    root = Metric(C, damp=0.0).root
    assert bool(torch.isfinite(root).all())
    torch.testing.assert_close(root @ root.mT, C, rtol=1e-9, atol=1e-9)


def test_rounding_below_zero_is_mended_and_no_more() -> None:
    C = torch.diag(torch.tensor([1.0, 1.0, -1e-13], dtype=torch.float64))
    root = cholesky(C)
    assert float((root @ root.mT - C).abs().max()) < 1e-11


def test_each_matrix_of_a_batch_is_solved() -> None:
    batch = torch.stack([second_moments(4, 30, seed) for seed in range(3)])
    rhs = torch.randn(3, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(solve(batch, rhs), torch.linalg.solve(batch, rhs), rtol=1e-8, atol=1e-9)


def test_a_singular_system_is_solved_where_it_can_be() -> None:
    C = second_moments(6, 2)
    wanted = C @ torch.randn(6, 1, dtype=torch.float64)
    found = solve(C, wanted)
    assert float((C @ found - wanted).norm() / wanted.norm()) < 1e-6
    assert bool((solve(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)) == 0).all())


@pytest.mark.parametrize(
    ("covariance", "damp", "message"),
    [
        (torch.ones(2, 3), 0.0, r"covariance has shape \(2, 3\)\. Rule: square"),
        (torch.ones(4), 0.0, r"covariance has shape \(4,\)\. Rule: a matrix"),
        (torch.zeros(2, 2), 0.0, r"trace 0: every input was zero"),
        (-torch.eye(2), 0.0, r"negative|not positive"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 0.0, r"not symmetric\. Rule: C = E\[x x\^T\]"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), 0.0, r"covariance has 2 entries that are NaN or Inf"),
        (torch.eye(2), -0.1, r"damp is -0\.1\. Rule: a number, at least 0"),
        (torch.eye(2), math.nan, r"damp is nan"),
        (torch.eye(2), math.inf, r"damp is inf"),
        (torch.eye(2, dtype=torch.complex64), 0.0, r"covariance is complex\. Rule: real"),
    ],
)
def test_bad_matrices_are_refused_by_name(covariance: torch.Tensor, damp: float, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        Metric(covariance, damp)


def test_whole_numbers_are_refused() -> None:
    with as_user(), pytest.raises(TypeError, match="covariance has dtype int64"):
        Metric(torch.ones(2, 2, dtype=torch.long))


def test_a_matrix_that_is_far_from_positive_has_no_root() -> None:
    with pytest.raises(ValueError, match="not positive semidefinite"):
        _ = Metric(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), damp=0.0).root
