"""The law of factors that run away, told from runs that converge and runs that blow up."""

import numpy as np
import pytest

from flatwing.structure.growth import diverging


def descend(A: np.ndarray, seed: int) -> tuple[list[float], list[float]]:
    """Gradient descent on ||X Y - A||^2 with X, Y triangular; norms and residuals at steps 32, 64, 128, ..."""
    generator = np.random.default_rng(seed)
    mask = np.tril(np.ones((2, 2)))
    X, Y = generator.standard_normal((2, 2)) * mask, generator.standard_normal((2, 2)) * mask.T
    norms, residuals = [], []
    for step in range(1, 2**15 + 1):
        rest = X @ Y - A
        X, Y = X - 0.05 * (rest @ Y.T) * mask, Y - 0.05 * (X.T @ rest) * mask.T
        if step >= 32 and step & (step - 1) == 0:
            norms.append(float(np.linalg.norm(X) + np.linalg.norm(Y)))
            residuals.append(float(np.linalg.norm(rest)))
    return norms, residuals


def test_descent_on_the_lu_example_runs_away() -> None:
    for seed in (0, 2, 3):
        growth = diverging(*descend(np.array([[0.0, 1.0], [1.0, 0.0]]), seed))
        assert growth.diverging, growth
        assert growth.exponent == pytest.approx(0.5, abs=0.2)
        assert growth.norm > 1.5
        assert str(growth).startswith("runs away: norm ~ residual^-0.")


def test_descent_to_a_matrix_that_is_attained_does_not() -> None:
    for seed in range(4):
        growth = diverging(*descend(np.array([[2.0, 1.0], [1.0, 3.0]]), seed))
        assert not growth.diverging, growth
        assert abs(growth.exponent) < 0.02


def test_exponent_and_its_error() -> None:
    generator = np.random.default_rng(0)
    residuals = np.geomspace(1, 1e-4, 40)
    inside = 0
    for _ in range(200):
        norms = 3 * residuals**-0.5 * np.exp(0.1 * generator.standard_normal(40))
        growth = diverging(list(norms), list(residuals))
        inside += abs(growth.exponent - 0.5) <= 2 * growth.stderr
        assert growth.diverging
    assert 180 <= inside <= 200, "about 95 %"


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.1, 1.0])
def test_other_laws_are_no_such_divergence(exponent: float) -> None:
    residuals = np.geomspace(1, 1e-4, 20)
    assert not diverging(list(residuals**-exponent), list(residuals)).diverging


def test_growth_that_stops_is_no_divergence() -> None:
    """On the way to a matrix that is attained the norm grows at first; most of the fall of the residual is later."""
    residuals = np.geomspace(1, 0.05, 16)
    norms = np.minimum(residuals**-0.5, residuals[9] ** -0.5)
    growth = diverging(list(norms), list(residuals))
    assert growth.norm > 1.4
    assert growth.exponent - 2 * growth.stderr > 0.15, "by the whole alone it would be one"
    assert growth.late < 0.1
    assert not growth.diverging
    assert diverging(list(residuals**-0.5), list(residuals)).late == pytest.approx(0.5)


def test_a_short_way_tells_nothing() -> None:
    for exponent, least, told in ((0.5, 0.3, False), (0.5, 0.2, True), (0.22, 0.24, False), (0.22, 0.16, True)):
        residuals = np.geomspace(1, least, 16)
        assert diverging(list(residuals**-exponent), list(residuals)).diverging == told


def test_what_tells_nothing() -> None:
    assert not diverging([1.0, 2.0, 4.0], [1.0, 0.25, 0.0625]).diverging, "too few"
    assert "too few points" in str(diverging([1.0], [1.0]))
    assert diverging([1.0] * 8, [1.0] * 8).stderr == float("inf")
    noisy = np.exp(np.random.default_rng(1).standard_normal(8) * 3)
    assert not diverging(list(noisy), list(np.geomspace(1, 0.1, 8))).diverging
    eps = 2.0 ** -np.arange(12)
    rests = np.where(np.arange(12) < 9, eps**2, 0)
    assert diverging(list(1 / eps), list(rests)).points == 9, "what is after the arrival is not looked at"
    assert not diverging(list(1 / eps), list(1 / eps**2)).diverging, "the residual grows"


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="two lists of one length"):
        diverging([1.0, 2.0], [1.0])
    for norms, residuals in (([0.0], [1.0]), ([1.0], [-1.0]), ([float("nan")], [1.0]), ([1.0], [float("inf")])):
        with pytest.raises(ValueError, match="norms > 0, residuals >= 0"):
            diverging(norms, residuals)
