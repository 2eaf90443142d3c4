"""The three parts of a data set: fit on train, choose on valid, report on test."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import torch
from jaxtyping import Int

from ..core import require_whole

SPLITS = ("train", "valid", "test")
SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
SEEDS = 1 << 63
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


def stratified(
    y: Int[torch.Tensor, " n"], seed: int = 0, shares: Mapping[str, float] = SHARES
) -> dict[str, Int[torch.Tensor, " part"]]:
    """Row numbers of each split, ascending: of the rows of each class it has its share, drawn by `seed`.

    A class with few rows may miss from a split; all rows are in exactly one. Raises `ValueError` for a seed outside
    0 ... 2^63 - 1.

    >>> {name: len(rows) for name, rows in stratified(torch.arange(20) % 2).items()}
    {'train': 14, 'valid': 2, 'test': 4}
    """
    require_whole("seed", seed, 0, SEEDS - 1)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in shares}
    for members in y.argsort(stable=True).split(y.unique(return_counts=True)[1].tolist()):
        members = members[torch.randperm(len(members), generator=generator)]
        ends = [round(len(members) * sum(list(shares.values())[:k])) for k in range(len(shares) + 1)]
        for k, name in enumerate(shares):
            parts[name].append(members[ends[k] : ends[k + 1]])
    return {name: torch.cat(rows).sort().values for name, rows in parts.items()}
