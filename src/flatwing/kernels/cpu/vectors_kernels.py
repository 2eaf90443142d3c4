"""Compiled kernels for general blocks and one vector of real numbers, which stays as it is: weights are the vectors.

Rows of weights are read as they lie in tensors and multiplied by the inputs of their block; what is moved is x, which
is short. Rows shorter than a machine vector are several to a vector: see `vectors_simd`.
"""

from __future__ import annotations

from typing import no_type_check

from .blocks_kernels import SPEC
from .simd import compiled
from .tiles import copy_real, lanes, real_bytes, word
from .tiles_math import dots1, dots8
from .vectors_simd import (
    across2,
    across4,
    across8,
    along2,
    along4,
    along8,
    few1,
    few4,
    squares,
    squares1,
    squares2,
    squares4,
    squares8,
)


@compiled
@no_type_check
def _is_short(tag, b, c):
    """Whether whole vectors hold a block, each several of its rows."""
    size = b * c
    return 1 < c <= 8 and c < lanes(tag) <= size and size & (size - 1) == 0 and c & (c - 1) == 0


@compiled
@no_type_check
def _squares_suit(tag, a, b, c, d):
    """Whether `_squares` takes a factor as it is."""
    step = lanes(tag)
    return b == 2 and c == 2 and (d % step == 0 or (d < step and d & (d - 1) == 0 and a * d % step == 0))


@compiled
@no_type_check
def _squares(tag, w, a, d, x, y):
    """Blocks of 2 x 2; returns how many outputs there are: with d = 1, those of whole vectors of blocks."""
    step, real = lanes(tag), real_bytes(tag)
    count = a * d // step
    if d % step == 0:
        for i in range(a):
            far = 2 * i * d * real
            squares(tag, w + 2 * far, x + far, y + far, d * real, d // step)
    elif d == 1:
        squares1(tag, w, x, y, 0, count)
    elif d == 2:
        squares2(tag, w, x, y, 0, count)
    elif d == 4:
        squares4(tag, w, x, y, 0, count)
    else:
        squares8(tag, w, x, y, 0, count)
    return 2 * count * step


@compiled
@no_type_check
def _rows(tag, w, start, blocks, b, c, d, x, y):
    """Outputs from `start` on, counted block by block: the inputs of a block are side by side, its outputs d apart."""
    row, apart = c * real_bytes(tag), d * real_bytes(tag)
    j = start % b
    for block in range(start // b, blocks):
        weights, target = w + (block * b + j) * row, y + (block // d * b + j) * apart + block % d * real_bytes(tag)
        while j < b:
            many = 1
            if c < lanes(tag):
                if b - j >= 4:
                    many = 4
                    few4(tag, weights, x + block * row, target, apart, c)
                else:
                    few1(tag, weights, x + block * row, target, apart, c)
            elif b - j >= 8:
                many = 8
                dots8(tag, weights, c, x + block * row, target, apart, c)
            else:
                dots1(tag, weights, c, x + block * row, target, apart, c)
            j, weights, target = j + many, weights + many * row, target + many * apart
        j = 0


@compiled
@no_type_check
def _along(tag, w, blocks, b, c, x, y):
    """Small blocks, their inputs and their outputs one after the other."""
    step, shift, done = lanes(tag), 0, 0
    if b == 2 and c == 2:
        done = _squares(tag, w, blocks, 1, x, y)
    elif _is_short(tag, b, c):
        while step << shift < b * c:
            shift += 1
        groups = blocks * b // step
        if c == 8:
            along8(tag, w, x, y, groups, shift)
        elif c == 4:
            along4(tag, w, x, y, groups, shift)
        else:
            along2(tag, w, x, y, groups, shift)
        done = groups * step
    _rows(tag, w, done, blocks, b, c, 1, x, y)


@compiled
@no_type_check
def _across(tag, w, a, b, c, d, x, y, line):
    """Short rows; neighbours have their inputs and outputs side by side, as many as lanes."""
    real, step = real_bytes(tag), lanes(tag)
    size = b * c * real
    for i in range(a):
        for k in range(0, d, step):
            source, target = x + (i * c * d + k) * real, y + (i * b * d + k) * real
            if c == 8:
                across8(tag, w, size, source, target, d * real, line)
            elif c == 4:
                across4(tag, w, size, source, target, d * real, line)
            else:
                across2(tag, w, size, source, target, d * real, line)
            w += step * size


@compiled
@no_type_check
def _gather(tag, x, a, c, d, line):
    """Numbers (a, c, d) as (a, d, c)."""
    real = real_bytes(tag)
    for i in range(a):
        for k in range(d):
            source = x + (i * c * d + k) * real
            for _ in range(c):
                copy_real(tag, source, line)
                source += d * real
                line += real


@compiled
@no_type_check
def _factor(tag, w, a, b, c, d, x, y, line, spare):
    """One factor times one vector x into y; `line` and `spare` are memory for x and y."""
    short = _is_short(tag, b, c)
    if d == 1:
        _along(tag, w, a, b, c, x, y)
    elif _squares_suit(tag, a, b, c, d):
        _squares(tag, w, a, d, x, y)
    elif short and d % lanes(tag) == 0:
        _across(tag, w, a, b, c, d, x, y, line)
    else:
        _gather(tag, x, a, c, d, line)
        if short or (b == 2 and c == 2):
            _along(tag, w, a * d, b, c, line, spare)
            _gather(tag, spare, a, d, b, y)
        else:
            _rows(tag, w, 0, a * d, b, c, d, line, y)


@compiled
@no_type_check
def forward_vectors(tag, spec, factors, x, x_pitch, y, y_pitch, rows, memory, widest):
    """Each of some rows x through all factors into y; `memory` is for four vectors of `widest` bytes."""
    for r in range(rows):
        source, this, other = x + r * x_pitch, memory, memory + widest
        for f in range(factors):
            at = spec + 8 * SPEC * f
            w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
            c, d = word(tag, at + 24), word(tag, at + 32)
            target = this if f + 1 < factors else y + r * y_pitch
            _factor(tag, w, a, b, c, d, source, target, memory + 2 * widest, memory + 3 * widest)
            source = target
            this, other = other, this
