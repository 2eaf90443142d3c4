"""Fits without data agree with the weighted ones in the metric of all inputs alike."""

import pytest
import torch

from flatwing.compress.candidates import Candidate, candidate
from flatwing.compress.unweighted import Unweighted
from flatwing.factorize import Metric

SIZES = [(96, 64), (64, 128), (80, 80)]


def matrix(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, dtype=torch.float64) @ torch.diag(torch.linspace(1, 0.01, n, dtype=torch.float64))


@pytest.mark.parametrize(("m", "n"), SIZES)
@pytest.mark.parametrize("rank", [1, 7, 64])
def test_low_rank_is_eckart_young(m: int, n: int, rank: int) -> None:
    W = matrix(m, n)
    fit = Unweighted(W).fit(Candidate("low_rank", (m, n), (1, 1), rank))
    values = torch.linalg.svdvals(W).square()
    best = float((values[rank:].sum() / values.sum()).sqrt())
    assert fit.error == pytest.approx(best, abs=1e-12)
    assert fit.lower_bound == pytest.approx(best, abs=1e-6)
    assert fit.lower_bound <= best
    left, right = fit.structure.factors
    assert float(left.norm()) == pytest.approx(float(right.norm()), rel=1e-9)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_blast_is_no_worse_than_the_weighted_fit(m: int, n: int) -> None:
    W = matrix(m, n)
    own = candidate("blast_8", m, n).within(0.3 * m * n)
    assert own is not None
    fit, slow = Unweighted(W).fit(own), own.fit(W, Metric.identity(n))
    assert fit.error <= slow.error * 1.005
    assert slow.lower_bound * (1 - 1e-6) <= fit.lower_bound < fit.error
    assert fit.error == pytest.approx(float((fit.structure.dense() - W).norm() / W.norm()))


def test_blast_finds_its_own_matrices_and_beats_low_rank_there() -> None:
    parts = torch.randn(4, 8, 5), torch.randn(4, 4, 5), torch.randn(4, 5, 16)
    blocks = torch.einsum("aik,abk,bkj->aibj", *(part.double() for part in parts))
    target = Unweighted(blocks.reshape(32, 64))
    fit = target.fit(Candidate("blast", (32, 64), (4, 4), 5))
    assert fit.error < 0.2
    assert target.fit(Candidate("low_rank", (32, 64), (1, 1), 5)).error > 0.3


def test_bounds_hold_for_exact_matrices() -> None:
    W = torch.randn(32, 3, dtype=torch.float64) @ torch.randn(3, 48, dtype=torch.float64)
    for name in ("low_rank", "blast_4"):
        own = candidate(name, 32, 48).within(3.5 * 96.0)
        assert own is not None
        fit = Unweighted(W).fit(own)
        assert fit.lower_bound <= fit.error < 1e-3


def test_other_structures_are_fitted_as_usual() -> None:
    W = matrix(64, 64)
    own = candidate("monarch_4x4", 64, 64).within(0.25 * 64 * 64)
    assert own is not None
    assert Unweighted(W).fit(own).error == pytest.approx(own.fit(W, Metric.identity(64)).error)


def test_the_matrix_is_left_alone_and_zero_is_refused() -> None:
    W = matrix(64, 128)
    before = W.clone()
    for name in ("low_rank", "blast_8"):
        own = candidate(name, 64, 128).within(2000.0)
        assert own is not None
        Unweighted(W).fit(own)
    assert torch.equal(W, before)
    with pytest.raises(ValueError, match="the matrix is zero"):
        Unweighted(torch.zeros(4, 4, dtype=torch.float64)).fit(candidate("low_rank", 4, 4))


def test_spectrum_is_relative_and_evenly_spaced() -> None:
    W = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    assert Unweighted(W).spectrum(9) == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert Unweighted(W).spectrum(3) == [1.0, 0.25, 0.0625]
