"""How tiles of a batch are read from tensors and written back, transposed on the way unless vectors are columns."""

from __future__ import annotations

from typing import no_type_check

from .simd import compiled
from .tiles import (
    clear_row,
    copy_real,
    join_planes,
    lanes,
    part_planes,
    planes,
    put_word,
    real_bytes,
    row_bytes,
    turn_in,
    turn_out,
    word,
)


@compiled
@no_type_check
def fill(tag, x, pitch, last, n, start, rows, tile, table, zeros):
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
def drain(tag, tile, y, pitch, last, m, start, rows, table, dump):
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
def clear(tag, address, size):
    """Fill memory with zeros, up to a whole word."""
    for k in range(0, size, 8):
        put_word(tag, address + k, 0)
