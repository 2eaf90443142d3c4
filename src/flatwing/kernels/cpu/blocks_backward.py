"""Compiled kernels for the gradients of general blocks: tiles go forwards, then backwards, through all factors."""

from __future__ import annotations

from typing import no_type_check

from .blocks_kernels import SPEC
from .blocks_memory import clear, drain, fill
from .blocks_products import apply, apply_few, apply_few_back, few_suits
from .simd import compiled
from .tiles import (
    copy_real,
    copy_row,
    item_bytes,
    lanes,
    planes,
    real_bytes,
    row_bytes,
    turn,
    word,
)
from .tiles_math import (
    outer11,
    outer12,
    outer14,
    outer21,
    outer22,
    outer24,
    outer41,
    outer42,
    outer44,
    ranks1,
    ranks8,
    turned4,
    turned8,
)


@compiled
@no_type_check
def _outers(tag, g, gj, x, xk, w, wj, outputs, inputs):
    """w[j, k] += sum over the tile of g[j] conj(x[k]) for one block."""
    row = row_bytes(tag)
    item = item_bytes(tag)
    wide = 4 // planes(tag)  # inputs at a time: sixteen sums
    j = 0
    while j < outputs:
        high = 4 if outputs - j >= 4 else 2 if outputs - j >= 2 else 1
        gs, ws = g + j * gj * row, w + j * wj * item
        k = 0
        while k < inputs:
            left = min(inputs - k, wide)
            xs, at = x + k * xk * row, ws + k * item
            if left == 4:
                if high == 4:
                    outer44(tag, gs, gj, xs, xk, at, wj)
                elif high == 2:
                    outer24(tag, gs, gj, xs, xk, at, wj)
                else:
                    outer14(tag, gs, gj, xs, xk, at, wj)
                k += 4
            elif left >= 2:
                if high == 4:
                    outer42(tag, gs, gj, xs, xk, at, wj)
                elif high == 2:
                    outer22(tag, gs, gj, xs, xk, at, wj)
                else:
                    outer12(tag, gs, gj, xs, xk, at, wj)
                k += 2
            else:
                if high == 4:
                    outer41(tag, gs, gj, xs, xk, at, wj)
                elif high == 2:
                    outer21(tag, gs, gj, xs, xk, at, wj)
                else:
                    outer11(tag, gs, gj, xs, xk, at, wj)
                k += 1
        j += high


@compiled
@no_type_check
def _turned(tag, g, gj, x, xk, w, outputs, inputs, square):
    """The same for blocks with more inputs than lanes: vectors of weights, without sums across lanes."""
    row, item, step = row_bytes(tag), item_bytes(tag), lanes(tag)
    many, left = inputs - inputs % step, outputs % 4
    for k in range(0, many, step):
        turn(tag, x + k * xk * row, xk * row, square)
        j = 0
        while j < outputs - left:
            gs, at = g + j * gj * row, w + (j * inputs + k) * item
            if outputs - j >= 8:
                turned8(tag, gs, gj, square, at, inputs)
                j += 8
            else:
                turned4(tag, gs, gj, square, at, inputs)
                j += 4
    j = outputs - left
    if left:
        _outers(tag, g + j * gj * row, gj, x, xk, w + j * inputs * item, inputs, left, many)
    if many < inputs:
        _outers(tag, g, gj, x + many * xk * row, xk, w + many * item, inputs, outputs, inputs - many)


@compiled
@no_type_check
def _ranks(tag, g, gj, x, xk, w, outputs, inputs, line, few):
    """The same for the first `few` vectors of a tile of real numbers, and whole vectors of inputs."""
    row, real = row_bytes(tag), real_bytes(tag)
    steps, left = inputs // lanes(tag), outputs % 8
    for r in range(0, few * real, real):
        for k in range(inputs):
            copy_real(tag, x + k * xk * row + r, line + k * real)
        for j in range(0, outputs - left, 8):
            ranks8(tag, g + j * gj * row + r, gj, line, w + j * inputs * real, inputs, steps)
        for j in range(outputs - left, outputs):
            ranks1(tag, g + j * gj * row + r, gj, line, w + j * inputs * real, inputs, steps)


