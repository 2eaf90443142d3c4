"""Two neighbouring factors in one launch; what stands between them never leaves the chip.

For each (i, k) outside: h[row, u, g] = sum over p of first[u, g, p] x[row, block of u, p], then y[row, g, s] = sum over
u of second[g, s, u] h[row, u, g]. Which index of a factor plays which part is said by strides only (see `geometry`), so
one kernel serves a pair of factors and the transposed pair, which gives the gradient of the input.
"""

from __future__ import annotations

from typing import no_type_check

from .language import jit, tl


@jit
@no_type_check
def pair(
    x,
    first,
    second,
    y,
    rows,
    depth,  # sizes: indices k outside, inputs p, middle u = (block, t) in some order, groups g, outputs s
    outer,
    inputs,
    middle,
    groups,
    outputs,
    block_div,  # block = u // block_div % block_mod, t = u // t_div % t_mod
    block_mod,
    t_div,
    t_mod,
    x_row,
    x_i,
    x_k,
    x_block,
    x_p,
    first_i,
    first_k,
    first_block,
    first_t,
    first_g,
    first_p,
    second_i,
    second_k,
    second_g,
    second_s,
    second_u,
    y_row,
    y_i,
    y_k,
    y_g,
    y_s,
    BM: tl.constexpr,
    BU: tl.constexpr,  # all of the middle, rounded up to a power of two
    BG: tl.constexpr,
    BP: tl.constexpr,
    BS: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
):
    """Rows x group tile: h by a dot batched over u, turned on the chip, y by a dot batched over g."""
    pid = tl.program_id(0)
    tiles = (groups + BG - 1) // BG  # fastest, so that programs that read the same x run together
    o = pid // tiles % outer
    i, k = (o // depth).to(tl.int64), (o % depth).to(tl.int64)
    row = (pid // (tiles * outer)).to(tl.int64) * BM + tl.arange(0, BM)
    g = pid % tiles * BG + tl.arange(0, BG)
    u = tl.arange(0, BU)
    block, t = (u // block_div % block_mod).to(tl.int64), u // t_div % t_mod
    x += i * x_i + k * x_k + block[:, None, None] * x_block + row[None, :, None] * x_row
    first += i * first_i + k * first_k + block[:, None, None] * first_block + t[:, None, None] * first_t
    first += g[None, None, :] * first_g
    second += i * second_i + k * second_k + g.to(tl.int64)[:, None, None] * second_g + u[None, :, None] * second_u
    y += i * y_i + k * y_k + g.to(tl.int64)[None, None, :] * y_g + row[:, None, None] * y_row

    h = tl.full([BU, BM, BG], 0.0, tl.float32)
    for start in range(0, inputs, BP):
        p = start + tl.arange(0, BP)
        inside = (u < middle)[:, None, None] & (row < rows)[None, :, None] & (p < inputs)[None, None, :]
        xs = tl.load(x + p.to(tl.int64)[None, None, :] * x_p, mask=inside, other=0.0)
        inside = (u < middle)[:, None, None] & (p < inputs)[None, :, None] & (g < groups)[None, None, :]
        ws = tl.load(first + p[None, :, None] * first_p, mask=inside, other=0.0)
        if UP:
            xs, ws = xs.to(tl.float32), ws.to(tl.float32)
        h = tl.dot(xs, ws, h, input_precision=PRECISION)

    h = h.to(y.dtype.element_ty)
    if UP:
        h = h.to(tl.float32)
    h = tl.permute(h, (2, 1, 0))
    for start in range(0, outputs, BS):
        s = start + tl.arange(0, BS)
        inside = (g < groups)[:, None, None] & (u < middle)[None, :, None] & (s < outputs)[None, None, :]
        ws = tl.load(second + s[None, None, :] * second_s, mask=inside, other=0.0)
        if UP:
            ws = ws.to(tl.float32)
        ys = tl.permute(tl.dot(h, ws, input_precision=PRECISION).to(y.dtype.element_ty), (1, 2, 0))
        inside = (row < rows)[:, None, None] & (s < outputs)[None, :, None] & (g < groups)[None, None, :]
        tl.store(y + s.to(tl.int64)[None, :, None] * y_s, ys, mask=inside)
