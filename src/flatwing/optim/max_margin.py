"""MaxMarginClassifier: the linear classifier of the widest margin in scikit-learn's manner, with its certificate."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..core import require_number, require_whole
from .margin import MaxMargin, Rows, Vector, relative_gap, widest_margin
from .margin_classes import Classes
from .prgd import prgd

LOOK = 50  # steps of rescaling between two looks at the margin
# of the data: beyond, a coefficient (one over a margin) or a sum over features may leave the range of floats
SMALLEST, LARGEST = 1e-290, 1e290


class MaxMarginClassifier(ClassifierMixin, BaseEstimator):
    """Linear classifier whose nearest training sample is as far as possible from the boundary, proved to be so.

    Parameters:
        fit_intercept: whether the boundary may miss the origin. The intercept is free: it costs no margin.
        solver: "exact", the nearest point of a hull by Wolfe's active set, which ends at rounding error; "prgd",
            progressive rescaling, which gets there step by step (see `flatwing.optim.prgd`). Measured on pairs of
            8 x 8 digits: 10 ms and a gap below 1e-12 against seconds and 1e-3 to 1e-4, so "prgd" is for its path.
        tol: the relative duality gap at which to stop.
        max_iter: passes over the data at most; a smaller number than needed gives a `ConvergenceWarning`.

    Attributes:
        coef_: weights, (1, d) for two classes, (k, d) for more. Separable data: the least decision value (difference
            of two, for more classes) on the correct side is 1.
        intercept_: (1,) or (k,).
        margin_: distance of the nearest training sample to the boundary, in the unit of the data, negative where a
            sample is on the wrong side. For k > 2 classes, min (f_y - f_j) / (sqrt(2) |coef_|) over samples and other
            classes j: every boundary between its class and another is at least that far from each sample.
        margin_bound_: no linear classifier of this kind has a margin above it; from a point of the dual.
        dual_gap_: (margin_bound_ - margin_) / margin_bound_, the certificate; inf where `separable_` is False.
        separable_: whether `coef_` has all training samples on the correct side.
        classes_, n_features_in_, n_iter_: as in scikit-learn; n_iter_ counts passes of the solver.

    Data that no hyperplane separates has no margin: a `ConvergenceWarning` says so, `separable_` is False, and `coef_`
    minimises the exponential loss, in units in which the largest sample has norm 1. All in float64. `fit` raises
    `ValueError` for bad data, one class, data below 1e-290 or above 1e290, or settings out of range. With an intercept
    the data is moved to its middle first. Without one an offset is part of the problem: a margin that is c times
    shorter than the samples loses c of the 1e16 that float64 resolves, which `dual_gap_` then shows. Cost: n d k and
    the cube of the number of support vectors per pass. Sources: Wolfe (1976); Wang, Min and Wu (2023),
    arXiv:2311.14387; for more than two classes the joint margin of Crammer and Singer (2001).

    >>> model = MaxMarginClassifier().fit([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0], [4.0, 0.0]], [0, 0, 1, 1])
    >>> round(model.margin_, 9), model.dual_gap_ < 1e-9, model.coef_.round(9).tolist()
    (1.118033989, True, [[0.8, -0.4]])
    """

    def __init__(
        self,
        fit_intercept: bool | Any = True,
        *,
        solver: str | Any = "exact",
        tol: float | Any = 1e-9,
        max_iter: int | Any = 40_000,
    ) -> None:
        # scikit-learn's rule: whatever is given is kept as it is, and `fit` judges it
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> MaxMarginClassifier:
        """Fit to samples `X`, (n, d), of classes `y`, (n,)."""
        self._check()
        if not len(getattr(X, "columns", "?")):  # scikit-learn finds no dtype in a frame without columns
            raise ValueError(
                f"Found 0 feature(s) (shape=({len(X)}, 0)) while a minimum of 1 is required: give X one column or more."
            )
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class, {self.classes_.tolist()[0]!r}. Rule: at least 2 classes. Give samples of another."
            )
        hull, middle, unit = self._hull(X, labels)
        found = widest_margin(hull, self.tol, self.max_iter)
        best = _rescaled(hull, found, self.tol, self.max_iter) if self.solver == "prgd" else found
        self.n_iter_ = max(1, best.iterations)
        w = best.w if best.separable else _least_loss(hull)
        reached = hull.hardest(w)[0]
        self._keep(hull, w / reached if reached > 0 else w, middle, unit)
        # of the coefficients as they are, not of the solver's: rounding, too, is in the certificate
        self.margin_ = self._margin(X, labels)
        self.separable_ = self.margin_ > 0
        self.margin_bound_ = max(found.bound * unit, self.margin_, 0.0)
        self.dual_gap_ = relative_gap(self.margin_, self.margin_bound_) if self.separable_ else float("inf")
        self._warn()
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, "..."]:
        """Scores, (n,) for two classes (positive: the second), (n, k) for more."""
        check_is_fitted(self)
        samples = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        scores = samples @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Any:
        """The class of each sample, (n,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def _check(self) -> None:
        if not isinstance(self.fit_intercept, (bool, np.bool_)):
            raise ValueError(f"fit_intercept is {self.fit_intercept!r}. Rule: True or False. Take True.")
        if self.solver not in ("exact", "prgd"):
            raise ValueError(f"solver is {self.solver!r}. Rule: 'exact' or 'prgd'. Take 'exact'.")
        require_number("tol", self.tol, 0, below=1, good=1e-9, advice="It is a relative gap.")
        require_whole("max_iter", self.max_iter, good=40_000)

    def _hull(self, X: Any, labels: Any) -> tuple[Rows | Classes, Any, float]:
        """The problem, moved to the middle of the data (with an intercept) and scaled so that the largest norm is 1."""
        largest = float(np.abs(X).max())
        if largest > LARGEST:
            raise _out_of_range("entry", largest)
        middle = X.mean(0) if self.fit_intercept else np.zeros(X.shape[1])
        moved = X - middle
        unit = float(np.abs(moved).max()) or 1.0
        if unit < SMALLEST:
            raise _out_of_range("entry (from the mean, with an intercept)", unit)
        moved = moved / unit
        norm = float(np.sqrt((moved * moved).sum(1).max())) or 1.0
        moved, unit = moved / norm, unit * norm
        if len(self.classes_) > 2:
            return Classes(moved, labels, self.fit_intercept), middle, unit
        return Rows(np.where(labels[:, None] == 1, moved, -moved), labels if self.fit_intercept else None), middle, unit

    def _keep(self, hull: Rows | Classes, w: Vector, middle: Any, unit: float) -> None:
        if isinstance(hull, Classes):
            # least differences of scores, not of scores over the root of two, are to be 1
            w = w * 2**-0.5
            offsets = hull.intercepts(w)
        else:
            offsets = np.array([hull.threshold(w)])
        self.coef_ = w.reshape(len(offsets), -1) / unit
        self.intercept_ = offsets - self.coef_ @ middle

    def _margin(self, X: Any, labels: Any) -> float:
        """That of `coef_` and `intercept_` on the data as given."""
        # relative to the largest coefficient, whose square may be no float
        largest = float(np.abs(self.coef_).max()) or 1.0
        coef = self.coef_ / largest
        size = float(np.linalg.norm(coef))
        scores = X @ coef.T + self.intercept_ / largest
        if len(self.classes_) == 2:
            least = np.where(labels == 1, scores[:, 0], -scores[:, 0]).min()
            return float(least) / size if size > 0 else 0.0
        rows = np.arange(len(labels))
        own = scores[rows, labels]
        scores[rows, labels] = -np.inf
        return float((own - scores.max(1)).min()) / (2**0.5 * size) if size > 0 else 0.0

    def _warn(self) -> None:
        if not self.separable_:
            text = (
                f"no hyperplane was found that separates the classes: the margin is {self.margin_:.3g}, and none is "
                f"above {self.margin_bound_:.3g}. coef_ minimises the exponential loss instead. "
                "For data that overlaps take sklearn.svm.LinearSVC or LogisticRegression."
            )
        elif self.dual_gap_ > self.tol:
            more = f"Raise max_iter={self.max_iter} or tol."
            if self.n_iter_ < self.max_iter:
                more = "Rounding is in the way: bring the features to one scale with StandardScaler, or raise tol."
            text = (
                f"the margin is within {self.dual_gap_:.1e} of the best possible one, not within tol={self.tol:.1e}, "
                f"after {self.n_iter_} passes. {more}"
            )
        else:
            return
        warnings.warn(text, ConvergenceWarning, stacklevel=3)


def _rescaled(hull: Rows | Classes, found: MaxMargin, tol: float, max_iter: int) -> MaxMargin:
    """The widest margin that rescaling meets, next to the bound that is known."""
    best, step = MaxMargin(found.w, -np.inf, found.bound, 0), 0
    if not found.separable:
        return found
    for step, w in enumerate(islice(prgd(hull), max_iter), start=1):
        if step % LOOK and step < max_iter:
            continue
        direction = w / np.linalg.norm(w)
        margin = hull.hardest(direction)[0]
        if margin > best.margin:
            best = MaxMargin(direction, margin, found.bound, step)
        if best.gap <= tol:
            break
    return MaxMargin(best.w, best.margin, best.bound, step)


def _least_loss(hull: Rows | Classes) -> Vector:
    """The minimiser of log L, or a point far out towards it where part of the data separates."""
    from scipy.optimize import minimize

    def value(w: Vector) -> tuple[float, Vector]:
        loss = hull.soft(w)
        return loss.log_loss, -loss.point

    return minimize(value, np.zeros(hull.dim), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x


def _out_of_range(what: str, value: float) -> ValueError:
    return ValueError(
        f"the largest {what} of X is {value:.3g}. Rule: from {SMALLEST} to {LARGEST}, so that coefficients are floats. "
        f"Change the unit: divide X by {value:.3g}."
    )
