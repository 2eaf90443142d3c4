"""One factor times a batch: y[row, (i, j, k)] = sum over l of w[i d + k, j, l] x[row, (i, l, k)].

Three ways to cut the work, all with the same arguments and any strides. With the blocks transposed (strides swapped)
the same kernels give the gradient of the input. `no_type_check`: this is device code, no Python type applies to it.
"""

from __future__ import annotations

from typing import no_type_check

from .language import jit, tl


@jit
@no_type_check
def flat(
    x,
    w,
    y,
    rows,
    blocks,
    b,
    c,
    d,
    x_row,
    x_col,
    w_block,
    w_out,
    w_in,
    y_row,
    y_col,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    DK: tl.constexpr,  # not used: all ways to cut take the same arguments
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
):
    """One block at a time as a matrix product of 2-D tiles: contiguous if d = 1 or if x_row = 1."""
    pid = tl.program_id(0)
    tiles = (b + BN - 1) // BN
    q = pid // tiles % blocks
    i, k = q // d, q % d
    row = (pid // (tiles * blocks)).to(tl.int64) * BM + tl.arange(0, BM)
    j = pid % tiles * BN + tl.arange(0, BN)
    x += (i * c * d + k).to(tl.int64) * x_col
    y += (i * b * d + k).to(tl.int64) * y_col
    w += q.to(tl.int64) * w_block
    acc = tl.full([BM, BN], 0.0, tl.float32)
    for start in range(0, c, BC):
        m = start + tl.arange(0, BC)
        inside = (row < rows)[:, None] & (m < c)[None, :]
        xs = tl.load(x + row[:, None] * x_row + (m * d).to(tl.int64)[None, :] * x_col, mask=inside, other=0.0)
        inside = (m < c)[:, None] & (j < b)[None, :]
        ws = tl.load(w + m[:, None] * w_in + j[None, :] * w_out, mask=inside, other=0.0)
        if UP:
            xs, ws = xs.to(tl.float32), ws.to(tl.float32)
        acc = tl.dot(xs, ws, acc, input_precision=PRECISION)
    at = row[:, None] * y_row + (j * d).to(tl.int64)[None, :] * y_col
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=(row < rows)[:, None] & (j < b)[None, :])


@jit
@no_type_check
def deep(
    x,
    w,
    y,
    rows,
    blocks,
    b,
    c,
    d,
    x_row,
    x_col,
    w_block,
    w_out,
    w_in,
    y_row,
    y_col,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    DK: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
):
    """DK neighbouring blocks (same i, next k) at a time, so that memory is read in runs of DK where x_col = 1.

    The tile is turned on the chip, from (row, l, k) to (k, row, l), and the result back.
    """
    pid = tl.program_id(0)
    tiles, depths = (b + BN - 1) // BN, (d + DK - 1) // DK
    i = pid // (tiles * depths) % (blocks // d)
    row = (pid // (tiles * depths * (blocks // d))).to(tl.int64) * BM + tl.arange(0, BM)
    k = pid // tiles % depths * DK + tl.arange(0, DK)
    j = pid % tiles * BN + tl.arange(0, BN)
    x += (i * c * d).to(tl.int64) * x_col
    y += (i * b * d).to(tl.int64) * y_col
    w += (i * d).to(tl.int64) * w_block
    acc = tl.full([DK, BM, BN], 0.0, tl.float32)
    for start in range(0, c, BC):
        m = start + tl.arange(0, BC)
        at = row[:, None, None] * x_row + ((m * d)[None, :, None] + k[None, None, :]).to(tl.int64) * x_col
        inside = (row < rows)[:, None, None] & (m < c)[None, :, None] & (k < d)[None, None, :]
        xs = tl.permute(tl.load(x + at, mask=inside, other=0.0), (2, 0, 1))
        at = k.to(tl.int64)[:, None, None] * w_block + m[None, :, None] * w_in + j[None, None, :] * w_out
        inside = (k < d)[:, None, None] & (m < c)[None, :, None] & (j < b)[None, None, :]
        ws = tl.load(w + at, mask=inside, other=0.0)
        if UP:
            xs, ws = xs.to(tl.float32), ws.to(tl.float32)
        acc = tl.dot(xs, ws, acc, input_precision=PRECISION)
    at = row[:, None, None] * y_row + ((j * d)[None, :, None] + k[None, None, :]).to(tl.int64) * y_col
    inside = (row < rows)[:, None, None] & (j < b)[None, :, None] & (k < d)[None, None, :]
    tl.store(y + at, tl.permute(acc.to(y.dtype.element_ty), (1, 2, 0)), mask=inside)


@jit
@no_type_check
def tiny(
    x,
    w,
    y,
    rows,
    blocks,
    b,
    c,
    d,
    x_row,
    x_col,
    w_block,
    w_out,
    w_in,
    y_row,
    y_col,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,  # not used: the loop goes over single inputs
    DK: tl.constexpr,
    PRECISION: tl.constexpr,  # not used, no dot
    UP: tl.constexpr,
):
    """DK blocks at a time by ordinary arithmetic: on a tensor core, tiny blocks would be mostly padding."""
    pid = tl.program_id(0)
    tiles, depths = (b + BN - 1) // BN, (blocks + DK - 1) // DK
    row = (pid // (tiles * depths)).to(tl.int64) * BM + tl.arange(0, BM)
    q = pid // tiles % depths * DK + tl.arange(0, DK)
    j = pid % tiles * BN + tl.arange(0, BN)
    x += (q // d * c * d + q % d).to(tl.int64)[None, None, :] * x_col + row[:, None, None] * x_row
    y += (q // d * b * d + q % d).to(tl.int64)[None, None, :] * y_col + row[:, None, None] * y_row
    w += q.to(tl.int64)[None, None, :] * w_block + j[None, :, None] * w_out
    inside = (row < rows)[:, None, None] & (q < blocks)[None, None, :]
    has = (j < b)[None, :, None] & (q < blocks)[None, None, :]
    acc = tl.full([BM, BN, DK], 0.0, tl.float32)
    for m in range(c):
        xs = tl.load(x + (m * d).to(tl.int64) * x_col, mask=inside, other=0.0).to(tl.float32)
        acc += xs * tl.load(w + m * w_in, mask=has, other=0.0).to(tl.float32)
    at = (j * d).to(tl.int64)[None, :, None] * y_col
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=inside & (j < b)[None, :, None])
