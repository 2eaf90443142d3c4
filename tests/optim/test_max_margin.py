"""MaxMarginClassifier: scikit-learn's rules, the margin it states, and the proof of it."""

import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

from flatwing.optim import MaxMarginClassifier


def digits(*classes: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    of = np.isin(labels, classes)
    return images[of] / 16, labels[of]


def wine() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_wine(return_X_y=True)
    return StandardScaler().fit_transform(x), y


@pytest.mark.parametrize(
    "settings", [{}, {"fit_intercept": False}, {"solver": "prgd", "max_iter": 200}], ids=["default", "origin", "prgd"]
)
def test_scikit_learn_finds_nothing_wrong(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of its data overlaps; one check is skipped without the array API
        check_estimator(MaxMarginClassifier(**settings))


@pytest.mark.parametrize("pair", [(0, 1), (4, 9), (3, 8)])
def test_on_digits_it_is_the_hard_margin_machine_and_proves_it(pair: tuple[int, int]) -> None:
    x, y = digits(*pair)
    model = MaxMarginClassifier().fit(x, y)
    machine = SVC(kernel="linear", C=1e10, tol=1e-6).fit(x, y)
    assert model.separable_
    assert model.dual_gap_ < 1e-9
    assert model.margin_ == pytest.approx(1 / np.linalg.norm(machine.coef_), rel=1e-4)
    assert model.margin_ <= model.margin_bound_
    np.testing.assert_allclose(model.coef_, machine.coef_, atol=2e-3 * np.abs(machine.coef_).max())
    np.testing.assert_allclose(model.intercept_, machine.intercept_, rtol=2e-3)
    assert model.score(x, y) == 1.0
    signed = np.where(y == pair[1], 1, -1) * model.decision_function(x)
    assert signed.min() == pytest.approx(1.0, rel=1e-9)
    assert signed.min() / np.linalg.norm(model.coef_) == pytest.approx(model.margin_, rel=1e-12)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_more_classes_have_one_margin_with_one_proof(fit_intercept: bool) -> None:
    x, y = wine()
    model = MaxMarginClassifier(fit_intercept).fit(x, y)
    assert model.dual_gap_ < 1e-9
    assert model.coef_.shape == (3, 13)
    assert model.intercept_.shape == (3,)
    assert bool(model.intercept_.any()) == fit_intercept
    scores = model.decision_function(x)
    own = scores[np.arange(len(y)), y]
    scores[np.arange(len(y)), y] = -np.inf
    assert (own - scores.max(1)).min() == pytest.approx(1.0, rel=1e-9)
    assert model.margin_ == pytest.approx(1 / (np.sqrt(2) * np.linalg.norm(model.coef_)), rel=1e-9)
    # no other direction is wider, that of one classifier per class against the rest included
    for seed in range(20):
        other = clone(model).fit(x, y)
        other.coef_ = model.coef_ + 0.01 * np.random.default_rng(seed).standard_normal(model.coef_.shape)
        assert other._margin(x, y) < model.margin_


def test_an_intercept_can_only_widen() -> None:
    x, y = digits(4, 9)
    assert MaxMarginClassifier().fit(x, y).margin_ > MaxMarginClassifier(fit_intercept=False).fit(x, y).margin_


@pytest.mark.parametrize("shift", [0.0, 1e3])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_margin_has_the_unit_of_the_data(scale: float, shift: float) -> None:
    x, y = digits(0, 1)
    plain, moved = MaxMarginClassifier().fit(x, y), MaxMarginClassifier(tol=1e-6).fit(scale * (x + shift), y)
    assert moved.margin_ == pytest.approx(scale * plain.margin_, rel=1e-6)
    assert moved.dual_gap_ < 1e-6


@pytest.mark.parametrize("scale", [1e-280, 1e-160, 1e160, 1e280])
def test_squares_of_the_data_need_not_be_floats(scale: float) -> None:
    x, y = digits(0, 1)
    plain, moved = MaxMarginClassifier().fit(x, y), MaxMarginClassifier().fit(scale * x, y)
    assert moved.separable_
    assert moved.margin_ == pytest.approx(scale * plain.margin_, rel=1e-12)
    assert moved.dual_gap_ < 1e-12


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e300, 1e307])
def test_data_whose_coefficients_are_no_floats_is_refused(scale: float, fit_intercept: bool) -> None:
    x, y = digits(0, 1)
    with pytest.raises(ValueError, match=r"the largest entry .*of X is .* Rule: from 1e-290 to 1e\+290"):
        MaxMarginClassifier(fit_intercept).fit(scale * x, y)


@pytest.mark.parametrize("seed", range(4))
def test_an_offset_of_each_feature_goes_into_the_intercept(seed: int) -> None:
    x, y = digits(4, 9)
    offset = 1e3 * np.abs(x).max() * np.random.default_rng(seed).standard_normal(x.shape[1])
    plain, moved = MaxMarginClassifier().fit(x, y), MaxMarginClassifier().fit(x + offset, y)
    assert moved.dual_gap_ < 1e-9
    np.testing.assert_allclose(moved.coef_, plain.coef_, atol=1e-9 * np.abs(plain.coef_).max())


