"""Numbers that a user hands in: counts, sizes, seeds, rates, shares."""

from __future__ import annotations

from math import inf, isfinite
from numbers import Real
from operator import index
from typing import Any

import torch

Limit = int | float


def require_whole(
    name: str, value: Any, least: Limit = 1, most: Limit = inf, *, good: int | None = None, advice: str = ""
) -> int:
    """The whole number that `value` is: an integer of Python, numpy or torch, from `least` to `most`.

    `good` is a value that is often right, `advice` a last sentence of the error. Raises `ValueError` for anything else,
    True and 2.0 included: what is not written as a whole number is mostly a slip. Cost: some comparisons, so it may
    stand in a step.

    >>> require_whole("starts", 1.5, good=20)
    Traceback (most recent call last):
    ValueError: starts is 1.5. Rule: a whole number, at least 1, such as 20. Nearest good value: 2.
    """
    try:
        found: Any = value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
        if not isinstance(found, bool | torch.Tensor) and least <= index(found) <= most:
            return index(found)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without values
        pass
    number = _real(value)
    near = round(min(max((good or 0) if number is None else number, least), most))
    raise _refusal(name, value, "a whole number", _between(least, most), good, near, advice)


def require_number(
    name: str,
    value: Any,
    least: Limit = -inf,
    most: Limit = inf,
    *,
    good: Limit,
    above: Limit = -inf,
    below: Limit = inf,
    advice: str = "",
) -> float:
    """The finite real number that `value` is, of Python or numpy, from `least` to `most`, `above` and `below` excluded.

    `good` is a value that is often right, `advice` a last sentence of the error. Raises `ValueError` for anything else,
    NaN, Inf and True included. Cost: some comparisons, so it may stand in a step.

    >>> require_number("share", 1.5, 0.0, 1.0, good=0.25)
    Traceback (most recent call last):
    ValueError: share is 1.5. Rule: a number from 0.0 to 1.0, such as 0.25. Nearest good value: 1.0.
    >>> require_number("lam", 0, above=0, good=1e-4)
    Traceback (most recent call last):
    ValueError: lam is 0. Rule: a number, above 0, such as 0.0001. Nearest good value: 0.0001.
    """
    number = _real(value)
    if number is not None and least <= number <= most and above < number < below:
        return number
    near = good if number is None else min(max(number, least), most)
    if not above < near < below:  # nothing is nearest to an end that is excluded
        near = good
    raise _refusal(name, value, "a number", _between(least, most, above, below), good, near, advice)


def _real(value: Any) -> float | None:
    """A finite real number of Python or numpy; None for all else, for which there is no nearest good value."""
    if isinstance(value, bool) or not issubclass(type(value), Real):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:  # an integer beyond floats
        return None


def _between(least: Limit, most: Limit, above: Limit = -inf, below: Limit = inf) -> str:
    if least > -inf and most < inf:
        return f" from {least} to {most}"
    ends = {f"at least {least}": least > -inf, f"above {above}": above > -inf}
    ends |= {f"at most {most}": most < inf, f"below {below}": below < inf}
    told = " and ".join(end for end, given in ends.items() if given)
    return f", {told}" if told else ""


def _refusal(name: str, value: Any, kind: str, bounds: str, good: Any, near: Any, advice: str) -> ValueError:
    such = "" if good is None else f", such as {good}"
    more = f" {advice}" if advice else ""
    return ValueError(f"{name} is {value!r}. Rule: {kind}{bounds}{such}. Nearest good value: {near}.{more}")
