"""Margins, the widest one, and the proof that none is wider."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from flatwing.optim.margin import MaxMargin, Rows, dual_bound, margin, relative_gap, widest_margin


def separable(seed: int, n: int = 40, d: int = 10) -> np.ndarray:
    """Rows y_i x_i, the longest of norm 1, of normal samples labelled by a random direction."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    z = np.sign(x @ rng.standard_normal(d))[:, None] * x
    return z / np.linalg.norm(z, axis=1).max()


def by_least_squares(z: np.ndarray) -> np.ndarray:
    """The widest margin's direction by another road: min |Z^T p|^2 + (sum p - 1)^2 over p >= 0, normalized."""
    p = nnls(np.vstack([z.T, np.ones(len(z))]), np.append(np.zeros(z.shape[1]), 1.0))[0]
    return z.T @ p / np.linalg.norm(z.T @ p)


@pytest.mark.parametrize("seed", range(8))
def test_the_widest_margin_is_that_of_non_negative_least_squares(seed: int) -> None:
    z = separable(seed)
    best = widest_margin(z)
    assert best.separable
    assert best.gap <= 1e-11
    assert best.margin == pytest.approx(margin(z, by_least_squares(z)), rel=1e-9)
    np.testing.assert_allclose(best.w, by_least_squares(z), atol=1e-8)


@given(st.integers(0, 10_000))
def test_no_direction_beats_the_bound_of_any_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((6, 3))
    assert margin(z, rng.standard_normal(3)) <= dual_bound(z, rng.random(6)) + 1e-12


@given(st.integers(0, 10_000))
def test_margin_and_bound_enclose_the_widest_margin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rng.integers(1, 12), 4))
    best = widest_margin(z)
    if best.separable:
        assert 0 <= best.gap <= 1e-9
        assert best.margin == pytest.approx(margin(z, best.w), rel=1e-12)
    else:  # the origin is a mean of rows
        assert best.bound <= 1e-12 * np.linalg.norm(z, axis=1).max()


@pytest.mark.parametrize("seed", range(4))
def test_sides_leave_the_intercept_free(seed: int) -> None:
    z = separable(seed)
    sides = np.arange(40) % 2
    x = np.where(sides[:, None] == 1, z, -z) + 7.0  # moved far from the origin: only the intercept can follow
    hull = Rows(np.where(sides[:, None] == 1, x, -x), sides)
    best = widest_margin(hull)
    scores = x @ best.w + hull.threshold(best.w)
    reached = np.where(sides == 1, scores, -scores).min()
    assert reached == pytest.approx(best.margin, rel=1e-9)
    assert best.gap < 1e-9
    assert best.margin >= widest_margin(z).margin  # an intercept more: never narrower


def test_two_points_are_parted_in_the_middle() -> None:
    hull = Rows(np.array([[-1.0, -1.0], [4.0, 5.0]]), np.array([0, 1]))
    best = widest_margin(hull)
    assert best.margin == pytest.approx(2.5)
    assert hull.threshold(best.w) == pytest.approx(-(0.6 * 2.5 + 0.8 * 3.0))


@pytest.mark.parametrize("length", [1.0, 1e6, 1e12])
def test_the_loss_is_never_formed(length: float) -> None:
    z = separable(0)
    w = length * widest_margin(z).w
    loss = Rows(z).soft(w)
    assert np.isfinite(loss.log_loss)
    assert loss.low == pytest.approx((z @ w).min())
    assert -loss.low - np.log(40) <= loss.log_loss <= -loss.low
    # a point of the hull: its norm bounds every margin
    assert np.linalg.norm(loss.point) >= widest_margin(z).margin * (1 - 1e-9)


@pytest.mark.parametrize("sides", [None, np.arange(6) % 2])
def test_the_point_is_minus_the_gradient_of_the_log_loss(sides: np.ndarray | None) -> None:
    rng = np.random.default_rng(0)
    hull, w, step = Rows(rng.standard_normal((6, 3)), sides), rng.standard_normal(3), 1e-6
    slopes = [(hull.soft(w + step * e).log_loss - hull.soft(w - step * e).log_loss) / (2 * step) for e in np.eye(3)]
    np.testing.assert_allclose(hull.soft(w).point, -np.array(slopes), atol=1e-8)


def test_the_pass_limit_leaves_a_true_gap() -> None:
    z = separable(0)
    best, rough = widest_margin(z), widest_margin(z, max_iter=5)
    assert rough.iterations == 5
    assert rough.margin < best.margin < rough.bound
    assert rough.gap > 1e-3


def test_data_around_the_origin_does_not_separate() -> None:
    found = widest_margin(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    assert not found.separable
    assert found.bound == 0
    assert found.gap == np.inf


@pytest.mark.parametrize("w", [np.zeros(2), np.array([np.nan, 1.0]), np.array([np.inf, 1.0])])
def test_what_is_no_direction_is_refused(w: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"w has norm .* Rule: a direction"):
        margin(np.eye(2), w)


@pytest.mark.parametrize("weights", [np.array([1.0, -1.0]), np.zeros(2), np.array([np.nan, 1.0])])
def test_what_is_no_mean_is_refused(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"weights sum to .* Rule: >= 0"):
        dual_bound(np.eye(2), weights)


@pytest.mark.parametrize("z", [np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]]), np.zeros((0, 2))])
def test_bad_rows_are_refused(z: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^z "):
        widest_margin(z)


def test_the_gap_is_relative_to_the_bound() -> None:
    assert relative_gap(1.0, 2.0) == 0.5
    assert MaxMargin(np.ones(1), -1.0, 0.0, 1).gap == np.inf