def test_rescaling_gets_close_and_says_how_close() -> None:
    x, y = digits(4, 9)
    exact = MaxMarginClassifier().fit(x, y)
    with pytest.warns(ConvergenceWarning, match=r"within .* after 4000 passes. Raise max_iter=4000"):
        model = MaxMarginClassifier(solver="prgd", max_iter=4000).fit(x, y)
    assert model.n_iter_ == 4000
    assert 1e-9 < model.dual_gap_ < 1e-2
    assert model.margin_ == pytest.approx(exact.margin_ * (1 - model.dual_gap_), rel=1e-8)
    rough = MaxMarginClassifier(solver="prgd", tol=0.05, max_iter=4000).fit(x, y)
    assert rough.n_iter_ < 4000
    assert 1e-3 < rough.dual_gap_ <= 0.05


def test_data_that_overlaps_warns_and_still_classifies() -> None:
    x, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match=r"no hyperplane was found that separates the classes: the margin is -"):
        model = MaxMarginClassifier().fit(x, y)
    assert not model.separable_
    assert model.margin_ < 0
    assert model.margin_bound_ < 1e-9
    assert model.dual_gap_ == np.inf
    assert model.score(x, y) > 0.95


def test_contradicting_samples_warn() -> None:
    with pytest.warns(ConvergenceWarning, match="no hyperplane"):
        model = MaxMarginClassifier().fit([[0.0], [1.0], [1.0]], [0, 0, 1])
    assert not model.separable_


def test_no_more_passes_than_allowed() -> None:
    x, y = digits(3, 8)
    with pytest.warns(ConvergenceWarning, match=r"after 5 passes"):
        model = MaxMarginClassifier(max_iter=5).fit(x, y)
    assert model.dual_gap_ > 1e-3


def test_where_rounding_is_in_the_way_it_stops_and_says_so() -> None:
    x, y = load_breast_cancer(return_X_y=True)  # features from 1e-3 to 1e3, a margin of 1e-3
    of = np.random.default_rng(3).permutation(len(y))[:398]  # a part on which the active set would go round
    with pytest.warns(ConvergenceWarning, match=r"Rounding is in the way: .* StandardScaler"):
        model = MaxMarginClassifier(tol=0.0).fit(x[of], y[of])
    assert model.separable_
    assert model.n_iter_ < 1000
    assert model.dual_gap_ < 1e-4


def test_pipelines_searches_clones_and_pickles() -> None:
    x, y = digits(0, 1)
    search = GridSearchCV(make_pipeline(StandardScaler(), MaxMarginClassifier()), {"maxmarginclassifier__tol": [1e-6]})
    search.fit(x, y)
    assert search.best_score_ > 0.98
    model = MaxMarginClassifier(tol=1e-8).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "coef_")


def test_labels_may_be_words() -> None:
    x, y = digits(0, 1)
    words = np.where(y == 1, "one", "nil")
    model = MaxMarginClassifier().fit(x, words)
    assert model.classes_.tolist() == ["nil", "one"]
    assert (model.predict(x) == words).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit_intercept": -1}, "fit_intercept is -1. Rule"),
        ({"solver": "svm"}, "solver is 'svm'. Rule: 'exact' or 'prgd'"),
        ({"tol": -1.0}, "tol is -1.0. Rule"),
        ({"tol": float("nan")}, "tol is nan. Rule"),
        ({"tol": "a"}, "tol is 'a'. Rule: a number"),
        ({"tol": None}, "tol is None. Rule: a number"),
        ({"max_iter": 0}, "max_iter is 0. Rule"),
        ({"max_iter": 2.5}, "max_iter is 2.5. Rule: a whole number"),
        ({"max_iter": float("inf")}, "max_iter is inf. Rule: a whole number"),
        ({"max_iter": "5"}, "max_iter is '5'. Rule: a whole number"),
        ({"max_iter": True}, "max_iter is True. Rule: a whole number"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaxMarginClassifier(**settings).fit(*digits(0, 1))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"y has one class, 0\.0\. Rule: at least 2 classes"):
        MaxMarginClassifier().fit(np.eye(3), np.zeros(3))


def test_a_frame_without_columns_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"Found 0 feature\(s\) \(shape=\(3, 0\)\) .* one column or more"):
        MaxMarginClassifier().fit(pandas.DataFrame(index=range(3)), [0, 1, 1])


def test_it_predicts_after_fitting_only() -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        MaxMarginClassifier().predict(np.eye(2))


def test_the_room_does_not_load_scikit_learn() -> None:
    code = "import sys, flatwing.optim; print(*[m for m in ('sklearn', 'scipy.optimize') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.split() == []