@compiled
@no_type_check
def _gradient(tag, a, b, c, d, g, x, w, gathered, few):
    """Add the gradient of the weights of one factor over a tile, of which the first `few` vectors matter if any."""
    row = row_bytes(tag)
    if few:
        for i in range(a):
            for k in range(d):
                gs, xs = g + (i * b * d + k) * row, x + (i * c * d + k) * row
                _ranks(tag, gs, d, xs, d, w, b, c, gathered, few)
                w += b * c * real_bytes(tag)
        return
    size = b * c * item_bytes(tag)
    turned = b >= 4 and c >= lanes(tag) and row == lanes(tag) * item_bytes(tag)
    gather = d > 1 and (b > 4 or c > 4)
    for i in range(a):
        for k in range(d):
            gs, xs, gj, xk = g + (i * b * d + k) * row, x + (i * c * d + k) * row, d, d
            if gather:
                for j in range(b):
                    copy_row(tag, gs + j * d * row, gathered + j * row)
                gs, gj = gathered, 1
            if turned:
                _turned(tag, gs, gj, xs, xk, w, b, c, gathered + b * row)
            else:
                if gather:
                    for j in range(c):
                        copy_row(tag, xs + j * d * row, gathered + (b + j) * row)
                    xs, xk = gathered + b * row, 1
                _outers(tag, gs, gj, xs, xk, w, c, b, c)
            w += size


@compiled
@no_type_check
def _few(tag, spec, factors, rows):
    """How many vectors of a tile matter, 0 for all: with one or two, real numbers and whole vectors of inputs."""
    if rows > 2 or planes(tag) == 2:
        return 0
    for f in range(factors):
        if word(tag, spec + 8 * (SPEC * f + 3)) % lanes(tag):
            return 0  # sums over all vectors: the others must be zero
    return rows


@compiled
@no_type_check
def _back(tag, spec, factors, this, other, inputs, gathered, few, need_x, need_factors):
    """The gradient of one tile, in `this`, through all factors; its address afterwards, `this` or `other`."""
    row = row_bytes(tag)
    if need_factors:
        for f in range(factors - 1):
            at = spec + 8 * SPEC * f
            w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
            c, d = word(tag, at + 24), word(tag, at + 32)
            outputs = inputs + a * c * d * row
            if few_suits(tag, few, b, c):
                apply_few(tag, w, a, b, c, d, inputs, outputs, gathered, few)
            else:
                apply(tag, None, w, c, 1, a, b, c, d, inputs, False, outputs, 0, 0, 0, gathered, 1, 0)
            inputs = outputs
    for f in range(factors - 1, -1, -1):
        at = spec + 8 * SPEC * f
        w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
        c, d = word(tag, at + 24), word(tag, at + 32)
        if need_factors:
            _gradient(tag, a, b, c, d, this, inputs, word(tag, at + 40), gathered, few)
            if f > 0:
                before = at - 8 * SPEC
                inputs -= word(tag, before + 8) * word(tag, before + 24) * word(tag, before + 32) * row
        if need_x or f > 0:
            direct = few > 0 and b >= 8
            target = this if b == c and b <= 8 and not direct else other
            if direct:
                apply_few_back(tag, w, a, b, c, d, this, target, gathered, few)
            else:
                apply(tag, True, w, 1, c, a, c, b, d, this, False, target, 0, 0, 0, gathered, 1, 0)
            if target != this:
                this, other = other, this
    return this


@compiled
@no_type_check
def backward_tiles(
    tag,
    spec,
    factors,
    x,
    x_pitch,
    g,
    g_pitch,
    y,
    y_pitch,
    last,
    start,
    stop,
    rows,
    table,
    zeros,
    tiles,
    widest,
    inner,
    kept,
    group,
    need_x,
    need_factors,
):
    """Gradients over the vectors start ... stop - 1: for x, of result g, into y, and for the weights where `spec` says.

    Memory: `table` holds an address for each vector of a tile, `zeros` two times the longest vector of x or y (zeros,
    then what stands in for vectors beyond the last), `tiles` two times `inner` rows of a tile and, for each tile of a
    group, two times `widest` rows and the `kept` inputs of all factors.
    """
    row = row_bytes(tag)
    width = row // item_bytes(tag)
    pitch, keep = widest * row, kept * row
    n = word(tag, spec + 8) * word(tag, spec + 24) * word(tag, spec + 32)
    end = spec + 8 * SPEC * (factors - 1)
    m = word(tag, end + 8) * word(tag, end + 16) * word(tag, end + 32)
    dump = zeros + max(n, m) * item_bytes(tag)
    if rows % width and stop == rows:
        clear(tag, zeros, dump - zeros)
    few = _few(tag, spec, factors, rows)
    this = tiles + 2 * inner * row
    other = this + group * pitch
    inputs = other + group * pitch
    for begin in range(start, stop, width * group):
        count = min(group, (stop - begin + width - 1) // width)
        if need_factors:
            fill(tag, x, x_pitch, last, n, begin, rows, inputs, count, keep, table, zeros)
        fill(tag, g, g_pitch, last, m, begin, rows, this, count, pitch, table, zeros)
        at = this
        for t in range(count):
            ahead, own = t * pitch, inputs + t * keep
            at = _back(tag, spec, factors, this + ahead, other + ahead, own, tiles, few, need_x, need_factors) - ahead
        if need_x:
            drain(tag, at, y, y_pitch, last, n, begin, rows, count, pitch, table, dump)
