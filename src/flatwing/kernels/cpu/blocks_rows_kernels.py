"""Compiled kernels for general blocks whose vectors stay rows: nothing is transposed but weights, once per call.

The numbers of a machine vector are neighbours in a row of the batch: outputs of one block where d = 1 (an input is the
same for all of them), and the same output of neighbouring blocks else (each has inputs of its own). So the inputs of a
factor are read where the factor before it wrote them, and x and y are where they are. For real numbers, and factors
with d = 1 and whole vectors of outputs, or with whole vectors of d.

Weights are packed as such vectors: in the strips of `shared_sheet`, inputs one after the other, where d = 1; and else,
for each vector of d, b rows of c vectors. A row is one vector longer than it need be: a cache holds few lines whose
addresses differ by a power of two.
"""

from __future__ import annotations

from typing import no_type_check

from .blocks_kernels import SPEC
from .blocks_memory import turn_rows
from .panels_sheets import paired_sheet, shared_sheet, strip_of
from .simd import compiled
from .tiles import lanes, put_word, real_bytes, row_bytes, word


@compiled
@no_type_check
def packed_size(tag, blocks, b, c, d):
    """Bytes of the packed weights of one factor."""
    return blocks * b * (c if d == 1 else c + 1) * real_bytes(tag)


@compiled
@no_type_check
def pack(tag, spec, factors, packed, table):
    """Write the weights of all factors as vectors; `table` is memory for an address for each lane."""
    step, row, real = lanes(tag), row_bytes(tag), real_bytes(tag)
    for f in range(factors):
        at = spec + 8 * SPEC * f
        w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
        c, d = word(tag, at + 24), word(tag, at + 32)
        # rows of weights that become lanes: those of one block, or the same row of neighbouring blocks
        apart = c * real if d == 1 else b * c * real
        for block in range(0, a * d, 1 if d == 1 else step):
            for j in range(0, b, step if d == 1 else 1):
                for lane in range(step):
                    put_word(tag, table + 8 * lane, w + (block * b + j) * c * real + lane * apart)
                if d == 1:
                    start, wide = strip_of(b // step, j // step)
                    first = block * b * c * real + (start * c + j // step - start) * row
                    turn_rows(tag, table, c, packed + first, wide * row)
                else:
                    turn_rows(tag, table, c, packed + block * b * (c + 1) * real + j * (c + 1) * row, row)
        packed += packed_size(tag, a * d, b, c, d)


@compiled
@no_type_check
def factor_rows(tag, w, a, b, c, d, x, x_pitch, y, y_pitch, rows):
    """One packed factor times some rows."""
    step, row, real = lanes(tag), row_bytes(tag), real_bytes(tag)
    far, side = d * real, (c + 1) * row
    for i in range(a):
        xs, ys = x + i * c * far, y + i * b * far
        if d == 1:
            shared_sheet(tag, True, 0, xs, x_pitch, real, w, 0, row, ys, y_pitch, row, rows, c, b // step)
            w += b * c * real
            continue
        for _ in range(0, d, step):
            paired_sheet(tag, 0, xs, x_pitch, far, w, row, side, ys, y_pitch, far, rows, c, b)
            w += b * side
            xs += row
            ys += row


@compiled
@no_type_check
def forward_rows(tag, spec, factors, packed, x, x_pitch, y, y_pitch, start, stop, tile, this, other, pitch):
    """Rows start ... stop - 1 of x through all factors into y, `tile` rows at a time.

    Memory: `packed` holds the weights, `this` and `other` a tile of the longest intermediate result, with `pitch` bytes
    from row to row.
    """
    for begin in range(start, stop, tile):
        rows = min(tile, stop - begin)
        source, source_pitch, w = x + begin * x_pitch, x_pitch, packed
        for f in range(factors):
            at = spec + 8 * SPEC * f
            a, b, c, d = word(tag, at + 8), word(tag, at + 16), word(tag, at + 24), word(tag, at + 32)
            target, target_pitch = (this, pitch) if f + 1 < factors else (y + begin * y_pitch, y_pitch)
            factor_rows(tag, w, a, b, c, d, source, source_pitch, target, target_pitch, rows)
            w += packed_size(tag, a * d, b, c, d)
            source, source_pitch = target, target_pitch
            this, other = other, this
