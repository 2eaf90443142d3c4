"""Descents of all values together: gradients, supports, when they stop."""

import itertools

import numpy as np
import pytest
import torch

from flatwing.factorize.descent import descend, polish, random_factor
from flatwing.structure import Support


def instance(
    count: int, kind: str, seed: int = 0
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 8, count + 1)
    dtype = np.dtype(kind)
    masks = [rng.random((int(m), int(n))) < 0.6 for m, n in itertools.pairwise(sizes)]
    factors = [random_factor(mask, dtype, rng) for mask in masks]
    A = random_factor(np.ones((int(sizes[0]), int(sizes[-1])), bool), dtype, rng)
    return A, factors, masks, rng


def product(factors: list[np.ndarray]) -> np.ndarray:
    return np.linalg.multi_dot(factors) if len(factors) > 1 else factors[0]


@pytest.mark.parametrize("kind", ["float64", "complex128"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_ends_in_a_stationary_point_on_the_masks(count: int, kind: str) -> None:
    A, factors, masks, rng = instance(count, kind)
    before = np.linalg.norm(A - product(factors))
    found = polish(A, factors, masks, 5000)
    error = np.linalg.norm(A - product(found))
    assert error < before
    assert all(not factor[~mask].any() for factor, mask in zip(found, masks, strict=True))
    assert [factor.dtype for factor in found] == [np.dtype(kind)] * count
    # no small change of the values lowers the error by more than its square
    for _ in range(20):
        changed = [f + 1e-5 * random_factor(mask, f.dtype, rng) for f, mask in zip(found, masks, strict=True)]
        assert np.linalg.norm(A - product(changed)) > error - 1e-7


def test_one_factor_is_solved_at_once() -> None:
    A, factors, masks, _ = instance(1, "float64")
    (found,) = polish(A, factors, masks, 50)
    np.testing.assert_allclose(found, np.where(masks[0], A, 0), atol=1e-9)


def test_never_worse_and_given_factors_stay_as_they_are() -> None:
    A, factors, masks, _ = instance(3, "float64")
    kept = [factor.copy() for factor in factors]
    errors = [np.linalg.norm(A - product(polish(A, factors, masks, steps))) for steps in (1, 10, 100)]
    assert errors[0] >= errors[1] >= errors[2]
    assert all(np.array_equal(factor, copy) for factor, copy in zip(factors, kept, strict=True))
    best = polish(A, factors, masks, 5000)
    again = polish(A, best, masks, 5)
    assert np.linalg.norm(A - product(again)) <= np.linalg.norm(A - product(best))


def test_start_with_zeros_everywhere_stays_put() -> None:
    A, factors, masks, _ = instance(2, "float64")
    zeros = [np.zeros_like(factor) for factor in factors]
    assert not any(factor.any() for factor in polish(A, zeros, masks, 20))


def test_best_of_several_starts() -> None:
    rng = np.random.default_rng(3)
    A = torch.from_numpy(rng.standard_normal((6, 6)))
    supports = Support(rng.random((6, 4)) < 0.6), Support(rng.random((4, 6)) < 0.6)
    calls: list[tuple[str, int, int]] = []
    X, Y, notes = descend(A, supports, 4, 0, lambda *call: calls.append(call))
    assert calls[-1] == ("descents", 4, 4)
    assert notes[0].startswith("best of 4 descents; ")
    assert Support.non_zeros(X) <= supports[0]
    assert Support.non_zeros(Y) <= supports[1]
    one = descend(A, supports, 1, 0)
    assert torch.linalg.norm(A - X @ Y) <= torch.linalg.norm(A - one[0] @ one[1]) + 1e-12
    again = descend(A, supports, 4, 0)
    assert torch.equal(X, again[0])
    assert not torch.equal(X, descend(A, supports, 4, 1)[0])


def test_ends_early_where_the_error_is_rounding() -> None:
    _A, factors, masks, _ = instance(2, "float64")
    target = product(factors)
    found = polish(target, [f + 0.01 * mask for f, mask in zip(factors, masks, strict=True)], masks, 100_000)
    assert np.linalg.norm(target - product(found)) < 1e-12 * np.linalg.norm(target)


def test_runaway_factors_are_cut_off() -> None:
    # no optimum exists: the error falls for ever while the factors grow; the number of steps is what ends it
    lower = np.tri(2) > 0
    A = np.array([[0.0, 1], [1, 0]])
    start = [random_factor(mask, A.dtype, np.random.default_rng(0)) for mask in (lower, lower.T)]
    short, long = (polish(A, start, [lower, lower.T], steps) for steps in (100, 1000))
    assert np.linalg.norm(A - product(long)) < np.linalg.norm(A - product(short)) < 0.5
    assert np.linalg.norm(long[0]) > np.linalg.norm(short[0])


def test_random_values() -> None:
    mask = np.tri(200) > 0
    real, complex_ = (random_factor(mask, np.dtype(kind), np.random.default_rng(0)) for kind in ("f8", "c16"))
    assert not real[~mask].any()
    assert real[mask].std() == pytest.approx(1, abs=0.02)
    assert np.abs(complex_[mask].imag).mean() == pytest.approx(np.sqrt(2 / np.pi), abs=0.02)
