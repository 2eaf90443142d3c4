"""How the learning rate moves over a run: a factor between 0 and 1 per step."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from ..core import Registry

# the share of the run that is done, from 0 to 1, to a factor
SCHEDULES: Registry[Callable[[float], float]] = Registry("schedule")


@SCHEDULES.register("constant")
def constant(done: float) -> float:
    """1 throughout.

    >>> constant(0.5)
    1.0
    """
    return 1.0


@SCHEDULES.register("cosine")
def cosine(done: float) -> float:
    """Half a cosine from 1 to 0.

    >>> cosine(0.0), round(cosine(0.5), 3), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return (1 + cos(pi * done)) / 2


@SCHEDULES.register("linear")
def linear(done: float) -> float:
    """A straight line from 1 to 0.

    >>> linear(0.25)
    0.75
    """
    return 1 - done


@SCHEDULES.register("wsd")
def wsd(done: float) -> float:
    """1 for four fifths of the run, then a straight line to 0 (with a warm-up: warmup, stable, decay).

    >>> wsd(0.5), round(wsd(0.9), 3)
    (1.0, 0.5)
    """
    return min(1.0, 5 * (1 - done))


def factor(schedule: str, step: int, steps: int, warmup: int = 0, floor: float = 0.0) -> float:
    """The factor of step 0 ... steps-1: a straight rise over `warmup` steps times the schedule over the whole run.

    The schedule falls from 1 to `floor` instead of 0.

    >>> [round(factor("linear", k, 4, warmup=2), 3) for k in range(4)]
    [0.5, 0.75, 0.5, 0.25]
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * (floor + (1 - floor) * SCHEDULES[schedule](step / steps))
