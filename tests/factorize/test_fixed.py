"""Two factors on fixed supports, against descents written here: never worse, equal where a theorem promises it."""

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.optimize import minimize

from flatwing import Pattern
from flatwing.factorize import factorize_fixed, palm
from flatwing.factorize.fixed import cut_bound
from flatwing.structure import Support, tractability, wellposedness
from strategies import as_user

Masks = tuple[np.ndarray, np.ndarray]


def tractable(seed: int, theorem: int, largest: int = 30) -> tuple[np.ndarray, Masks]:
    """A random matrix and supports: some blocks of a grid, rank 1 to 6 each; for Theorem 2 with whole rows and columns
    that single complete classes hold."""
    rng = np.random.default_rng(seed)
    m, n = rng.integers(4, largest + 1, 2)
    rows, columns = rng.integers(0, rng.integers(1, 4), m), rng.integers(0, rng.integers(1, 4), n)
    X, Y = [], []
    for g in np.unique(rows):
        for h in np.unique(columns):
            if not X or rng.random() < 0.7:
                rank = int(rng.integers(1, 7))
                X += [rows == g] * rank
                Y += [columns == h] * rank
    if theorem == 2:
        for _ in range(rng.integers(1, 4)):
            line, held = np.zeros(m, bool), np.ones(n, bool)
            line[rng.integers(m)] = True
            X.append(line)
            Y.append(held)
            X.append(np.ones(m, bool))
            Y.append(np.arange(n) == rng.integers(n))
    order = rng.permutation(len(X))
    return rng.standard_normal((m, n)), (np.array(X)[order].T, np.array(Y)[order])


def descents(A: np.ndarray, masks: Masks, starts: int, seed: int = 0, steps: int = 3000) -> Iterator[float]:
    """Relative errors in which L-BFGS ends from random values."""
    (S, T), rng, norm = masks, np.random.default_rng(seed), np.linalg.norm(A)
    count = int(S.sum())

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        X, Y = np.zeros(S.shape), np.zeros(T.shape)
        X[S], Y[T] = values[:count], values[count:]
        rest = X @ Y - A
        return float((rest**2).sum()), 2 * np.concatenate([(rest @ Y.T)[S], (X.T @ rest)[T]])

    for _ in range(starts):
        start = rng.standard_normal(count + int(T.sum()))
        options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 0, "gtol": 1e-10}
        yield minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun ** 0.5 / norm


def weighted_rank_one(seed: int, size: int = 4) -> tuple[np.ndarray, Masks]:
    """One full class of rank 1, and for some entries a class of their own: rank-one approximation of the others."""
    rng = np.random.default_rng(seed)
    free = list(zip(*np.nonzero(rng.random((size, size)) < 0.35), strict=True)) or [(0, 0)]
    X, Y = np.zeros((size, 1 + len(free)), bool), np.zeros((1 + len(free), size), bool)
    X[:, 0] = Y[0] = True
    for k, (i, j) in enumerate(free, start=1):
        X[i, k] = Y[k, j] = True
    return rng.standard_normal((size, size)), (X, Y)


@pytest.mark.parametrize("theorem", [1, 2])
@pytest.mark.parametrize("part", range(5))
def test_tractable_instances_reach_the_optimum(theorem: int, part: int) -> None:
    # 100 instances in all, up to 30 x 30 and rank 6; 50 starts on the small ones, 4 on the others
    for seed in range(10 * part, 10 * part + 10):
        A, masks = tractable(seed, theorem, 30 if seed % 5 else 6)
        certificate = factorize_fixed(A, masks).certificate
        best = min(descents(A, masks, 4 if seed % 5 else 50, seed))
        assert tractability(*masks).theorem in (1, theorem)
        assert certificate.theorem.startswith("optimal")
        if certificate.exact:
            assert best < 1e-6
            continue
        assert certificate.error <= best * (1 + 1e-12)
        assert certificate.error == pytest.approx(best, rel=1e-12)
        assert certificate.ratio == pytest.approx(1, abs=1e-10)
        assert certificate.lower_bound <= certificate.error <= certificate.guarantee


