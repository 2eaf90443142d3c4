"""The three parts of a data set: fit on train, choose on valid, report on test."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Generic, TypeVar, final

SPLITS = ("train", "valid", "test")
T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Splits(Generic[T]):
    """What is fitted on, what choices are made on, and what is reported; each of one kind, a tensor or (x, y).

    >>> Splits(train=1, valid=2, test=3).test
    3
    """

    train: T
    valid: T
    test: T


def check_split(split: str) -> None:
    """Raise `ValueError` unless split is "train", "valid" or "test".

    >>> check_split("trian")
    Traceback (most recent call last):
    ValueError: unknown split 'trian', did you mean 'train'? Known: train, valid, test.
    """
    if split not in SPLITS:
        near = difflib.get_close_matches(str(split), SPLITS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown split {split!r}{hint} Known: {', '.join(SPLITS)}.")
