"""Progressive rescaling for linear classifiers, next to the gradient descents it improves on, as runs of iterates.

All minimise the exponential loss L(w) = mean exp(-<z_i, w>) of separable data, whose minimiser is at infinity in the
direction of the widest margin. Gradient descent finds that direction at the rate 1 / log t, descent along dL / L at
1 / t. The gradient that still turns w fades as the norm of w, the radius, grows by itself. Rescaling (Wang, Min and Wu,
2023, arXiv:2311.14387) sets the radius instead: solve at one radius, lengthen w, solve again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, pairwise
from math import exp, isfinite

import numpy as np
from jaxtyping import Float

from .margin import Hull, Soft, Vector, as_rows

Data = Float[np.ndarray, "n d"] | Hull
GROWTH = {"adaptive": 1.5, "exp": 1.2, "poly": 1.2}
# from lengthening w along itself to lengthening it along the gradient
MIXES = np.array([0.0, 0.03, 0.1, 0.3, 1.0])


def gd(z: Data, lr: float = 1.0) -> Iterator[Vector]:
    """The iterates of w <- w - lr dL, from w = 0, one per step, without end.

    z is (n, d), rows y_i x_i. lr is in units of 1 / max|z_i|^2: at 1 of them and below the loss falls.
    Raises `ValueError` for a matrix that is not finite or an lr that is not positive. Cost: 2 n d per step.

    >>> z = np.array([[0.5, 0.8], [0.5, -0.6]])
    >>> [w.round(3).tolist() for w in islice(gd(z), 2)]
    [[0.5, 0.1], [0.886, 0.139]]
    """
    return _descent(as_rows(z), _positive("lr", lr), normalized=False)


def normalized_gd(z: Data, lr: float = 1.0) -> Iterator[Vector]:
    """The iterates of w <- w - lr dL / L, from w = 0; units, errors and cost as for `gd`.

    The loss is never formed: dL / L is a mean of the rows, weighted by a softmax of their negative scores.
    """
    return _descent(as_rows(z), _positive("lr", lr), normalized=True)


def prgd(
    z: Data,
    lr: float = 1.0,
    *,
    schedule: str = "adaptive",
    growth: float | None = None,
    cycle: int = 5,
    share: float = 0.3,
    warmup: int = 100,
    radius_cap: float = 1e12,
) -> Iterator[Vector]:
    """The iterates of progressive rescaling, from w = 0; units, errors and cost of `lr` as for `gd`.

    The first `warmup` steps, and all before the data is separated, are those of `normalized_gd`. Then every step keeps
    |w| at or below a radius, which grows up to `radius_cap`, beyond which scores have no correct digits left.

    "exp" and "poly" are the published schedules: each `cycle` steps the radius becomes `growth` times the last, or
    (k + 1)^growth times the first, whether or not the old one was solved. On data where the directions that are left
    are flat they freeze: what is wrong is lengthened with the rest. "adaptive" asks the duality gap. With v = -dL / L
    and u = w / |w| it is (|v| - <u, v>) + (<u, v> - margin): what is wrong at this radius, and the price of the radius
    being finite. The radius grows by `growth` when the first is at most `share` of the second. w is then lengthened
    along whatever mix of u and v has the least loss: along u what the support vectors determine stays right, along v
    what they do not determine fades. That costs five passes over the data and counts as five steps.

    >>> z = np.array([[0.5, 0.8], [0.5, -0.6]])
    >>> (w,) = at(prgd(z), 1000)
    >>> (w / np.linalg.norm(w)).round(9).tolist()
    [1.0, 0.0]
    """
    if schedule not in GROWTH:
        raise ValueError(f"schedule is {schedule!r}. Rule: one of {', '.join(GROWTH)}. Take 'adaptive'.")
    growth = GROWTH[schedule] if growth is None else growth
    if not (isfinite(growth) and (growth > 0 if schedule == "poly" else growth > 1)):
        raise ValueError(f"growth is {growth}. Rule: above 1 (a power above 0 for 'poly'). Take {GROWTH[schedule]}.")
    if cycle < 2 or warmup < 1:
        raise ValueError(f"cycle is {cycle}, warmup {warmup}. Rule: cycle >= 2, warmup >= 1. Take 5 and 100.")
    hull, lr = as_rows(z), _positive("lr", lr)
    share, cap = _positive("share", share), _positive("radius_cap", radius_cap) / (hull.scale or 1.0)
    if schedule == "adaptive":
        return _adaptive(hull, lr, growth, share, warmup, cap)
    return _scheduled(hull, lr, growth, cycle, warmup, cap, powers=schedule == "poly")


def at(run: Iterator[Vector], *steps: int) -> list[Vector]:
    """The iterates of a run after the given numbers of steps, in increasing order.

    >>> at(iter([np.array([1.0]), np.array([2.0])]), 2)
    [array([2.])]
    """
    if not steps or any(b <= a for a, b in pairwise((0, *steps))):
        raise ValueError(f"steps are {steps}. Rule: increasing, the first at least 1. Write at(run, 100, 1000).")
    waits = [b - a - 1 for a, b in pairwise((0, *steps))]
    return [next(islice(run, wait, None)) for wait in waits]


def _descent(hull: Hull, lr: float, normalized: bool) -> Iterator[Vector]:
    w = np.zeros(hull.dim)
    while True:
        loss = hull.soft(w)
        w = w + lr * (1.0 if normalized else exp(loss.log_loss)) * loss.point
        yield w


def _scheduled(
    hull: Hull, lr: float, growth: float, cycle: int, warmup: int, cap: float, powers: bool
) -> Iterator[Vector]:
    w = np.zeros(hull.dim)
    for w in _warm(hull, lr, warmup):
        yield w
    first = float(np.linalg.norm(w))
    for k in count(1):
        # in logarithms, because growth^k overflows long before the cap is of no use
        stretch = growth * np.log(k + 1) if powers else k * np.log(growth)
        radius = min(first * float(np.exp(min(stretch, 700.0))), max(cap, first))
        w = w * (radius / float(np.linalg.norm(w)))
        yield w
        for _ in range(cycle - 1):
            w = _within(w + lr * hull.soft(w).point, radius)
            yield w


def _adaptive(hull: Hull, lr: float, growth: float, share: float, warmup: int, cap: float) -> Iterator[Vector]:
    w = np.zeros(hull.dim)
    for w in _warm(hull, lr, warmup):
        yield w
    radius = float(np.linalg.norm(w))
    while True:
        loss = hull.soft(w)
        norm, size = float(np.linalg.norm(w)), float(np.linalg.norm(loss.point))
        along = float(loss.point @ w) / norm
        if loss.low > 0 and radius < cap and size - along <= share * (along - loss.low / norm):
            radius = min(growth * radius, cap)
            w = _lengthened(hull, w, loss, radius)
            for _ in MIXES:
                yield w
        else:
            w = _within(w + lr * loss.point, radius)
            yield w


def _warm(hull: Hull, lr: float, warmup: int) -> Iterator[Vector]:
    for step, w in enumerate(_descent(hull, lr, normalized=True), start=1):
        yield w
        if step >= warmup and hull.hardest(w)[0] > 0:
            return


def _lengthened(hull: Hull, w: Vector, loss: Soft, radius: float) -> Vector:
    """w made as long as `radius` along the mix of itself and the gradient that has the least loss there."""
    norm = float(np.linalg.norm(w))
    unit, pull = w / norm, loss.point / float(np.linalg.norm(loss.point))
    trials = [w + (radius - norm) * ((1 - mix) * unit + mix * pull) for mix in MIXES]
    trials = [trial * (radius / float(np.linalg.norm(trial))) for trial in trials]
    return min(trials, key=lambda trial: hull.soft(trial).log_loss)


def _within(w: Vector, radius: float) -> Vector:
    norm = float(np.linalg.norm(w))
    return w * (radius / norm) if norm > radius else w


def _positive(name: str, value: float) -> float:
    if not (value > 0 and isfinite(value)):
        raise ValueError(f"{name} is {value}. Rule: positive and finite. Leave it out to take the default.")
    return float(value)
