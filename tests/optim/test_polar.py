import numpy as np
import pytest
import torch

from flatwing.optim.polar import best_quintic, newton_schulz, polar, quintics, span

MUON = (3.4445, -4.775, 2.0315)


def apply(x: np.ndarray, table: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    for a, b, c in table:
        x = a * x + b * x**3 + c * x**5
    return x


@pytest.mark.parametrize(("lower", "upper"), [(5e-4, 1.0), (0.3, 1.7), (0.9, 1.1), (1e-6, 2.0)])
def test_best_quintic_alternates_at_four_points(lower: float, upper: float) -> None:
    best, distance = best_quintic(lower, upper)
    error = apply(np.linspace(lower, upper, 200_001), (best,)) - 1
    assert np.abs(error).max() == pytest.approx(distance, abs=1e-9)
    # four extremes of alternating sign: by Chebyshev's theorem no odd quintic does better
    extremes = error[np.abs(error) > distance * (1 - 1e-6)]
    signs = np.sign(extremes)[np.flatnonzero(np.diff(np.sign(extremes), prepend=0))]
    assert signs.tolist() in ([-1, 1, -1, 1], [1, -1, 1, -1])


def test_no_other_quintic_is_closer() -> None:
    best, distance = best_quintic(0.2, 1.3)
    x = np.linspace(0.2, 1.3, 2001)
    for change in np.random.default_rng(0).normal(size=(200, 3)) * 1e-2:
        assert np.abs(apply(x, (tuple(np.array(best) + change),)) - 1).max() > distance


@pytest.mark.parametrize("error", [0.1, 1e-2, 1e-4])
def test_composition_is_as_close_as_asked_and_monotone_below(error: float) -> None:
    table = quintics(1e-3, 1.0, error)
    assert np.abs(apply(np.geomspace(1e-3, 1.0, 100_000), table) - 1).max() <= error
    below = apply(np.geomspace(1e-9, 1e-3, 1000), table)
    assert (np.diff(below) > 0).all()
    assert below.max() <= 1 + error
    with_one_less = apply(np.geomspace(1e-3, 1.0, 100_000), table[:-1])
    assert np.abs(with_one_less - 1).max() > error


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (1.0, 0.5), (0.1, np.inf)])
def test_interval_is_checked(lower: float, upper: float) -> None:
    with pytest.raises(ValueError, match="0 < lower < upper"):
        best_quintic(lower, upper)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (17, 17), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_polar_factor_is_that_of_the_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0, -3, min(shape), dtype=torch.float64)
    found = polar(((u * s) @ vh).to(dtype), 5e-4, 1.0)
    assert found.dtype == dtype
    assert torch.linalg.matrix_norm(found.double() - u @ vh, 2) <= 0.02


def test_muon_alone_does_not_get_there() -> None:
    """Five steps of Muon leave singular values up to 0.32 from 1: too far to tell which are sharp."""
    least, most = span(MUON, 5)
    assert least == pytest.approx(0.682, abs=1e-3)
    assert most == pytest.approx(1.134, abs=1e-3)
    values = torch.linalg.svdvals(newton_schulz(torch.randn(40, 90), MUON, 5, 1e-7).float())
    assert 0.6 < values.min() < 0.95
    assert values.max() < 1.05 * most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_is_not_changed(dtype: torch.dtype) -> None:
    matrix = torch.randn(4, 6).to(dtype)
    before = matrix.clone()
    newton_schulz(matrix, MUON, 5, 1e-7)
    assert torch.equal(matrix, before)
