"""Whole numbers that a user hands in: counts, sizes, seeds."""

from __future__ import annotations

from operator import index
from typing import Any


def require_whole(name: str, value: Any, least: int = 1, *, good: int | None = None) -> int:
    """The whole number that `value` is: an integer of Python, numpy or torch, at least `least`.

    `good` is a value that is often right, `least` if not given. Raises `ValueError` for anything else, True and 2.0
    included: what is not written as a whole number is mostly a slip.

    >>> require_whole("starts", 1.5, good=20)
    Traceback (most recent call last):
    ValueError: starts is 1.5. Rule: a whole number, at least 1. Take 20.
    """
    try:
        if not isinstance(value, bool) and index(value) >= least:
            return index(value)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor with several entries
        pass
    raise ValueError(
        f"{name} is {value!r}. Rule: a whole number, at least {least}. Take {least if good is None else good}."
    )
