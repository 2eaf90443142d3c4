import math
from itertools import pairwise
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatwing.factorize import Blast, Metric, fit_blast
from flatwing.factorize.blast import _Alternation
from flatwing.factorize.metric import cholesky
from searching import least
from strategies import as_user


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def metric_of(n: int, seed: int = 0, samples: int | None = None, damp: float = 0.0) -> Metric:
    x = normal(samples or 4 * n, n, seed=seed) @ normal(n, n, seed=seed + 1)
    return Metric(x.mT @ x / len(x), damp)


def blockwise(blast: Blast) -> torch.Tensor:
    """The definition, block by block."""
    A, B, _ = blast.coupling.shape
    rows = [
        torch.cat([blast.left[a] @ torch.diag(blast.coupling[a, b]) @ blast.right[b] for b in range(B)], dim=1)
        for a in range(A)
    ]
    return torch.cat(rows)


def random_blast(m: int, n: int, blocks: tuple[int, int], rank: int, seed: int = 0) -> Blast:
    A, B = blocks
    return Blast(
        normal(A, m // A, rank, seed=seed), normal(A, B, rank, seed=seed + 1), normal(B, rank, n // B, seed=seed + 2)
    )


def low_rank_error(W: torch.Tensor, metric: Metric, rank: int) -> float:
    values = torch.linalg.svdvals(W @ cholesky(metric.covariance))
    return float(values[rank:].norm() / values.norm())


def test_the_matrix_is_the_one_of_the_definition() -> None:
    blast = random_blast(6, 8, (3, 2), 4)
    torch.testing.assert_close(blast.dense(), blockwise(blast), rtol=1e-12, atol=1e-12)
    assert blast.nnz == 4 * (6 + 8 + 3 * 2)


@given(st.sampled_from([(1, 1), (2, 2), (2, 3), (3, 2), (1, 4), (4, 1)]), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=15)
def test_every_fit_keeps_its_promises(blocks: tuple[int, int], rank: int, seed: int) -> None:
    m, n = 3 * blocks[0], 4 * blocks[1]
    W, metric = normal(m, n, seed=seed), metric_of(n, seed)
    fit = fit_blast(W, blocks, rank, metric, rounds=6, seed=seed)
    assert all(b <= a + 1e-9 for a, b in pairwise(fit.history))
    whole = metric.norm(W)
    assert fit.error == pytest.approx(metric.norm(W - blockwise(fit.structure)) / whole, rel=1e-9, abs=1e-9)
    assert fit.error == pytest.approx(fit.history[-1], abs=1e-6)
    assert 0 <= fit.lower_bound <= fit.error
    assert fit.unweighted_error == pytest.approx(float((W - blockwise(fit.structure)).norm() / W.norm()), abs=1e-9)
    assert fit.error <= low_rank_error(W, metric, rank) + 1e-3  # the start is that, but for noise


@pytest.mark.parametrize("blocks", [(1, 1), (1, 4), (4, 1)])
def test_one_row_or_column_of_blocks_is_low_rank(blocks: tuple[int, int]) -> None:
    """There U_a diag(D_ab) V_b has nothing that one matrix of rank r has not."""
    W, metric = normal(8, 8), metric_of(8)
    fit = fit_blast(W, blocks, 3, metric, rounds=60)
    assert fit.error == pytest.approx(low_rank_error(W, metric, 3), rel=1e-4)
    if blocks[0] == 1:
        assert fit.lower_bound == pytest.approx(fit.error, rel=1e-4)


def test_sharing_bases_is_better_than_low_rank() -> None:
    W, metric = normal(16, 16), metric_of(16)
    assert fit_blast(W, (4, 4), 4, metric).error < 0.9 * low_rank_error(W, metric, 4)


def test_a_matrix_of_the_structure_is_found() -> None:
    W = random_blast(16, 16, (2, 2), 2).dense()
    fit = fit_blast(W, (2, 2), 2, metric_of(16), rounds=300)
    assert fit.error < 0.05
    assert fit.lower_bound < 1e-6
    assert low_rank_error(W, metric_of(16), 2) > 0.2


@pytest.mark.parametrize("blocks", [(2, 3), (3, 2)])
def test_the_end_is_a_stationary_point_of_the_weighted_error(blocks: tuple[int, int]) -> None:
    W, metric = normal(12, 12), metric_of(12, samples=200)
    fit = fit_blast(W, blocks, 2, metric, rounds=2000)
    root = cholesky(metric.covariance)
    parts = [p.clone().requires_grad_() for p in (fit.structure.left, fit.structure.coupling, fit.structure.right)]
    value = ((W - Blast(*parts).dense()) @ root).square().sum()
    total = float((W @ root).square().sum())
    for gradient, part in zip(torch.autograd.grad(value, parts), parts, strict=True):
        assert float(gradient.norm() * part.detach().norm()) < 0.05 * total


@pytest.mark.parametrize("blocks", [(3, 2), (2, 3), (3, 1)])
def test_the_last_solve_of_a_round_is_exact(blocks: tuple[int, int]) -> None:
    """The gradient of the weighted error with respect to the last block of V is zero, to rounding."""
    W, metric = normal(12, 12), metric_of(12)
    work = _Alternation(W, metric, blocks, 2, seed=0)
    work.round()
    root, right = cholesky(metric.covariance), work.V.clone().requires_grad_()
    value = ((W - Blast(work.U, work.D, right).dense()) @ root).square().sum()
    (gradient,) = torch.autograd.grad(value, right)
    scale = float((W @ root).square().sum())
    assert float(gradient[-1].norm() * work.V[-1].norm()) < 1e-8 * scale


def test_bases_of_the_rows_are_solved_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Alternation, "_solve_right", lambda *_: None)
    W, metric = normal(12, 12), metric_of(12)
    work = _Alternation(W, metric, (3, 2), 2, seed=0)
    work.round()
    root, left = cholesky(metric.covariance), work.U.clone().requires_grad_()
    value = ((W - Blast(left, work.D, work.V).dense()) @ root).square().sum()
    (gradient,) = torch.autograd.grad(value, left)
    assert float(gradient.norm() * work.U.norm()) < 1e-8 * float((W @ root).square().sum())