def test_optimum_by_hand() -> None:
    # two blocks of rank 1 beside each other, and a corner that nothing reaches
    A = np.zeros((3, 4))
    A[:2, :2] = np.diag([3, 1])
    A[2, 2:] = [1, 2]
    A[2, 0] = 2
    left = np.array([[1, 0], [1, 0], [0, 1]]) > 0
    right = np.array([[1, 1, 0, 0], [0, 0, 1, 1]]) > 0
    result = factorize_fixed(A, [left, right])
    assert result.certificate.error == pytest.approx(np.sqrt((1 + 4) / (A**2).sum()))
    wanted = A.copy()
    wanted[1, 1] = wanted[2, 0] = 0
    np.testing.assert_allclose(result.product.dense().numpy(), wanted, atol=1e-14)


def test_complete_classes_take_what_the_others_leave() -> None:
    A = np.random.default_rng(0).standard_normal((5, 6))
    X, Y = np.ones((5, 2), bool), np.ones((2, 6), bool)
    X[:, 1] = [True, False, False, False, False]
    result = factorize_fixed(A, [X, Y])
    # row 0 is held by the second class, the rest is the best rank one
    best = np.linalg.svd(A[1:], compute_uv=False)[1:]
    assert result.certificate.error == pytest.approx(np.linalg.norm(best) / np.linalg.norm(A))
    np.testing.assert_allclose(result.product.dense().numpy()[0], A[0], atol=1e-14)


def test_class_wider_than_its_rank_and_dead_columns() -> None:
    A = np.random.default_rng(1).standard_normal((3, 3))
    X, Y = np.ones((3, 7), bool), np.ones((7, 3), bool)
    X[:, 5], Y[6] = False, False
    result = factorize_fixed(A, [X, Y])
    assert result.certificate.exact
    assert result.product.supports[0].nnz == 18


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(12, 12, dtype=dtype, generator=rng)
    masks = [Pattern(1, 4, 2, 3).support(), torch.kron(torch.eye(2), torch.ones(3, 6)) > 0]
    result = factorize_fixed(A, masks)
    assert result.product.dtype == dtype
    measured = torch.linalg.norm(A - result.product.dense()) / torch.linalg.norm(A)
    assert result.certificate.error == pytest.approx(float(measured), rel=1e-4)
    double = factorize_fixed(A.to(torch.complex128 if dtype.is_complex else torch.float64), masks).certificate
    assert result.certificate.error == pytest.approx(double.error, rel=1e-5)
    assert result.certificate.error <= result.certificate.guarantee


