"""The lower bound of disjoint rectangles: never above what can be reached, and sharp where it can be."""

import numpy as np
import pytest
import torch

from flatwing.factorize import factorize_fixed
from flatwing.factorize.rectangles import rectangle_bound
from flatwing.structure import tractability


def bound(A: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    return rectangle_bound(torch.from_numpy(A), tractability(left, right))


def random_masks(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    m, n, r = rng.integers(3, 10, 3)
    left, right = rng.random((m, r)) < 0.5, rng.random((r, n)) < 0.5
    left[0, 0] = right[0, 0] = True
    return rng, left, right


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("seed", range(40))
def test_never_above_a_product_on_the_supports(seed: int, kind: str) -> None:
    rng, left, right = random_masks(seed)
    X, Y = rng.standard_normal(left.shape) * left, rng.standard_normal(right.shape) * right
    noise = rng.standard_normal((len(X), Y.shape[1])) * 10.0 ** rng.integers(-4, 1)
    if kind == "complex":
        X, noise = X * np.exp(1j * rng.random(left.shape)), noise * (1 + 1j)
    assert bound(X @ Y + noise, left, right) <= float((np.abs(noise) ** 2).sum()) * (1 + 1e-12)
    # a product on the supports itself can be reached
    assert bound(X @ Y, left, right) <= 1e-24 * float((np.abs(X @ Y) ** 2).sum()) + 1e-28


def test_what_is_out_of_reach_is_lost() -> None:
    left, right = np.array([[1], [0]]) > 0, np.array([[1, 1, 0]]) > 0
    A = np.array([[1.0, 2, 3], [4, 5, 6]])
    assert bound(A, left, right) == pytest.approx(9 + 16 + 25 + 36)


def test_one_full_class_is_the_tail_of_the_singular_values() -> None:
    A = np.random.default_rng(0).standard_normal((6, 5))
    tail = np.linalg.svd(A, compute_uv=False)[2:]
    assert bound(A, np.ones((6, 2), bool), np.ones((2, 5), bool)) == pytest.approx(float((tail**2).sum()))


@pytest.mark.parametrize("seed", range(10))
def test_disjoint_blocks_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((6, 6))
    left, right = np.kron(np.eye(2), np.ones((3, 1))) > 0, np.kron(np.eye(2), np.ones((1, 3))) > 0
    tails = [np.linalg.svd(A[k : k + 3, k : k + 3], compute_uv=False)[1:] for k in (0, 3)]
    outside = (A[:3, 3:] ** 2).sum() + (A[3:, :3] ** 2).sum()
    assert bound(A, left, right) == pytest.approx(outside + sum(float((t**2).sum()) for t in tails))


def test_positive_where_no_theorem_applies() -> None:
    # a full column and single entries of their own: a rectangle that only the full column reaches is left
    left, right = np.ones((4, 2), bool), np.ones((2, 4), bool)
    left[1:, 1] = right[1, 1:] = False
    assert not tractability(left, right)
    A = np.random.default_rng(0).standard_normal((4, 4))
    below = np.linalg.svd(A[1:], compute_uv=False)[1:]
    beside = np.linalg.svd(A[:, 1:], compute_uv=False)[1:]
    best = max(float((below**2).sum()), float((beside**2).sum()))
    reached = factorize_fixed(A, [left, right]).certificate.error * np.linalg.norm(A)
    # the two overlap: they do not add up
    assert best * (1 - 1e-12) <= bound(A, left, right) <= reached**2 * (1 + 1e-12)
    assert reached**2 < float((below**2).sum() + (beside**2).sum())


def test_lower_triangular_factors_can_do_almost_everything() -> None:
    lower = np.tri(3) > 0
    A = np.fliplr(np.eye(3)).copy()
    assert bound(A, lower, lower.T) == 0


def test_rounding_is_no_lower_bound() -> None:
    """A is a product on the supports, with entries of very different sizes: nothing may be said to be below it."""
    generator = np.random.default_rng(0)
    for _ in range(40):
        left, right = generator.random((4, 3)) < 0.7, generator.random((3, 4)) < 0.7
        if not (left.any(0) & right.any(1)).any():
            continue
        X = generator.standard_normal((4, 3)) * left * 10.0 ** generator.integers(-6, 4, (4, 3))
        A = X @ (generator.standard_normal((3, 4)) * right)
        if A.any():
            assert factorize_fixed(A, [left, right], starts=1).certificate.lower_bound == 0.0
