"""Gradient of the blocks of one factor: w[i d + k, j, l] = sum over rows of grad[row, (i, j, k)] x[row, (i, l, k)].

Few blocks do not fill a device, so the rows are split: part s of the result is the sum over the rows of split s, in
float32, and the parts are added afterwards in a fixed order. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

from typing import no_type_check

from .language import jit, tl


@jit
@no_type_check
def _add(a, b):
    return a + b


@jit
@no_type_check
def flat(
    x,
    grad,
    w,
    rows,
    per_split,  # rows of one split
    blocks,
    b,
    c,
    d,
    x_row,
    x_col,
    grad_row,
    grad_col,
    w_split,
    w_block,
    w_out,
    w_in,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    DK: tl.constexpr,  # not used: all ways to cut take the same arguments
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
):
    """One block at a time, a sum of products of 2-D tiles."""
    pid = tl.program_id(0)
    tiles_c, tiles_b = (c + BC - 1) // BC, (b + BN - 1) // BN
    m = pid % tiles_c * BC + tl.arange(0, BC)
    j = pid // tiles_c % tiles_b * BN + tl.arange(0, BN)
    q = pid // (tiles_c * tiles_b) % blocks
    split = (pid // (tiles_c * tiles_b * blocks)).to(tl.int64)
    x += (q // d * c * d + q % d).to(tl.int64) * x_col + (m * d).to(tl.int64)[None, :] * x_col
    grad += (q // d * b * d + q % d).to(tl.int64) * grad_col + (j * d).to(tl.int64)[:, None] * grad_col
    end = tl.minimum((split + 1) * per_split, rows)
    acc = tl.full([BN, BC], 0.0, tl.float32)
    for start in range(split * per_split, end, BM):
        row = (start + tl.arange(0, BM)).to(tl.int64)
        xs = tl.load(x + row[:, None] * x_row, mask=(row < end)[:, None] & (m < c)[None, :], other=0.0)
        gs = tl.load(grad + row[None, :] * grad_row, mask=(j < b)[:, None] & (row < end)[None, :], other=0.0)
        if UP:
            xs, gs = xs.to(tl.float32), gs.to(tl.float32)
        acc = tl.dot(gs, xs, acc, input_precision=PRECISION)
    at = split * w_split + q.to(tl.int64) * w_block + j[:, None] * w_out + m[None, :] * w_in
    tl.store(w + at, acc.to(w.dtype.element_ty), mask=(j < b)[:, None] & (m < c)[None, :])


@jit
@no_type_check
def deep(
    x,
    grad,
    w,
    rows,
    per_split,
    blocks,
    b,
    c,
    d,
    x_row,
    x_col,
    grad_row,
    grad_col,
    w_split,
    w_block,
    w_out,
    w_in,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    DK: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
):
    """DK neighbouring blocks (same i, next k) at a time, so that memory is read in runs of DK where x_col = 1."""
    pid = tl.program_id(0)
    tiles_c, tiles_b, depths = (c + BC - 1) // BC, (b + BN - 1) // BN, (d + DK - 1) // DK
    m = pid % tiles_c * BC + tl.arange(0, BC)
    j = pid // tiles_c % tiles_b * BN + tl.arange(0, BN)
    k = pid // (tiles_c * tiles_b) % depths * DK + tl.arange(0, DK)
    i = pid // (tiles_c * tiles_b * depths) % (blocks // d)
    split = (pid // (tiles_c * tiles_b * depths * (blocks // d))).to(tl.int64)
    x += ((i * c + m)[None, :, None] * d + k[None, None, :]).to(tl.int64) * x_col
    grad += ((i * b + j)[None, :, None] * d + k[None, None, :]).to(tl.int64) * grad_col
    end = tl.minimum((split + 1) * per_split, rows)
    acc = tl.full([DK, BN, BC], 0.0, tl.float32)
    for start in range(split * per_split, end, BM):
        row = (start + tl.arange(0, BM)).to(tl.int64)
        inside = (row < end)[:, None, None] & (k < d)[None, None, :]
        xs = tl.load(x + row[:, None, None] * x_row, mask=inside & (m < c)[None, :, None], other=0.0)
        gs = tl.load(grad + row[:, None, None] * grad_row, mask=inside & (j < b)[None, :, None], other=0.0)
        if UP:
            xs, gs = xs.to(tl.float32), gs.to(tl.float32)
        acc = tl.dot(tl.permute(gs, (2, 1, 0)), tl.permute(xs, (2, 0, 1)), acc, input_precision=PRECISION)
    at = split * w_split + (i * d + k).to(tl.int64)[:, None, None] * w_block
    at += j[None, :, None] * w_out + m[None, None, :] * w_in
    inside = (k < d)[:, None, None] & (j < b)[None, :, None] & (m < c)[None, None, :]
    tl.store(w + at, acc.to(w.dtype.element_ty), mask=inside)


@jit
@no_type_check
def tiny(
    x,
    grad,
    w,
    rows,
    per_split,
    blocks,
    b,
    c,
    d,
    x_row,
    x_col,
    grad_row,
    grad_col,
    w_split,
    w_block,
    w_out,
    w_in,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,  # not used: a program computes one column of its blocks
    DK: tl.constexpr,
    PRECISION: tl.constexpr,  # not used, no dot
    UP: tl.constexpr,
):
    """One column of DK blocks at a time by ordinary arithmetic, BM partial sums side by side."""
    pid = tl.program_id(0)
    tiles_b, depths = (b + BN - 1) // BN, (blocks + DK - 1) // DK
    m = pid % c
    j = pid // c % tiles_b * BN + tl.arange(0, BN)
    q = pid // (c * tiles_b) % depths * DK + tl.arange(0, DK)
    split = (pid // (c * tiles_b * depths)).to(tl.int64)
    x += ((q // d * c + m) * d + q % d).to(tl.int64)[None, None, :] * x_col
    grad += ((q // d * b * d + q % d)[None, None, :] + (j * d)[None, :, None]).to(tl.int64) * grad_col
    end = tl.minimum((split + 1) * per_split, rows)
    acc = tl.full([BM, BN, DK], 0.0, tl.float32)
    for start in range(split * per_split, end, BM):
        row = (start + tl.arange(0, BM)).to(tl.int64)[:, None, None]
        inside = (row < end) & (q < blocks)[None, None, :]
        xs = tl.load(x + row * x_row, mask=inside, other=0.0).to(tl.float32)
        acc += xs * tl.load(grad + row * grad_row, mask=inside & (j < b)[None, :, None], other=0.0).to(tl.float32)
    at = split * w_split + q.to(tl.int64)[None, :] * w_block + j[:, None] * w_out + m * w_in
    tl.store(w + at, tl.reduce(acc, 0, _add).to(w.dtype.element_ty), mask=(j < b)[:, None] & (q < blocks)[None, :])
