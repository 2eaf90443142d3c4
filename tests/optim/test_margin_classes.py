"""The hull of several classes against brute force over samples, cycles and intercepts."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatwing.optim.margin import Rows, widest_margin
from flatwing.optim.margin_classes import ROOT2, Classes, balance, least_cycle
from flatwing.optim.prgd import at, normalized_gd, prgd


def three_heaps(seed: int = 0, per_class: int = 5, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), per_class)
    return 0.3 * rng.standard_normal((len(y), d)) + np.eye(3, d)[y], y


def all_cycles(k: int) -> list[list[tuple[int, int]]]:
    loops = (loop for size in range(2, k + 1) for loop in permutations(range(k), size) if loop[0] == min(loop))
    return [list(zip(loop, [*loop[1:], loop[0]], strict=True)) for loop in loops]


@given(st.integers(0, 10_000))
def test_the_least_cycle_is_the_least_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    costs = rng.standard_normal((k, k)).round(int(rng.integers(0, 3)))  # ties included
    np.fill_diagonal(costs, np.inf)
    found = least_cycle(costs)
    assert [b for _, b in found] == [a for a, _ in found[1:] + found[:1]]

    def mean(cycle: list[tuple[int, int]]) -> float:
        return float(np.mean([costs[edge] for edge in cycle]))

    assert mean(found) == pytest.approx(min(map(mean, all_cycles(k))), abs=1e-12)


@given(st.integers(0, 10_000), st.floats(0.1, 30.0))
def test_balanced_flows_leave_each_class_as_they_enter(seed: int, spread: float) -> None:
    logs = spread * np.random.default_rng(seed).standard_normal((3, 3))
    offsets = balance(logs, np.zeros(3), sweeps=100)
    flow = np.exp(logs - offsets[:, None] + offsets)
    np.fill_diagonal(flow, 0.0)
    np.testing.assert_allclose(flow.sum(0), flow.sum(1), atol=1e-6 * flow.sum())


def scores_of(hull: Classes, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ w.reshape(hull.count, -1).T + hull.intercepts(w)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_the_widest_margin_holds_for_every_sample_and_class(fit_intercept: bool) -> None:
    x, y = three_heaps()
    hull = Classes(x + 3.0 * fit_intercept, y, fit_intercept)
    best = widest_margin(hull)
    scores = scores_of(hull, best.w, x + 3.0 * fit_intercept)
    others = [scores[i, y[i]] - scores[i, j] for i in range(len(y)) for j in range(3) if j != y[i]]
    assert min(others) / ROOT2 == pytest.approx(best.margin, rel=1e-9)
    assert best.gap < 1e-10


def test_intercepts_make_moving_the_data_free() -> None:
    x, y = three_heaps()
    here, there = widest_margin(Classes(x, y, True)), widest_margin(Classes(x + 5.0, y, True))
    assert here.margin == pytest.approx(there.margin, rel=1e-9)
    assert here.margin > widest_margin(Classes(x, y, False)).margin * (1 + 1e-6)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_two_classes_have_the_margin_of_one_boundary(fit_intercept: bool) -> None:
    x, y = three_heaps()
    x, y = x[y < 2], y[y < 2]
    z = np.where(y[:, None] == 1, x, -x)
    one = widest_margin(Rows(z, y if fit_intercept else None))
    two = widest_margin(Classes(x, y, fit_intercept))
    assert two.margin == pytest.approx(one.margin, rel=1e-9)
    weights = two.w.reshape(2, -1)
    np.testing.assert_allclose((weights[1] - weights[0]) / ROOT2, one.w, atol=1e-7)


def test_the_margin_is_a_distance_to_every_boundary() -> None:
    x, y = three_heaps()
    hull = Classes(x, y, True)
    best = widest_margin(hull)
    weights, scores = best.w.reshape(3, -1), scores_of(hull, best.w, x)
    for i, a in enumerate(y):
        for b in {0, 1, 2} - {int(a)}:
            assert (scores[i, a] - scores[i, b]) / np.linalg.norm(weights[a] - weights[b]) >= best.margin * (1 - 1e-9)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_vertices_and_centre_are_in_the_hull(fit_intercept: bool) -> None:
    x, y = three_heaps()
    hull, rng = Classes(x, y, fit_intercept), np.random.default_rng(1)
    for _ in range(20):
        w = rng.standard_normal(hull.dim)
        value, vertex = hull.hardest(w)
        assert value == pytest.approx(vertex @ w)
        assert value <= hull.centre() @ w
        assert value <= hull.soft(w).point @ w + 1e-9
        assert hull.soft(w).low == pytest.approx(value)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_the_point_is_minus_the_gradient_of_the_log_loss(fit_intercept: bool) -> None:
    x, y = three_heaps(per_class=3, d=2)
    hull, step = Classes(x, y, fit_intercept), 1e-5
    w = np.random.default_rng(0).standard_normal(hull.dim)
    point = hull.soft(w).point
    slopes = [
        (hull.soft(w + step * e).log_loss - hull.soft(w - step * e).log_loss) / (2 * step) for e in np.eye(hull.dim)
    ]
    np.testing.assert_allclose(point, -np.array(slopes), atol=1e-6)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_rescaling_finds_the_widest_margin_of_three_classes(fit_intercept: bool) -> None:
    x, y = three_heaps(per_class=3)
    hull = Classes(x / np.linalg.norm(x, axis=1).max(), y, fit_intercept)
    best = widest_margin(hull)
    (slow,), (fast,) = at(normalized_gd(hull), 1000), at(prgd(hull), 1000)

    def gap(w: np.ndarray) -> float:
        return 1 - hull.hardest(w / np.linalg.norm(w))[0] / best.bound

    assert 0 <= gap(fast) < gap(slow) / 5
