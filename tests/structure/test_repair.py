"""Repairs are closed, contain what was given and are small; weight decay costs what the law says."""

from itertools import combinations

import numpy as np
import pytest
import scipy.optimize

from flatwing.structure import Support, wellposedness
from flatwing.structure.repair import advice, repair, weight_decay_cost
from flatwing.structure.wellposed import is_closed

LOWER = np.tril(np.ones((2, 2), dtype=bool))


def test_the_lu_example_needs_one_entry() -> None:
    found = repair(LOWER, LOWER.T)
    assert (found.added, found.columns, found.smallest) == (((0, 0, 1),), 0, True)
    assert str(found) == "add 1 entry: X[0,1] (the smallest change)"
    assert found.verdict.closed
    assert found.supports[0].nnz == 4


def test_nothing_to_add_where_it_is_closed() -> None:
    found = repair(np.ones((3, 2), dtype=bool), np.ones((2, 3), dtype=bool))
    assert (found.added, str(found)) == ((), "nothing to add")


def test_smallest_is_smallest() -> None:
    generator = np.random.default_rng(2)
    sizes, smallest = [], []
    for _ in range(20):
        S, T = generator.random((3, 3)) < 0.6, generator.random((3, 3)) < 0.6
        if not (S.any(0) & T.any(1)).any():
            continue
        found = repair(S, T)
        assert Support(S) <= found.supports[0]
        assert Support(T) <= found.supports[1]
        assert wellposedness(*found.supports).closed
        smallest.append(found.smallest)
        sizes.append(len(found.added))
        missing = [(0, *at) for at in np.argwhere(~S)] + [(1, *at) for at in np.argwhere(~T)]
        for some in combinations(missing, max(len(found.added) - 1, 0)):
            both = S.copy(), T.copy()
            for factor, i, j in some:
                both[factor][i, j] = True
            assert not found.added or not is_closed(Support(both[0]), Support(both[1]))
    assert max(sizes) >= 1
    assert sum(smallest) >= 15


def open_pair() -> tuple[np.ndarray, np.ndarray]:
    """Undecided; more entries make it closed."""
    S = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1]], dtype=bool)
    T = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=bool)
    return S, T


def test_undecided_is_no_proof_that_something_is_missing() -> None:
    S, T = open_pair()
    verdict = wellposedness(S, T)
    assert verdict.status == "undecided"
    found = repair(S, T)
    assert found.added
    assert not found.smallest
    assert str(found).endswith("(the smallest change found)")
    text = advice(verdict, found)
    assert text.startswith("to be certain, add ")
    assert text.endswith("or use weight decay, with which best factors always exist")
    assert "0.27" not in text, "no constants without a family"
    assert "to be certain, use weight decay" in advice(verdict)


@pytest.mark.parametrize("n", [6, 7])
def test_larger_ones_are_repaired_without_all_trials(n: int) -> None:
    lower = np.tril(np.ones((n, n), dtype=bool))
    found = repair(lower, lower.T)
    assert not found.smallest
    assert found.verdict.closed
    assert 0 < len(found.added) <= n * (n - 1)
    if found.columns == 0:
        assert Support(lower) <= found.supports[0]
    for entry in found.added[:3]:  # none of them is there for nothing
        both = [support.array.copy() for support in found.supports]
        both[entry[0]][entry[1:]] = False
        assert not is_closed(Support(both[0]), Support(both[1]))
    assert "the smallest change found" in str(found)


def test_new_inner_indices_are_named() -> None:
    """A long inner index whose one entry is shared: completing the class is cheaper than to fill others."""
    S = np.zeros((6, 2), dtype=bool)
    S[:, 0], S[5, 1] = True, True
    T = np.ones((2, 6), dtype=bool)
    T[1, :5] = False
    found = repair(S, T)
    assert found.verdict.closed
    assert len(found.added) <= 10
    assert set(advice(wellposedness(S, T), found)) > set("lambda")


