"""How tiles of a batch are read from tensors and written back, transposed on the way unless vectors are columns."""

from __future__ import annotations

from typing import no_type_check

from .simd import compiled
from .tiles import (
    clear_row,
    copy_real,
    item_bytes,
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
def fill(tag, x, pitch, last, n, start, rows, tile, count, next_tile, table, zeros):
    """Read `count` tiles, `next_tile` bytes apart: vectors start, start + 1, ... < rows, then what `zeros` holds."""
    row, width = row_bytes(tag), row_bytes(tag) // item_bytes(tag)
    if last:
        # tiles side by side share pages, and are far more than a line: row by row through all of them
        whole = min(count, (rows - start) // width)
        for k in range(n):
            source, target = x + k * pitch + start * item_bytes(tag), tile + k * row
            for _ in range(whole):
                part_planes(tag, source, target)
                source += row
                target += next_tile
            if whole < count:
                _part_some(tag, source, target, rows - start - whole * width)
        return
    for t in range(count):
        _turn_in(tag, x, pitch, n, start + t * width, rows, tile + t * next_tile, table, zeros)


@compiled
@no_type_check
def drain(tag, tile, y, pitch, last, m, start, rows, count, next_tile, table, dump):
    """Write `count` tiles: vectors start, start + 1, ... < rows; the others go to a dump."""
    row, width = row_bytes(tag), row_bytes(tag) // item_bytes(tag)
    if last:
        whole = min(count, (rows - start) // width)
        for k in range(m):
            source, target = tile + k * row, y + k * pitch + start * item_bytes(tag)
            for _ in range(whole):
                join_planes(tag, source, target)
                source += next_tile
                target += row
            if whole < count:
                _join_some(tag, source, target, rows - start - whole * width)
        return
    for t in range(count):
        _turn_out(tag, tile + t * next_tile, y, pitch, m, start + t * width, rows, table, dump)


@compiled
@no_type_check
def _part_some(tag, source, target, valid):
    """A row of a batch-last tensor that is shorter than a tile; zeros follow."""
    real, parts = real_bytes(tag), planes(tag)
    clear_row(tag, target)
    for r in range(valid):
        for p in range(parts):
            copy_real(tag, source + (r * parts + p) * real, target + p * (row_bytes(tag) // parts) + r * real)


@compiled
@no_type_check
def _join_some(tag, source, target, valid):
    """The first numbers of a row of a tile, into a batch-last tensor."""
    real, parts = real_bytes(tag), planes(tag)
    for r in range(valid):
        for p in range(parts):
            copy_real(tag, source + p * (row_bytes(tag) // parts) + r * real, target + (r * parts + p) * real)


@compiled
@no_type_check
def _turn_in(tag, x, pitch, n, start, rows, tile, table, zeros):
    """Read a tile of a batch-first tensor."""
    plane = row_bytes(tag) // planes(tag)
    valid = min(lanes(tag), rows - start)
    for r in range(lanes(tag)):
        put_word(tag, table + 8 * r, x + (start + r) * pitch if r < valid else zeros)
    # seen as real numbers, a complex matrix turns into rows of real and rows of imaginary parts
    turn_rows(tag, table, n * planes(tag), tile, plane)


@compiled
@no_type_check
def _turn_out(tag, tile, y, pitch, m, start, rows, table, dump):
    """Write a tile of a batch-first tensor."""
    plane = row_bytes(tag) // planes(tag)
    valid = min(lanes(tag), rows - start)
    for r in range(lanes(tag)):
        put_word(tag, table + 8 * r, y + (start + r) * pitch if r < valid else dump)
    turn_back(tag, tile, plane, m * planes(tag), table)


@compiled
@no_type_check
def turn_rows(tag, table, numbers, target, pitch):
    """Transpose rows of so many real numbers, at the addresses in a table, into vectors `pitch` bytes apart."""
    real, step = real_bytes(tag), lanes(tag)
    for k in range(0, numbers - step + 1, step):
        turn_in(tag, table, k * real, target + k * pitch, pitch)
    if numbers >= step:
        k = numbers - step
        if numbers % step:
            turn_in(tag, table, k * real, target + k * pitch, pitch)
    else:
        for k in range(numbers):
            for r in range(step):
                copy_real(tag, word(tag, table + 8 * r) + k * real, target + k * pitch + r * real)


@compiled
@no_type_check
def turn_back(tag, source, pitch, numbers, table):
    """Transpose so many vectors, `pitch` bytes apart, into rows at the addresses in a table."""
    real, step = real_bytes(tag), lanes(tag)
    for k in range(0, numbers - step + 1, step):
        turn_out(tag, source + k * pitch, pitch, table, k * real)
    if numbers >= step:
        k = numbers - step
        if numbers % step:
            turn_out(tag, source + k * pitch, pitch, table, k * real)
    else:
        for k in range(numbers):
            for r in range(step):
                copy_real(tag, source + k * pitch + r * real, word(tag, table + 8 * r) + k * real)


@compiled
@no_type_check
def clear(tag, address, size):
    """Fill memory with zeros, up to a whole word."""
    for k in range(0, size, 8):
        put_word(tag, address + k, 0)
