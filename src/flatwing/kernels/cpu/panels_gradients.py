"""Compiled kernels for the gradients of general blocks whose vectors stay rows: see `blocks_rows_kernels`.

A few rows of the batch go through the factors, and their gradient back. Sums over rows, for the weights, are products
of the same panels: a row more is an input more. They are laid out as the packed weights are: where d = 1 as in the
tensor itself, so that vectors are inputs of one block, and else each lane belongs to a block of its own.
"""

from __future__ import annotations

from typing import no_type_check

from .blocks_kernels import SPEC
from .blocks_memory import turn_back
from .blocks_rows_kernels import factor_rows, packed_size
from .panels_sheets import paired_sheet, shared_sheet
from .simd import compiled
from .tiles import copy_real, copy_row, lanes, put_word, real_bytes, row_bytes, word


@compiled
@no_type_check
def _copy(tag, source, pitch, target, target_pitch, numbers, rows):
    """Rows of so many numbers from one place to another."""
    row, real = row_bytes(tag), real_bytes(tag)
    size = numbers * real
    for _ in range(rows):
        whole = size - size % row
        for k in range(0, whole, row):
            copy_row(tag, source + k, target + k)
        for k in range(whole, size, real):
            copy_real(tag, source + k, target + k)
        source += pitch
        target += target_pitch


@compiled
@no_type_check
def _back(tag, more, w, packed, sums, a, b, c, d, g, g_pitch, x, x_pitch, y, y_pitch, rows, need_x, need_factors):
    """One factor for some rows: the gradient of its weights from those of its results, and that of its inputs, into y.

    Block by block, so that gradients are read once. `w` is where the weights are, `packed` where their vectors are.
    """
    step, row, real = lanes(tag), row_bytes(tag), real_bytes(tag)
    far, side = d * real, (c + 1) * row
    for i in range(a):
        gs, xs, ys = g + i * b * far, x + i * c * far, y + i * c * far
        if d == 1:
            if need_factors:
                shared_sheet(
                    tag, False, more, gs, real, g_pitch, xs, x_pitch, row, sums, c * real, row, b, rows, c // step
                )
            if need_x:
                shared_sheet(tag, False, 0, gs, g_pitch, real, w, c * real, row, ys, y_pitch, row, rows, b, c // step)
            sums += b * c * real
            w += b * c * real
            continue
        for _ in range(0, d, step):
            if need_factors:
                paired_sheet(tag, more, gs, far, g_pitch, xs, x_pitch, far, sums, side, row, b, rows, c)
            if need_x:
                paired_sheet(tag, 0, gs, g_pitch, far, packed, side, row, ys, y_pitch, far, rows, b, c)
            sums += b * side
            packed += b * side
            gs += row
            xs += row
            ys += row


@compiled
@no_type_check
def _unpack(tag, sums, blocks, b, c, target, table):
    """Sums of a factor with d > 1 into the tensor they are for; `table` is memory for an address for each lane."""
    step, row, real = lanes(tag), row_bytes(tag), real_bytes(tag)
    for block in range(0, blocks, step):
        for j in range(b):
            for lane in range(step):
                put_word(tag, table + 8 * lane, target + ((block + lane) * b + j) * c * real)
            turn_back(tag, sums + (block * b + j * step) * (c + 1) * real, row, c, table)


@compiled
@no_type_check
def backward_rows(
    tag, spec, factors, packed, x, x_pitch, g, g_pitch, y, y_pitch, start, stop, tile, table, sums, tiles, pitch,
    need_x, need_factors,
):  # fmt: skip
    """Gradients over the rows start ... stop - 1: for x, of result g, into y, and for the weights where `spec` says.

    Memory: `packed` holds the weights, `table` an address for each lane, `sums` the sums of factors with d > 1 as their
    weights are packed, and `tiles` one tile and one for each factor, each `tile` rows of the longest intermediate
    result, `pitch` bytes from row to row.
    """
    area, end_of_sums = tile * pitch, sums
    for f in range(factors - 1):
        at = spec + 8 * SPEC * f
        a, b, c, d = word(tag, at + 8), word(tag, at + 16), word(tag, at + 24), word(tag, at + 32)
        end_of_sums += packed_size(tag, a * d, b, c, d) if d > 1 else 0
    n = word(tag, spec + 8) * word(tag, spec + 24) * word(tag, spec + 32)
    end = spec + 8 * SPEC * (factors - 1)
    m = word(tag, end + 8) * word(tag, end + 16) * word(tag, end + 32)
    for begin in range(start, stop, tile):
        rows = min(tile, stop - begin)
        this, inputs, weights = tiles, tiles + area, packed
        # rows of tensors may lie a power of two apart: a cache holds few such lines
        _copy(tag, g + begin * g_pitch, g_pitch, this, pitch, m, rows)
        if need_factors:
            _copy(tag, x + begin * x_pitch, x_pitch, inputs, pitch, n, rows)
        for f in range(factors):
            at = spec + 8 * SPEC * f
            a, b, c, d = word(tag, at + 8), word(tag, at + 16), word(tag, at + 24), word(tag, at + 32)
            if f + 1 < factors:
                if need_factors:
                    factor_rows(tag, weights, a, b, c, d, inputs, pitch, inputs + area, pitch, rows)
                inputs += area
                weights += packed_size(tag, a * d, b, c, d)
        total = end_of_sums
        for f in range(factors - 1, -1, -1):
            at = spec + 8 * SPEC * f
            w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
            c, d, gradient = word(tag, at + 24), word(tag, at + 32), word(tag, at + 40)
            # block by block, the gradient of the inputs takes their place
            target, target_pitch = (inputs, pitch) if f > 0 else (y + begin * y_pitch, y_pitch)
            _back(
                tag, begin - start, w, weights, gradient if d == 1 else total, a, b, c, d, this, pitch, inputs, pitch,
                target, target_pitch, rows, f > 0 or need_x, need_factors,
            )  # fmt: skip
            this = inputs
            inputs -= area
            if f > 0:
                before = at - 8 * SPEC
                size = packed_size(
                    tag, word(tag, before + 8) * word(tag, before + 32), word(tag, before + 16),
                    word(tag, before + 24), word(tag, before + 32),
                )  # fmt: skip
                weights -= size
                total -= size if word(tag, before + 32) > 1 else 0
    if need_factors:
        for f in range(factors):
            at = spec + 8 * SPEC * f
            a, b, c, d = word(tag, at + 8), word(tag, at + 16), word(tag, at + 24), word(tag, at + 32)
            if d > 1:
                _unpack(tag, sums, a * d, b, c, word(tag, at + 40), table)
                sums += packed_size(tag, a * d, b, c, d)
