"""One factor times tiles of a batch."""

from __future__ import annotations

from typing import no_type_check

from .simd import compiled
from .tiles import (
    copy_real,
    copy_row,
    item_bytes,
    lanes,
    planes,
    real_bytes,
    row_bytes,
)
from .tiles_math import (
    columns1,
    columns4,
    dots1,
    dots8,
    product1,
    product2,
    product3,
    product4,
    product5,
    product6,
    product7,
    product8,
    square2,
    square4,
)


@compiled
@no_type_check
def _block(tag, conj, w, wj, wk, x, xk, y, yj, outputs, inputs):
    """One block times a tile: at most eight outputs at a time."""
    weights = 8 * wj * item_bytes(tag)
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
def few_suits(tag, few, b, c):
    """Whether `apply_few` takes such blocks, and is faster."""
    return few > 0 and b >= 16 and c * planes(tag) >= 4 * lanes(tag) and c * planes(tag) % lanes(tag) == 0


@compiled
@no_type_check
def apply_few(tag, w, a, b, c, d, x, y, line, few):
    """One factor times the first `few` vectors of a tile: weights are read as vectors, which need not be broadcast.

    For blocks with whole vectors of inputs; `line` is memory for the inputs of a block. y is not x.
    """
    row, real, item = row_bytes(tag), real_bytes(tag), item_bytes(tag)
    parts = planes(tag)
    for i in range(a):
        for k in range(d):
            for r in range(few):
                source = x + (i * c * d + k) * row + r * real
                target = y + (i * b * d + k) * row + r * real
                for j in range(c):
                    for p in range(parts):
                        copy_real(tag, source + p * (row // parts), line + j * item + p * real)
                    source += d * row
                j = 0
                while j < b:
                    if b - j >= 8:
                        dots8(tag, w + j * c * item, c, line, target, d * row, c)
                        target += 8 * d * row
                        j += 8
                    else:
                        dots1(tag, w + j * c * item, c, line, target, d * row, c)
                        target += d * row
                        j += 1
            w += b * c * item


@compiled
@no_type_check
def apply_few_back(tag, w, a, b, c, d, g, y, line, few):
    """The transpose of one factor times the first `few` vectors of a tile: the same for real numbers. y is not g."""
    row, real, step = row_bytes(tag), real_bytes(tag), lanes(tag)
    for i in range(a):
        for k in range(d):
            for r in range(0, few * real, real):
                source, target = g + (i * b * d + k) * row + r, y + (i * c * d + k) * row + r
                j = 0
                while j < c:
                    if c - j >= 4 * step:
                        columns4(tag, source, d, w + j * real, c, line + j * real, b)
                        j += 4 * step
                    else:
                        columns1(tag, source, d, w + j * real, c, line + j * real, b)
                        j += step
                for j in range(c):
                    copy_real(tag, line + j * real, target + j * d * row)
            w += b * c * real


@compiled
@no_type_check
def run_of(b, c, d, next_b, next_c, next_d):
    """How many outputs of a block are evenly spaced once the next factor's inputs are packed; 0 if not worth it.

    Packed means that the inputs of each block lie side by side. That pays for blocks that read them several times.
    """
    if next_b <= 8 or next_d == 1 or next_d % d:
        return 0
    run = min(b, next_d // d)
    return 0 if b % run or (next_d // d) % run or (run < 8 and run < b) else run


@compiled
@no_type_check
def apply(tag, conj, w, wj, wk, a, b, c, d, x, packed, y, run, next_c, next_d, gathered, count, pitch):
    """One factor times `count` tiles, `pitch` bytes apart; returns nothing.

    y may be x where b = c <= 8. Inputs are `packed` or in natural order; with `run` > 0 outputs are packed for a next
    factor with blocks of `next_c` inputs and depth `next_d`, and `run` of them are evenly spaced.
    """
    row = row_bytes(tag)
    size = b * c * item_bytes(tag)
    if b == c and (b == 2 or b == 4) and run == 0 and count == 1:
        for i in range(a):
            for k in range(i * b * d, i * b * d + d):
                if b == 2:
                    square2(tag, conj, w, wj, wk, x + k * row, d, y + k * row, d)
                else:
                    square4(tag, conj, w, wj, wk, x + k * row, d, y + k * row, d)
                w += size
        return
    gather = b > 8 and d > 1 and not packed
    side_by_side = packed or gather
    for i in range(a):
        for k in range(d):
            source = x + ((i * d + k) * c if packed else i * c * d + k) * row
            target = y + (i * b * d + k) * row
            for _ in range(count):
                inputs = source
                if gather:
                    for j in range(c):
                        copy_row(tag, source + j * d * row, gathered + j * row)
                    inputs = gathered
                step = 1 if side_by_side else d
                if run == 0:
                    _block(tag, conj, w, wj, wk, inputs, step, target, d, b, c)
                else:
                    for j in range(0, b, run):
                        place = (i * b + j) * d + k
                        block, side = place // next_d, place % next_d
                        place = (block // next_c * next_d + side) * next_c + block % next_c
                        at = w + j * wj * item_bytes(tag)
                        spot = target - (i * b * d + k) * row + place * row
                        _block(tag, conj, at, wj, wk, inputs, step, spot, d * next_c, run, c)
                source += pitch
                target += pitch
            w += size