def test_couplings_are_solved_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """D is the least-squares solution over the rank-one blocks of the U before it and V."""
    monkeypatch.setattr(_Alternation, "_solve_right", lambda *_: None)
    lefts: list[torch.Tensor] = []
    solve_left = _Alternation._solve_left

    def noting(work: _Alternation, *arguments: torch.Tensor) -> None:
        solve_left(work, *arguments)
        lefts.append(work.U.clone())

    monkeypatch.setattr(_Alternation, "_solve_left", noting)
    W, metric = normal(6, 8), metric_of(8)
    work = _Alternation(W, metric, (3, 2), 2, seed=0)
    work.round()
    root = cholesky(metric.covariance)
    columns = []
    for a in range(3):
        for b in range(2):
            for k in range(2):
                full = torch.zeros(6, 8, dtype=torch.float64)
                full[2 * a : 2 * a + 2, 4 * b : 4 * b + 4] = torch.outer(lefts[0][a, :, k], work.V[b, k])
                columns.append((full @ root).reshape(-1))
    wanted = torch.linalg.lstsq(torch.stack(columns, dim=1), (W @ root).reshape(-1)).solution.reshape(3, 2, 2)
    torch.testing.assert_close(work.D, wanted, rtol=1e-6, atol=1e-8)


def test_the_bound_is_that_of_the_block_rows() -> None:
    W, metric = normal(12, 9), metric_of(9)
    whitened = W @ cholesky(metric.covariance)
    tail = sum(float(torch.linalg.svdvals(part)[2:].square().sum()) for part in whitened.split(4))
    assert fit_blast(W, (3, 3), 2, metric, rounds=2).lower_bound == pytest.approx(
        sqrt(tail) / float(whitened.norm()), rel=1e-9
    )


def test_no_blast_is_below_the_bound() -> None:
    metric = metric_of(9)
    W = normal(6, 9)
    bound = fit_blast(W, (2, 3), 1, metric, rounds=1).lower_bound
    root, best = cholesky(metric.covariance), math.inf
    for seed in range(20):
        best = min(best, fit_blast(W, (2, 3), 1, metric, seed=seed).error)
    starts = [random_blast(6, 9, (2, 3), 1, seed=7 * s) for s in range(20)]
    parts = [torch.stack([getattr(b, name) for b in starts]).requires_grad_() for name in ("left", "coupling", "right")]

    def errors() -> torch.Tensor:
        left, coupling, right = parts
        dense = torch.einsum("saik,sabk,sbkj->saibj", left, coupling, right).reshape(20, 6, 9)
        return ((W - dense) @ root).square().sum((1, 2))

    best = min(best, sqrt(least(parts, errors)) / metric.norm(W))
    assert 0 < bound <= best + 1e-9


