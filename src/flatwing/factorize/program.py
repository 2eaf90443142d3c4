"""Programs: the hierarchical algorithm, sign fixing and the error of a product as lists of steps over one flat memory.

A program depends on patterns alone. It says where in the memory each node lies, and which step reads and writes what;
`compiled.py` runs it, numbers only, without looking at a pattern again. The factors come first in the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import final

import numpy as np

from ..structure.pattern import Pattern
from ..structure.split import Split
from .butterfly import split_at
from .order import schedule
from .story import Places

# Kinds of steps, and who carries the weight after a cut; `compiled_steps.py` counts in the same way.
CUT, TAILS, TO_RIGHT, TO_LEFT, SIGNS, MULTIPLY, RESIDUAL = range(7)
WEIGHTS = ("right", "left", "both")
VALUES = -1  # the place of a node that is the matrix itself
ALIGNED = 16  # entries: nodes begin on lines of the cache


@final
@dataclass(frozen=True)
class Step:
    """One step: its kind, the split it works on, the places of the node and of the two parts, and of the tails."""

    kind: int
    split: Split
    node: int
    left: int
    right: int
    tails: int
    weight: str = "right"

    @property
    def row(self) -> tuple[int, ...]:
        """What the compiled loop reads."""
        shape = (*self.split.grid, *self.split.block_shape, self.split.rank)
        return self.kind, self.node, self.left, self.right, self.tails, *shape, WEIGHTS.index(self.weight)


@final
@dataclass(frozen=True)
class Program:
    """Steps, where the factors and the tails of each cut lie, and how much memory that takes."""

    steps: tuple[Step, ...]
    factors: tuple[tuple[int, Pattern], ...]
    tails: Places
    """(split, place, shape) of each cut in the order in which they are made; a residual comes last, as split 0."""
    entries: int
    numbers: int
    """Entries of the memory of nodes and factors, and float64 numbers of the tails."""

    @cached_property
    def pieces(self) -> tuple[tuple[slice, tuple[int, int, int]], ...]:
        """Where each factor lies, and its shape."""
        return tuple((slice(at, at + p.nnz), (p.blocks, p.b, p.c)) for at, p in self.factors)

    @cached_property
    def table(self) -> np.ndarray:
        """The steps as an int64 array."""
        return np.array([step.row for step in self.steps], dtype=np.int64).reshape(len(self.steps), -1)


@final
class _Writer:
    """Hands out places and collects steps."""

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        self.patterns = patterns
        self.entries = self.numbers = 0
        self.steps: list[Step] = []
        self.tails: list[tuple[int, int, tuple[int, int]]] = []
        self.places: dict[tuple[int, int], int] = {}
        self.free: dict[int, int] = {}  # place -> entries of memory that is not needed any more
        for i in range(len(patterns)):
            self.place(i, i + 1)

    def place(self, lo: int, hi: int) -> int:
        """Where the product of the factors lo ... hi-1 lies."""
        if (lo, hi) not in self.places:
            split = None if hi - lo == 1 else split_at(self.patterns, lo, lo + 1, hi)
            size = self.patterns[lo].nnz if split is None else split.pattern.nnz
            self.places[lo, hi] = self.take(-(-size // ALIGNED) * ALIGNED)
        return self.places[lo, hi]

    def take(self, size: int) -> int:
        """A place of that many entries: fresh memory costs more than filling it."""
        place = min((p for p, room in self.free.items() if room >= size), key=self.free.__getitem__, default=None)
        if place is None:
            self.entries += size
            return self.entries - size
        room = self.free.pop(place)
        if room > size:
            self.free[place + size] = room - size
        return place

    def leave(self, lo: int, hi: int) -> None:
        """The product of these factors has been read for the last time."""
        place = self.places.pop((lo, hi), None)
        if place is not None:
            size = split_at(self.patterns, lo, lo + 1, hi).pattern.nnz
            self.free[place] = -(-size // ALIGNED) * ALIGNED

    def step(self, kind: int, lo: int, s: int, hi: int, weight: str = "right", node: int | None = None) -> None:
        split = split_at(self.patterns, lo, s, hi)
        if kind in (CUT, TAILS, RESIDUAL):
            self.tails.append((0 if kind == RESIDUAL else s, self.numbers, split.regions))
        parts = (0, 0) if kind == TAILS else (self.place(lo, s), self.place(s, hi))
        self.steps.append(Step(kind, split, VALUES if node is None else node, *parts, self.numbers, weight))
        if kind in (CUT, TAILS, RESIDUAL):
            self.numbers += prod(split.regions)

    def program(self) -> Program:
        factors = tuple((self.places[i, i + 1], p) for i, p in enumerate(self.patterns))
        return Program(tuple(self.steps), factors, tuple(self.tails), self.entries, self.numbers)


@lru_cache(maxsize=256)
def attempt(patterns: tuple[Pattern, ...], order: tuple[int, ...], orthonormalize: bool) -> Program:
    """The steps of `butterfly.hierarchical`, then those of `fix_signs` and of `residual`."""
    writer = _Writer(patterns)
    for move in schedule(len(patterns), order, orthonormalize):
        lo, s, hi = move.nodes
        if move.cut:
            writer.step(CUT, lo, s, hi, move.weight, writer.places.get((lo, hi)))
            writer.leave(lo, hi)
        else:
            writer.step(TO_RIGHT if move.weight == "right" else TO_LEFT, lo, s, hi)
    for i in range(len(patterns) - 1):
        writer.step(SIGNS, i, i + 1, i + 2)
    _fuse(writer, 0, len(patterns))
    return writer.program()


@lru_cache(maxsize=256)
def signs(patterns: tuple[Pattern, ...]) -> Program:
    """The steps of `butterfly.fix_signs`."""
    writer = _Writer(patterns)
    for i in range(len(patterns) - 1):
        writer.step(SIGNS, i, i + 1, i + 2)
    return writer.program()


@lru_cache(maxsize=256)
def residual(patterns: tuple[Pattern, ...]) -> Program:
    """The steps of `butterfly.residual`."""
    writer = _Writer(patterns)
    _fuse(writer, 0, len(patterns))
    return writer.program()


def _fuse(writer: _Writer, lo: int, hi: int) -> None:
    """Products of neighbours as a balanced tree; the last one is not stored, its error is measured."""
    if hi - lo > 1:
        middle = (lo + hi) // 2
        _fuse(writer, lo, middle)
        _fuse(writer, middle, hi)
        whole = (lo, hi) == (0, len(writer.patterns))
        writer.step(RESIDUAL if whole else MULTIPLY, lo, middle, hi, node=None if whole else writer.place(lo, hi))


@lru_cache(maxsize=256)
def blockwise(count: int, rows: int, columns: int, rank: int) -> Program:
    """One cut: many separate blocks are a block-diagonal matrix."""
    writer = _Writer((Pattern(count, rows, rank, 1), Pattern(count, rank, columns, 1)))
    writer.step(CUT, 0, 1, 2)
    return writer.program()


@lru_cache(maxsize=256)
def tails(splits: tuple[Split, ...]) -> Program:
    """The squared tails of the matrix at each of some splits."""
    steps, numbers, found = [], 0, []
    for i, split in enumerate(splits):
        steps.append(Step(TAILS, split, VALUES, 0, 0, numbers))
        found.append((i + 1, numbers, split.regions))
        numbers += prod(split.regions)
    return Program(tuple(steps), (), tuple(found), 0, numbers)