def penalized(lam: float) -> tuple[float, float]:
    """Error and squared norm at the best of the penalized 2 x 2 LU problem, by descent from several starts."""
    A = np.array([[0.0, 1.0], [1.0, 0.0]])

    def factors(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[v[0], 0], [v[1], v[2]]]), np.array([[v[3], v[4]], [0, v[5]]])

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        X, Y = factors(v)
        R = X @ Y - A
        gx, gy = 2 * R @ Y.T, 2 * X.T @ R
        slope = np.array([gx[0, 0], gx[1, 0], gx[1, 1], gy[0, 0], gy[0, 1], gy[1, 1]]) + 2 * lam * v
        return float((R**2).sum() + lam * (v @ v)), slope

    options = {"maxiter": 20000, "maxfun": 50000, "ftol": 1e-16, "gtol": 1e-12}
    starts = np.random.default_rng(0).standard_normal((8, 6))
    ends = [scipy.optimize.minimize(objective, v, jac=True, method="L-BFGS-B", options=options) for v in starts]
    best = min(ends, key=lambda end: end.fun).x
    X, Y = factors(best)
    return float(np.linalg.norm(X @ Y - A)), float(best @ best)


def test_weight_decay_follows_the_law() -> None:
    lams = (1e-4, 1e-5, 1e-6)
    measured = np.array([penalized(lam) for lam in lams])
    predicted = np.array([weight_decay_cost(lam) for lam in lams])
    slopes = np.diff(np.log(measured), axis=0) / np.diff(np.log(lams))[:, None]
    assert slopes[:, 0] == pytest.approx(1 / 3, abs=0.02)
    assert slopes[:, 1] == pytest.approx(-1 / 3, abs=0.02)
    assert measured[:, 0] == pytest.approx(predicted[:, 0], rel=0.05)
    assert measured[:, 1] == pytest.approx(predicted[:, 1], rel=0.05)


def test_weight_decay_of_a_family() -> None:
    family = wellposedness(LOWER, LOWER.T).family
    assert weight_decay_cost(1e-4, family) == pytest.approx(weight_decay_cost(1e-4), rel=1e-3)
    error, squared = weight_decay_cost(1e-3, family)
    eps = np.linspace(0.05, 0.9, 2000)
    on_family = [family.measured(e)[0] ** 2 + 1e-3 * sum((f**2).sum() for f in family(e)) for e in eps]
    assert error**2 + 1e-3 * squared == pytest.approx(min(on_family), rel=0.02)


@pytest.mark.parametrize("lam", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_decay_is_refused(lam: float) -> None:
    with pytest.raises(ValueError, match=r"lam is .* Rule: a number, above 0"):
        weight_decay_cost(lam)


def test_advice() -> None:
    verdict = wellposedness(LOWER, LOWER.T)
    text = advice(verdict, repair(LOWER, LOWER.T))
    assert text.startswith("add 1 entry: X[0,1] (the smallest change); or use weight decay")
    assert "0.27 at 0.01, 0.058 at 0.0001, 0.013 at 1e-06" in text
    assert advice(wellposedness(LOWER, np.ones((2, 2), dtype=bool))) == ""


def test_medium_masks_are_repaired_with_few_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    S, T = generator.random((24, 24)) < 0.5, generator.random((24, 24)) < 0.6
    calls, told = [], []

    def counted(left: Support, right: Support) -> bool:
        calls.append(left)
        return is_closed(left, right)

    monkeypatch.setattr("flatwing.structure.repair.is_closed", counted)
    found = repair(S, T, progress=lambda done, total: told.append((done, total)))
    assert found.verdict.closed
    assert len(calls) < 120
    # the denser one needs fewer entries
    assert str(found) == f"make Y dense: {(~T).sum()} entries (the smallest change found)"
    assert str(repair(T.T, S.T)) == f"make X dense: {(~T).sum()} entries (the smallest change found)"
    assert told == sorted(told), "progress goes forward"
    assert {total for _, total in told} == {told[-1][1]}
    assert 0 < told[-1][0] <= told[-1][1]
