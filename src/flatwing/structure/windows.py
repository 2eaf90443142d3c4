"""Small windows of a product, entry by entry: which zero patterns factors can give, and which a limit can have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np
from jaxtyping import Bool

SIDE = 3  # rows and columns of a window; an entry (i, j) is bit 3 i + j
Box = tuple[int, int]
"""Rows and columns, as bits, that an inner index reaches."""
Constant = tuple[int, tuple[int, ...], tuple[int, ...]]
"""An inner index with its rows and columns of ones."""


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """Two inner indices that cancel at (row, column) and leave ones in that row and column, of a limit not attained.

    `other` is None where an inner index outside of the window takes back. `column_ones` and `row_ones` are the places
    (of the first, of the other) in column and row; `constant` belongs to a third.
    """

    first: int
    other: int | None
    row: int
    column: int
    column_ones: tuple[tuple[int, ...], tuple[int, ...]]
    row_ones: tuple[tuple[int, ...], tuple[int, ...]]
    constant: Constant | None


def bit_of(places: Sequence[int]) -> int:
    """Places as bits of a number.

    >>> bit_of([0, 2])
    5
    """
    return sum(1 << place for place in places)


def curve_of(cells: Bool[np.ndarray, "p q"], boxes: Sequence[Box]) -> Curve | None:
    """A curve of products of inner indices with these boxes, whose limit on `cells` has a pattern no product has.

    Of the limits found it is the first with fewest inner indices and fewest ones. Cost: all 0/1 limits of the form, at
    most 50 times 2^5 for each two boxes and cell they share; `attainable` once.
    """
    domain = sum(_cell(int(i), int(j)) for i, j in zip(*cells.nonzero(), strict=True))
    possible = attainable(domain, boxes)
    for bases in (_no_constant, _constants):
        for first, other, i, j in _meetings(cells, boxes):
            reach = boxes[first] if other is None else _union(boxes[first], boxes[other])
            cross = sum(_cell(i, t) for t in _bits(reach[1])) | sum(_cell(s, j) for s in _bits(reach[0]))
            for fixed, constant in bases(boxes, {first, other}, domain):
                free = cross & domain & ~fixed
                # the joint entry last: there the ones would have to be found beside 1/eps^2
                for some in sorted(_submasks(free), key=lambda s: (bool(s & _cell(i, j)), s.bit_count())):
                    if not possible[some | fixed]:
                        return _curve(boxes[first], first, other, i, j, some, constant)
    return None


def attainable(domain: int, boxes: Sequence[Box]) -> Bool[np.ndarray, " 512"]:
    """Which patterns on `domain`, as bits, some values of the inner indices could have.

    The inner indices are non-zero on some rows and columns of their boxes each. Where the product is not zero at least
    one of them must be non-zero; where it is zero, none, or two or more that cancel. That is necessary, in any field.

    >>> patterns = attainable(0b1011, [(0b11, 0b11)])  # rows {0, 1} x columns {0, 1} without the entry (1, 1)
    >>> bool(patterns[0b1010]), bool(patterns[0b0010])  # (0, 1) and (1, 0) but not (0, 0); (0, 1) only
    (False, True)
    """
    states = {(0, 0)}  # entries with at least one, entries with at least two
    for box in boxes:
        parts = {part & domain for part, _, _ in _parts(box)}
        states = {(once | part, twice | (once & part)) for once, twice in states for part in parts}
    reached = np.array(sorted(states))
    some, single = reached[:, 0], reached[:, 0] & ~reached[:, 1]
    patterns = np.arange(1 << SIDE * SIDE)[:, None]
    return ((patterns & ~some == 0) & (single & ~patterns == 0)).any(1)


def _meetings(cells: Bool[np.ndarray, "p q"], boxes: Sequence[Box]) -> Iterator[tuple[int, int | None, int, int]]:
    """(first, other, i, j): inner indices that both reach (i, j); where it is free, nobody in the window is needed."""
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            here = [k for k, (rows, columns) in enumerate(boxes) if rows >> i & 1 and columns >> j & 1]
            if not cells[i, j]:
                yield from ((k, None, i, j) for k in here)
            yield from ((a, b, i, j) for a, b in combinations(here, 2))


def _curve(box: Box, first: int, other: int | None, i: int, j: int, some: int, constant: Constant | None) -> Curve:
    """Write ones in row i and column j as a curve: each goes to the first inner index if its box reaches it."""
    column = [s for s in range(SIDE) if some & _cell(s, j)]
    row = [t for t in range(SIDE) if some & _cell(i, t) and t != j]
    in_column = tuple(s for s in column if box[0] >> s & 1), tuple(s for s in column if not box[0] >> s & 1)
    in_row = tuple(t for t in row if box[1] >> t & 1), tuple(t for t in row if not box[1] >> t & 1)
    return Curve(first, other, i, j, in_column, in_row, constant)


def _no_constant(boxes: Sequence[Box], used: set[int | None], domain: int) -> Iterator[tuple[int, Constant | None]]:
    yield 0, None


def _constants(boxes: Sequence[Box], used: set[int | None], domain: int) -> Iterator[tuple[int, Constant | None]]:
    for k, box in enumerate(boxes):
        if k not in used:
            yield from ((part & domain, (k, rows, columns)) for part, rows, columns in _parts(box) if part & domain)


def _parts(box: Box) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Entries, rows and columns of the empty rectangle and of all rectangles in a box."""
    yield 0, (), ()
    for rows in _submasks(box[0]):
        for columns in _submasks(box[1]):
            if rows and columns:
                s, t = _bits(rows), _bits(columns)
                yield sum(_cell(i, j) for i in s for j in t), s, t


def _submasks(mask: int) -> Iterator[int]:
    some = mask
    while some:
        yield some
        some = (some - 1) & mask
    yield 0


def _union(first: Box, second: Box) -> Box:
    return first[0] | second[0], first[1] | second[1]


def _cell(i: int, j: int) -> int:
    return 1 << (SIDE * i + j)


def _bits(mask: int) -> tuple[int, ...]:
    return tuple(place for place in range(SIDE) if mask >> place & 1)
