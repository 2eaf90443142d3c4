"""Neighbours that act as one factor, and families spread over the given factors."""

from itertools import pairwise

import numpy as np
import pytest

from flatwing.structure import Support, wellposedness
from flatwing.structure.merged import Merged, different_entries, everything, merged, spread

LOWER = np.tril(np.ones((2, 2), dtype=bool))
MOST = 10**6


def some_supports(count: int) -> list[list[np.ndarray]]:
    """Random supports of three to five factors; the product of some is zero, which is refused."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        sizes = rng.integers(2, 6, rng.integers(4, 7))
        found.append([rng.random(shape) < rng.choice([0.4, 0.6, 0.8, 1.0]) for shape in pairwise(sizes)])
    return [supports for supports in found if all(mask.any() for mask in supports) and reaches(supports)]


def reaches(supports: list[np.ndarray]) -> bool:
    return all((a.astype(int) @ b).any() for a, b in pairwise(supports)) and bool(
        np.linalg.multi_dot([mask.astype(float) for mask in supports]).any()
    )


def distance(target: np.ndarray, left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> float:
    """How near alternating least squares come to a matrix, relative, the best of three starts."""
    best = np.inf
    for _ in range(3):
        X, Y = rng.standard_normal(left.shape) * left, rng.standard_normal(right.shape) * right
        for _ in range(100):
            for j in range(right.shape[1]):
                Y[right[:, j], j] = np.linalg.lstsq(X[:, right[:, j]], target[:, j], rcond=None)[0]
            for i in range(len(left)):
                X[i, left[i]] = np.linalg.lstsq(Y[left[i]].T, target[i], rcond=None)[0]
            best = min(best, float(np.linalg.norm(X @ Y - target) / np.linalg.norm(target)))
            if best < 1e-9:
                return best
    return best


def test_neighbours_that_are_merged_make_every_matrix() -> None:
    """What the verdict on more factors rests on: the merged factor has the same products."""
    rng = np.random.default_rng(1)
    looked = 0
    for supports in some_supports(60):
        for left, right in pairwise(supports):
            if everything(Support(left), Support(right), MOST):
                looked += 1
                reach = left.astype(float) @ right > 0
                assert distance(rng.standard_normal(reach.shape) * reach, left, right, rng) < 1e-9
    assert looked > 25
    assert not everything(Support(LOWER), Support(LOWER.T), MOST)


def test_families_of_more_factors_stay_on_their_supports() -> None:
    found = 0
    for supports in some_supports(120):
        verdict = wellposedness(supports)
        if verdict.family is None:
            continue
        found += 1
        assert [support.shape for support in verdict.family.supports] == [mask.shape for mask in supports]
        for eps, error, norm in verdict.family.table:
            factors = verdict.family(eps)
            assert not any(factor[~mask].any() for factor, mask in zip(factors, supports, strict=True))
            assert np.linalg.norm(np.linalg.multi_dot(factors) - verdict.family.limit) == pytest.approx(error, abs=1e-9)
            assert error < 4 * eps**2
            assert 2.8 / eps < norm < 8 / eps + 10
    assert found > 5


def test_three_factors_of_lu() -> None:
    verdict = wellposedness(LOWER, LOWER.T, np.eye(2, dtype=bool))
    assert "3 factors that act as 2, X = factor 0 and Y = factors 1 to 2 as one; " in verdict.reason
    assert verdict.family is not None
    X, Y, Z = verdict.family(1e-2)
    assert np.array_equal(X, [[0.01, 0], [100, -100]])
    assert np.allclose(X @ Y @ Z, [[1e-4, 1], [1, 0]])
    assert np.array_equal(Z, np.diag(np.diag(Z)))
    assert "act as one, " not in str(verdict)


def test_a_family_that_is_not_spread_names_its_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatwing.structure.wellposed.spread", lambda family, acting: None)
    ones = np.ones((2, 3), dtype=bool)
    verdict = wellposedness(LOWER, ones, np.ones((3, 2), dtype=bool), LOWER.T)
    assert verdict.closed
    verdict = wellposedness(np.eye(2, dtype=bool)[:, ::-1], LOWER, LOWER.T)
    assert verdict.family is not None
    assert verdict.family.supports == (Support(LOWER[::-1]), Support(LOWER.T))
    assert "the family is one of the factors that act as one, 2x2 and 2x2, not of the given ones" in str(verdict)


def test_entries_that_cannot_be_dealt() -> None:
    """Two rows of two entries through a single inner index: no part of a row or a column each."""
    family = wellposedness(LOWER, LOWER.T).family
    assert family is not None
    thin = Support(np.ones((2, 1), dtype=bool)), Support(np.ones((1, 2), dtype=bool))
    parts = Merged(thin[0], 0, 0), Merged(thin[1], 1, 1)
    factors = [Merged(thin[0] @ thin[1], 0, 1, parts), Merged(Support(LOWER.T), 2, 2)]
    assert spread(family, factors) is None


def ways(supports: list[Support], most: int) -> list[list[tuple[int, int]]]:
    return [[(one.first, one.last) for one in way] for way in merged(supports, most)]


def test_what_is_merged() -> None:
    ones, lower = Support(np.ones((2, 2), dtype=bool)), Support(LOWER)
    assert ways([lower, lower.T, lower], MOST) == []
    assert ways([lower, ones, ones, lower], MOST) == [[(0, 3)]]
    assert ways([lower, lower.T, Support(np.eye(2, dtype=bool))], MOST) == [[(0, 0), (1, 2)]]
    assert ways([ones, ones], 3) == [[(0, 0), (1, 1)]], "four entries are more than three"
    assert different_entries(ones, ones) == 4
    assert different_entries(lower, lower.T) == 5


def test_verdicts_do_not_depend_on_the_direction_of_reading() -> None:
    """From the left the first two make everything; only the first three, put together otherwise, decide it."""
    given = [
        np.array(mask, dtype=bool)
        for mask in (
            [[1, 1], [0, 1]],
            [[1, 1, 0], [1, 1, 1]],
            [[1, 1, 0], [1, 0, 0], [1, 0, 0]],
            [[0, 0], [1, 1], [0, 1]],
        )
    ]
    turned = [mask.T for mask in given[::-1]]
    assert "X = factors 0 to 2 as one and Y = factor 3" in wellposedness(given).reason
    assert wellposedness(given).closed
    assert wellposedness(turned).closed
    for supports in some_supports(30):
        verdict = wellposedness(supports)
        assert wellposedness([mask.T for mask in supports[::-1]]).status == verdict.status
        if verdict.family is not None:
            assert [support.shape for support in verdict.family.supports] == [mask.shape for mask in supports]


def test_a_zero_product_names_its_factors() -> None:
    """Each two neighbours have a product that is not zero, the three have not."""
    ends, middle = np.array([[True, False]]), np.eye(2, dtype=bool)
    supports = [middle, ends.T, ends, middle, middle[:, 1:]]
    with pytest.raises(ValueError, match="the product of factors 2 to 4 is zero: no way leads through"):
        wellposedness(supports)
    with pytest.raises(ValueError, match="the product of factors 2 to 3 is zero"):
        wellposedness([middle, ends.T, ends, middle[:, 1:]])
