"""Sheets: panels side by side and one below the other, as many as a block and some rows of the batch ask for."""

from __future__ import annotations

from typing import no_type_check

from .panels import (
    paired11,
    paired14,
    paired18,
    paired21,
    paired24,
    paired28,
    shared11,
    shared12,
    shared14,
    shared41,
    shared42,
    shared44,
)
from .simd import compiled

DEEP, DEEP_PAIRED = 64, 32
"""Inputs that are summed at a time: the weights of a strip of panels, 16 KiB, stay in the first cache."""


@compiled
@no_type_check
def strip_of(vectors, v):
    """The first vector and the width of the strip of `shared_sheet` with vector v."""
    start = v - v % 4
    left = vectors - start
    if left >= 4:
        return start, 4
    if left >= 2 and v < start + 2:
        return start, 2
    return v, 1


@compiled
@no_type_check
def shared_sheet(tag, strips, more, x, xr, xk, w, wk, wv, y, yr, yv, rows, inputs, vectors):
    """A panel of any size, with entries of x that are the same for all lanes; it adds to y if `more`.

    With `strips` the weights of each strip, see `strip_of`, lie one after the other as they are read; wk is not used.
    """
    v = 0
    while v < vectors:
        wide = 4 if vectors - v >= 4 else 2 if vectors - v >= 2 else 1
        strip = w + v * wv
        if strips:
            strip, wk = w + v * inputs * wv, wide * wv
        for k in range(0, inputs, DEEP):
            count = min(DEEP, inputs - k)
            xs, ws, ys = x + k * xk, strip + k * wk, y + v * yv
            r = 0
            while r < rows:
                high = 4 if rows - r >= 4 else 1
                if high == 4:
                    if wide == 4:
                        shared44(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                    elif wide == 2:
                        shared42(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                    else:
                        shared41(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                elif wide == 4:
                    shared14(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                elif wide == 2:
                    shared12(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                else:
                    shared11(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                xs += high * xr
                ys += high * yr
                r += high
        v += wide


@compiled
@no_type_check
def paired_sheet(tag, more, x, xr, xk, w, wk, wv, y, yr, yv, rows, inputs, vectors):
    """A panel of any size, with vectors as entries of x; it adds to y if `more`."""
    v = 0
    while v < vectors:
        wide = 8 if vectors - v >= 8 else 4 if vectors - v >= 4 else 1
        for k in range(0, inputs, DEEP_PAIRED):
            count = min(DEEP_PAIRED, inputs - k)
            xs, ws, ys = x + k * xk, w + k * wk + v * wv, y + v * yv
            r = 0
            while r < rows:
                high = 2 if rows - r >= 2 else 1
                if high == 2:
                    if wide == 8:
                        paired28(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                    elif wide == 4:
                        paired24(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                    else:
                        paired21(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                elif wide == 8:
                    paired18(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                elif wide == 4:
                    paired14(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                else:
                    paired11(tag, k + more, xs, xr, xk, ws, wk, wv, ys, yr, yv, count)
                xs += high * xr
                ys += high * yr
                r += high
        v += wide