def test_the_same_seed_gives_the_same_bytes() -> None:
    W, metric = normal(8, 8), metric_of(8)
    one, same, other = (fit_blast(W, (2, 2), 2, metric, seed=s).structure for s in (3, 3, 4))
    assert torch.equal(one.left, same.left)
    assert torch.equal(one.coupling, same.coupling)
    assert torch.equal(one.right, same.right)
    assert not torch.equal(one.coupling, other.coupling)


def test_parts_are_of_like_size() -> None:
    fit = fit_blast(1e6 * normal(8, 8), (2, 2), 3, metric_of(8))
    u = fit.structure.left.norm(dim=1).amax(0)
    v = torch.einsum(
        "brp,bpq,brq->br",
        fit.structure.right,
        metric_of(8).covariance.reshape(2, 4, 2, 4).diagonal(dim1=0, dim2=2).movedim(-1, 0),
        fit.structure.right,
    )
    torch.testing.assert_close(u, v.sqrt().amax(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        fit.structure.coupling.abs().amax(dim=(0, 1)), torch.ones(3, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_inputs_that_fill_no_space() -> None:
    x = normal(2, 8)
    fit = fit_blast(normal(8, 8), (2, 2), 2, Metric(x.mT @ x / 2, damp=0.0))
    assert fit.error < 1e-3
    assert bool(torch.isfinite(fit.structure.dense()).all())


@pytest.mark.parametrize("zero", ["rows", "columns"])
def test_a_block_row_or_column_of_zeros_is_no_trouble(zero: str) -> None:
    W = normal(8, 8)
    (W if zero == "rows" else W.mT)[:4] = 0
    fit = fit_blast(W, (2, 2), 2, metric_of(8))
    assert bool(torch.isfinite(fit.structure.dense()).all())
    assert fit.error <= low_rank_error(W, metric_of(8), 2) + 1e-3


def test_the_zero_matrix_is_exact_and_the_default_norm_is_frobenius() -> None:
    fit = fit_blast(torch.zeros(4, 6), (2, 2), 1)
    assert (fit.error, fit.lower_bound, fit.history) == (0, 0, (0,))
    fit = fit_blast(normal(4, 6), (2, 2), 1)
    assert fit.error == pytest.approx(fit.unweighted_error, rel=1e-12)


def test_progress_counts_the_rounds() -> None:
    seen: list[tuple[int, int]] = []
    fit = fit_blast(normal(8, 8), (2, 2), 2, rounds=3, progress=lambda i, n: seen.append((i, n)))
    assert seen == [(i + 1, 3) for i in range(len(fit.history) - 1)]


@pytest.mark.parametrize(
    ("W", "blocks", "rank", "message"),
    [
        (torch.ones(12, 8), (5, 2), 1, r"5 blocks do not divide 12 rows\. Rule: a divisor; the nearest is 4"),
        (torch.ones(12, 8), (2, 3), 1, r"3 blocks do not divide 8 columns\. .*nearest is 2"),
        (torch.ones(12, 8), (0, 2), 1, r"0 blocks do not divide 12 rows\. .*nearest is 1"),
        (torch.ones(12, 8), (2, 2), 0, r"rank is 0\. Rule: a whole number, at least 1"),
        (torch.ones(12, 7), (2, 2), 1, r"W is \(12, 7\) .*one column for each of 8 inputs"),
        (torch.ones(12, 8, dtype=torch.complex128), (2, 2), 1, r"complex128\. Rule: real"),
        (torch.full((12, 8), math.inf), (2, 2), 1, r"W has 96 entries that are NaN or Inf"),
    ],
)
def test_bad_arguments_are_refused(W: torch.Tensor, blocks: tuple[int, int], rank: int, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        fit_blast(W, blocks, rank, Metric.identity(8))


@pytest.mark.parametrize(
    ("W", "message"), [(3.0, r"W has shape \(\)\. Rule: a matrix"), ([[1.0], [1.0, 2.0]], "W is ragged")]
)
def test_what_is_no_matrix_is_refused_without_a_metric_too(W: object, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        fit_blast(W, (1, 1), 1)
