"""Compiled kernels for general blocks: tiles of the batch go through all factors in cache.

What a call needs lies in memory as 64-bit words, so that a call passes a few whole numbers: `SPEC` words for each
factor, in the order in which factors are applied (address of the weights, a, b, c, d, and for the backward pass the
address of the gradient of the weights). Everything else, too, is an address or a size in bytes.
"""

from __future__ import annotations

from typing import no_type_check

from .simd import compiled
from .tiles import (
    clear_row,
    copy_real,
    copy_row,
    join_planes,
    lanes,
    outer11,
    outer12,
    outer14,
    outer21,
    outer22,
    outer24,
    outer41,
    outer42,
    outer44,
    part_planes,
    planes,
    product1,
    product2,
    product3,
    product4,
    product5,
    product6,
    product7,
    product8,
    put_word,
    real_bytes,
    row_bytes,
    turn_in,
    turn_out,
    word,
)

SPEC = 6
"""Words for each factor."""


@compiled
@no_type_check
def _block(tag, conj, w, wj, wk, x, xk, y, yj, outputs, inputs):
    """One block times a tile: at most eight outputs at a time."""
    weights = 8 * wj * real_bytes(tag) * planes(tag)
    rows = 8 * yj * row_bytes(tag)
    while outputs > 8:
        product8(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
        outputs -= 8
        w += weights
        y += rows
    if outputs == 8:
        product8(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
    elif outputs == 4:
        product4(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
    elif outputs == 2:
        product2(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
    elif outputs == 1:
        product1(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
    elif outputs == 3:
        product3(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
    elif outputs == 5:
        product5(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
    elif outputs == 6:
        product6(tag, conj, w, wj, wk, x, xk, y, yj, inputs)
    else:
        product7(tag, conj, w, wj, wk, x, xk, y, yj, inputs)


@compiled
@no_type_check
def _apply(tag, conj, w, wj, wk, a, b, c, d, x, y, gathered):
    """One factor times a tile; y may be x if b = c."""
    row = row_bytes(tag)
    size = b * c * real_bytes(tag) * planes(tag)
    # several passes over the inputs: side by side they stay in cache, and outputs may overwrite them
    gather = b > 8 and (d > 1 or x == y)
    for i in range(a):
        for k in range(d):
            source = x + (i * c * d + k) * row
            target = y + (i * b * d + k) * row
            if gather:
                for j in range(c):
                    copy_row(tag, source + j * d * row, gathered + j * row)
                _block(tag, conj, w, wj, wk, gathered, 1, target, d, b, c)
            else:
                _block(tag, conj, w, wj, wk, source, d, target, d, b, c)
            w += size


@compiled
@no_type_check
def _fill(tag, x, pitch, last, n, start, rows, tile, table, zeros):
    """Read a tile: vectors start, start + 1, ... < rows, then zeros."""
    row, real, parts = row_bytes(tag), real_bytes(tag), planes(tag)
    item = real * parts
    width = row // item
    valid = min(width, rows - start)
    if last:
        x += start * item
        for _ in range(n):
            if valid == width:
                part_planes(tag, x, tile)
            else:
                clear_row(tag, tile)
                for r in range(valid):
                    for p in range(parts):
                        copy_real(tag, x + r * item + p * real, tile + p * (row // parts) + r * real)
            x += pitch
            tile += row
        return
    # seen as real numbers, a complex matrix turns into rows of real and rows of imaginary parts
    for r in range(width):
        put_word(tag, table + 8 * r, x + (start + r) * pitch if r < valid else zeros)
    step, reals = lanes(tag), n * parts
    for group in range(width // step):
        target = tile + group * step * real
        for k in range(0, reals - step + 1, step):
            turn_in(tag, table + 8 * group * step, k * real, target + k * (row // parts), row // parts)
        if reals >= step:
            k = reals - step
            if reals % step:
                turn_in(tag, table + 8 * group * step, k * real, target + k * (row // parts), row // parts)
        else:
            for k in range(reals):
                for r in range(step):
                    source = word(tag, table + 8 * (group * step + r)) + k * real
                    copy_real(tag, source, target + k * (row // parts) + r * real)


@compiled
@no_type_check
def _drain(tag, tile, y, pitch, last, m, start, rows, table, dump):
    """Write a tile: vectors start, start + 1, ... < rows; the others go to a dump."""
    row, real, parts = row_bytes(tag), real_bytes(tag), planes(tag)
    item = real * parts
    width = row // item
    valid = min(width, rows - start)
    if last:
        y += start * item
        for _ in range(m):
            if valid == width:
                join_planes(tag, tile, y)
            else:
                for r in range(valid):
                    for p in range(parts):
                        copy_real(tag, tile + p * (row // parts) + r * real, y + r * item + p * real)
            y += pitch
            tile += row
        return
    for r in range(width):
        put_word(tag, table + 8 * r, y + (start + r) * pitch if r < valid else dump)
    step, reals = lanes(tag), m * parts
    for group in range(width // step):
        source = tile + group * step * real
        for k in range(0, reals - step + 1, step):
            turn_out(tag, source + k * (row // parts), row // parts, table + 8 * group * step, k * real)
        if reals >= step:
            k = reals - step
            if reals % step:
                turn_out(tag, source + k * (row // parts), row // parts, table + 8 * group * step, k * real)
        else:
            for k in range(reals):
                for r in range(step):
                    target = word(tag, table + 8 * (group * step + r)) + k * real
                    copy_real(tag, source + k * (row // parts) + r * real, target)


@compiled
@no_type_check
def _clear(tag, address, size):
    """Fill memory with zeros, up to a whole word."""
    for k in range(0, size, 8):
        put_word(tag, address + k, 0)


@compiled
@no_type_check
def forward_tiles(
    tag, spec, factors, x, x_pitch, y, y_pitch, last, start, stop, rows, table, zeros, tiles, widest, inner
):
    """Vectors start ... stop - 1 of x, of `rows` vectors, through all factors into y.

    Memory: `table` holds an address for each vector of a tile, `zeros` two times the longest vector of x or y (the
    first half zeros), `tiles` `inner` rows of a tile and two times `widest` rows.
    """
    row = row_bytes(tag)
    width = row // (real_bytes(tag) * planes(tag))
    n = word(tag, spec + 8) * word(tag, spec + 24) * word(tag, spec + 32)
    end = spec + 8 * SPEC * (factors - 1)
    m = word(tag, end + 8) * word(tag, end + 16) * word(tag, end + 32)
    dump = zeros + max(n, m) * real_bytes(tag) * planes(tag)
    if rows % width and stop == rows:
        _clear(tag, zeros, dump - zeros)
    for begin in range(start, stop, width):
        this = tiles + inner * row
        other = this + widest * row
        _fill(tag, x, x_pitch, last, n, begin, rows, this, table, zeros)
        for f in range(factors):
            at = spec + 8 * SPEC * f
            w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
            c, d = word(tag, at + 24), word(tag, at + 32)
            if b == c:
                _apply(tag, None, w, c, 1, a, b, c, d, this, this, tiles)
            else:
                _apply(tag, None, w, c, 1, a, b, c, d, this, other, tiles)
                this, other = other, this
        _drain(tag, this, y, y_pitch, last, m, begin, rows, table, dump)


@compiled
@no_type_check
def _outers(tag, g, gj, x, xk, w, outputs, inputs):
    """w[j, k] += sum over the tile of g[j] conj(x[k]) for one block."""
    row = row_bytes(tag)
    item = real_bytes(tag) * planes(tag)
    wide = 4 // planes(tag)  # inputs at a time: sixteen sums
    j = 0
    while j < outputs:
        high = 4 if outputs - j >= 4 else 2 if outputs - j >= 2 else 1
        gs, ws = g + j * gj * row, w + j * inputs * item
        k = 0
        while k < inputs:
            left = min(inputs - k, wide)
            xs, at = x + k * xk * row, ws + k * item
            if left == 4:
                if high == 4:
                    outer44(tag, gs, gj, xs, xk, at, inputs)
                elif high == 2:
                    outer24(tag, gs, gj, xs, xk, at, inputs)
                else:
                    outer14(tag, gs, gj, xs, xk, at, inputs)
                k += 4
            elif left >= 2:
                if high == 4:
                    outer42(tag, gs, gj, xs, xk, at, inputs)
                elif high == 2:
                    outer22(tag, gs, gj, xs, xk, at, inputs)
                else:
                    outer12(tag, gs, gj, xs, xk, at, inputs)
                k += 2
            else:
                if high == 4:
                    outer41(tag, gs, gj, xs, xk, at, inputs)
                elif high == 2:
                    outer21(tag, gs, gj, xs, xk, at, inputs)
                else:
                    outer11(tag, gs, gj, xs, xk, at, inputs)
                k += 1
        j += high


@compiled
@no_type_check
def _gradient(tag, a, b, c, d, g, x, w, gathered):
    """Add the gradient of the weights of one factor over a tile."""
    row = row_bytes(tag)
    size = b * c * real_bytes(tag) * planes(tag)
    gather = d > 1 and (b > 4 or c > 4)
    for i in range(a):
        for k in range(d):
            gs, xs = g + (i * b * d + k) * row, x + (i * c * d + k) * row
            if gather:
                for j in range(b):
                    copy_row(tag, gs + j * d * row, gathered + j * row)
                for j in range(c):
                    copy_row(tag, xs + j * d * row, gathered + (b + j) * row)
                _outers(tag, gathered, 1, gathered + b * row, 1, w, b, c)
            else:
                _outers(tag, gs, d, xs, d, w, b, c)
            w += size


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
    need_x,
    need_factors,
):
    """Gradients over the vectors start ... stop - 1: for x, of result g, into y, and for the weights where `spec` says.

    Memory as for `forward_tiles`, but `tiles` holds two times `inner` rows, two times `widest` rows, and the inputs of
    all factors.
    """
    row = row_bytes(tag)
    width = row // (real_bytes(tag) * planes(tag))
    n = word(tag, spec + 8) * word(tag, spec + 24) * word(tag, spec + 32)
    end = spec + 8 * SPEC * (factors - 1)
    m = word(tag, end + 8) * word(tag, end + 16) * word(tag, end + 32)
    dump = zeros + max(n, m) * real_bytes(tag) * planes(tag)
    if rows % width and stop == rows:
        _clear(tag, zeros, dump - zeros)
    for begin in range(start, stop, width):
        this = tiles + 2 * inner * row
        other = this + widest * row
        inputs = other + widest * row
        if need_factors:
            _fill(tag, x, x_pitch, last, n, begin, rows, inputs, table, zeros)
            for f in range(factors - 1):
                at = spec + 8 * SPEC * f
                w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
                c, d = word(tag, at + 24), word(tag, at + 32)
                outputs = inputs + a * c * d * row
                _apply(tag, None, w, c, 1, a, b, c, d, inputs, outputs, tiles)
                inputs = outputs
        _fill(tag, g, g_pitch, last, m, begin, rows, this, table, zeros)
        for back in range(factors):
            f = factors - 1 - back
            at = spec + 8 * SPEC * f
            w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
            c, d = word(tag, at + 24), word(tag, at + 32)
            if need_factors:
                _gradient(tag, a, b, c, d, this, inputs, word(tag, at + 40), tiles)
                if f > 0:
                    before = at - 8 * SPEC
                    inputs -= word(tag, before + 8) * word(tag, before + 24) * word(tag, before + 32) * row
            if need_x or f > 0:
                if b == c:
                    _apply(tag, True, w, 1, c, a, c, b, d, this, this, tiles)
                else:
                    _apply(tag, True, w, 1, c, a, c, b, d, this, other, tiles)
                    this, other = other, this
        if need_x:
            _drain(tag, this, y, y_pitch, last, n, begin, rows, table, dump)