def test_scale_does_not_matter() -> None:
    A, masks = tractable(3, 1, 9)
    plain = factorize_fixed(A, masks).certificate
    for unit in (2.0**-900, 2.0**900):
        assert factorize_fixed(A * unit, masks).certificate.error == pytest.approx(plain.error, rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_without_a_theorem_the_bound_is_below_everything_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n, r = rng.integers(3, 9, 3)
    masks = rng.random((m, r)) < 0.5, rng.random((r, n)) < 0.5
    if not (masks[0].astype(int) @ masks[1].astype(int)).any():
        pytest.skip("the product is zero")
    A = rng.standard_normal((m, n))
    certificate = factorize_fixed(A, masks, starts=5).certificate
    best = min(descents(A, masks, 5, seed, steps=500))
    assert certificate.lower_bound <= min(best, certificate.error) * (1 + 1e-12) + 1e-15
    assert certificate.ratio >= 1
    # the last steps of a descent without an optimum are slow
    assert certificate.error <= best * 1.05 + 1e-3


def test_weighted_rank_one_with_a_known_optimum() -> None:
    # a rank-one matrix with some entries changed: the entries that have a class of their own repair it
    A, masks = weighted_rank_one(2)
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal(4), rng.standard_normal(4)
    own = (masks[0][:, 1:].astype(int) @ masks[1][1:].astype(int)) > 0
    B = np.where(own, A, np.outer(u, v))
    result = factorize_fixed(B, masks)
    assert result.certificate.error < 1e-7
    assert result.certificate.lower_bound <= result.certificate.error
    assert not tractability(*masks)
    assert result.notes[0].startswith("best of 20 descents")
    assert "not tractable" in result.notes[1]


def test_infimum_that_is_not_attained() -> None:
    lower = np.tri(2) > 0
    A = np.array([[0.0, 1], [1, 0]])
    certificate = factorize_fixed(A, [lower, lower.T]).certificate
    assert certificate.error < 1e-2
    assert certificate.lower_bound == 0
    assert certificate.theorem.startswith("no theorem")
    assert certificate.guarantee == float("inf")


def test_landscape() -> None:
    # Theorem 1: no gradient run ends above the optimum; the weighted rank-one kind has other ends
    for seed in range(15):
        A, masks = tractable(seed, 1, 8)
        best = factorize_fixed(A, masks).certificate.error
        assert max(descents(A, masks, 6, seed, steps=30_000)) <= best * (1 + 1e-6) + 1e-6
    above = []
    for seed in range(15):
        A, masks = weighted_rank_one(seed)
        ends = list(descents(A, masks, 6, seed))
        above += [end > min(ends) * 1.01 + 1e-3 for end in ends]
    assert 0.02 < np.mean(above) < 0.9


def test_bound_of_a_cut_is_that_of_two_factors() -> None:
    A, masks = tractable(5, 1, 10)
    supports = [Support(mask) for mask in masks]
    squared = (factorize_fixed(A, masks).certificate.error * np.linalg.norm(A)) ** 2
    assert cut_bound(torch.from_numpy(A), supports) == pytest.approx(squared, rel=1e-10)
    outside = Support(np.tri(4) > 0)
    B = torch.randn(4, 4, dtype=torch.float64)
    assert cut_bound(B, [outside]) == pytest.approx(float(B.triu(1).square().sum()))


def test_more_starts_are_never_worse_and_progress_is_told() -> None:
    A, masks = weighted_rank_one(6)
    calls: list[tuple[str, int, int]] = []
    one = factorize_fixed(A, masks, starts=1).certificate
    many = factorize_fixed(A, masks, starts=6, progress=lambda *call: calls.append(call)).certificate
    assert many.error <= one.error * (1 + 1e-9)
    assert calls == [("descents", i + 1, 6) for i in range(6)]
    assert torch.equal(*(factorize_fixed(A, masks, starts=2).product.dense() for _ in range(2)))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(4, 2), (2, 4)],
            r"A is 3 x 4, a product on supports \(4, 2\) and \(2, 4\) is 4 x 4",
        ),
        ([(3, 2), (3, 4)], r"support 0 is \(3, 2\), support 1 is \(3, 4\)"),
        ([(3, 2)], "got 1 supports"),
        (
            [(3, 2), (2, 2), (2, 4)],
            r"got 3 supports. Rule: two.* palm\(A, supports\), as `flatwing factorize --support` does",
        ),
        ([(3, 0), (0, 4)], "the mask has shape"),
    ],
)
def test_shapes_are_refused(shapes: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factorize_fixed(torch.randn(3, 4), [np.ones(shape, bool) for shape in shapes])


def test_other_refusals() -> None:
    A, ok = torch.randn(3, 4), [np.ones((3, 2), bool), np.ones((2, 4), bool)]
    with pytest.raises(TypeError, match="support 1: the mask has dtype float64"):
        factorize_fixed(A, [ok[0], np.ones((2, 4))])
    with pytest.raises(ValueError, match=r"support 0: .* allows no entry"):
        factorize_fixed(A, [np.zeros((3, 2), bool), ok[1]])
    with pytest.raises(ValueError, match="entries that are NaN or Inf"):
        factorize_fixed(torch.full((3, 4), torch.nan), ok)
    with pytest.raises(TypeError, match="dtype int64"):
        factorize_fixed(torch.ones(3, 4, dtype=torch.int64), ok)
    with pytest.raises(ValueError, match=r"starts is 0. Rule: a whole number, at least 1, such as 20"):
        factorize_fixed(A, ok, starts=0)
    apart = [np.array([[1, 0]] * 3) > 0, np.array([[0] * 4, [1] * 4]) > 0]
    with pytest.raises(ValueError, match="no column of the first support meets a row of the second"):
        factorize_fixed(A, apart)


def test_numbers_and_supports_of_another_kind_are_refused() -> None:
    A, ok = torch.randn(3, 4), [np.ones((3, 2), bool), np.ones((2, 4), bool)]
    for arguments, message in (
        ({"starts": 1.5}, r"starts is 1\.5\. Rule: a whole number"),
        ({"seed": None}, "seed is None. Rule: a whole number, at least 0"),
        ({"seed": -1}, "seed is -1. Rule: a whole number, at least 0"),
    ):
        with as_user(), pytest.raises(ValueError, match=message):
            factorize_fixed(A, ok, **arguments)  # type: ignore[arg-type]
    with as_user(), pytest.raises(TypeError, match=r"the supports are a ndarray of shape \(3, 2\)\. Rule: a list"):
        factorize_fixed(A, ok[0])  # type: ignore[arg-type]
    with as_user(), pytest.raises(TypeError, match=r"the supports are a NoneType\. Rule: a list"):
        factorize_fixed(A, None)  # type: ignore[arg-type]


def test_notes_say_whether_a_best_product_exists() -> None:
    lower = np.tri(2) > 0
    A = np.array([[0.0, 1], [1, 0]])
    assert "a best product need not exist (not closed)" in factorize_fixed(A, [lower, lower.T], starts=1).notes[-1]
    attained = factorize_fixed(np.array([[1.0, 1], [1, 2]]), [lower, lower.T])
    assert attained.certificate.ratio == 1
    assert attained.notes[-1].startswith("no product is better for this matrix; for some matrices a best product does")
    everything = np.ones((2, 2), bool)
    assert not any("exist" in note for note in factorize_fixed(A, [everything, everything]).notes)
    # outer entries that a rank-one class and a class of its own share: closed, though no theorem solves it
    left, right = np.array([[1, 1], [1, 0], [1, 0]]) > 0, np.array([[1, 1, 1], [1, 1, 0]]) > 0
    B = np.random.default_rng(0).standard_normal((3, 3))
    status = wellposedness(left, right).status
    result = factorize_fixed(B, [left, right], starts=1)
    assert not tractability(left, right)
    assert f"({status})" in result.notes[-1]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_told(kind: torch.dtype) -> None:
    A = torch.randn(3, 4).to(kind)
    ok = [np.ones((3, 2), bool), np.ones((2, 4), bool)]
    result = factorize_fixed(A, ok)
    assert result.product.dtype == torch.float32
    assert result.notes[-1] == f"{str(kind)[6:]} input: computed in float64, factors in float32"
    torch.testing.assert_close(result.product.dense(), factorize_fixed(A.float(), ok).product.dense())


def rotated(sigma: list[float], n: int, seed: int) -> np.ndarray:
    """A matrix with these singular values to the last bit: sums of few powers of two are exact."""
    rng = np.random.default_rng(seed)
    H = scipy.linalg.hadamard(n).astype(float)
    signs = rng.choice([-1.0, 1.0], (2, n))
    left, right = H[rng.permutation(n)] * signs[0], (H * signs[1])[:, rng.permutation(n)]
    return left[:, : len(sigma)] @ (np.array(sigma)[:, None] * right[: len(sigma)]) / n


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_bounds_hold_in_spite_of_rounding(dtype: type, unit: float) -> None:
    # the tail is so small beside the rest that rounding of singular values counts
    tail = 2.0**-40 if dtype is np.float64 else 2.0**-13
    power = 2.0 ** round(np.log2(unit))  # changes no digit
    for seed in range(20):
        n = (8, 16)[seed % 2]
        A = (rotated([1, 0.5, tail], n, seed) * power).astype(dtype)
        ones = np.ones((n, 2), bool)
        norm = (1.25 + tail**2) ** 0.5
        for certificate in (
            factorize_fixed(A, [ones, ones.T]).certificate,
            palm(A, [ones, ones.T], sweeps=1, polishing=False).certificate,
        ):
            assert 0 < certificate.lower_bound <= tail / norm <= certificate.guarantee
            assert certificate.lower_bound == pytest.approx(tail / norm, rel=0.02)
