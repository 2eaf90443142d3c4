"""Gradients of the values of two neighbouring factors in one pass; what stands between them never leaves the chip.

Names as in `pair`. For each (i, k) outside and each tile of groups, h and its gradient dh[row, g, u] = sum over s of
second[g, s, u] grad[row, g, s] are computed again from x and grad, and then second gets the sum over rows of
grad[row, g, s] h[row, u, g], first that of dh[row, g, u] x[row, block of u, p]. For a fixed g both are complete: only
x and grad are read. Sums that the registers cannot hold are cut along p and s; each cut computes h and dh once more,
from what is in the cache. The rows are split as in `weights`, with the same promise: no atomics, always the same bits.
"""

from __future__ import annotations

from typing import no_type_check

from .language import jit, tl


@jit
@no_type_check
def pair_weights(
    x,
    grad,
    first,
    second,
    first_grad,
    second_grad,
    rows,
    per_split,  # rows of one split
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
    grad_row,
    grad_i,
    grad_k,
    grad_g,
    grad_s,
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
    first_grad_split,
    first_grad_i,
    first_grad_k,
    first_grad_block,
    first_grad_t,
    first_grad_g,
    first_grad_p,
    second_grad_split,
    second_grad_i,
    second_grad_k,
    second_grad_g,
    second_grad_s,
    second_grad_u,
    BM: tl.constexpr,
    BU: tl.constexpr,  # all of the middle, rounded up to a power of two
    BG: tl.constexpr,
    BP: tl.constexpr,
    BS: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
):
    """One group tile, one cut, one split of the rows: four batched dots for every BM rows."""
    narrow = x.dtype.element_ty  # what stands between factors is rounded as if it were written
    pid = tl.program_id(0)
    tiles = (groups + BG - 1) // BG  # fastest, then cuts: programs that read the same x and grad run together
    cuts = tl.maximum((inputs + BP - 1) // BP, (outputs + BS - 1) // BS)
    o = pid // (tiles * cuts) % outer
    i, k = (o // depth).to(tl.int64), (o % depth).to(tl.int64)
    split = (pid // (tiles * cuts * outer)).to(tl.int64)
    cut = pid // tiles % cuts
    g = pid % tiles * BG + tl.arange(0, BG)
    u = tl.arange(0, BU)
    own_p, own_s = cut * BP + tl.arange(0, BP), cut * BS + tl.arange(0, BS)
    block, t, far_g = (u // block_div % block_mod).to(tl.int64), u // t_div % t_mod, g.to(tl.int64)
    has_u, has_g = u < middle, g < groups
    x += i * x_i + k * x_k + block[:, None, None] * x_block
    grad += i * grad_i + k * grad_k + far_g[:, None, None] * grad_g
    first += i * first_i + k * first_k + g[None, None, :] * first_g
    first += block[:, None, None] * first_block + t[:, None, None] * first_t
    second += i * second_i + k * second_k + far_g[:, None, None] * second_g + u[None, None, :] * second_u

    first_sum = tl.full([BU, BP, BG], 0.0, tl.float32)
    second_sum = tl.full([BG, BS, BU], 0.0, tl.float32)
    end = tl.minimum((split + 1) * per_split, rows)
    for start in range(split * per_split, end, BM):
        row = (start + tl.arange(0, BM)).to(tl.int64)
        has_row = row < end
        h = tl.full([BU, BM, BG], 0.0, tl.float32)
        for at in range(0, inputs, BP):
            p = at + tl.arange(0, BP)
            inside = has_u[:, None, None] & has_row[None, :, None] & (p < inputs)[None, None, :]
            at_x = x + p.to(tl.int64)[None, None, :] * x_p
            xs = tl.load(at_x + row[None, :, None] * x_row, mask=inside, other=0.0)
            inside = has_u[:, None, None] & (p < inputs)[None, :, None] & has_g[None, None, :]
            ws = tl.load(first + p[None, :, None] * first_p, mask=inside, other=0.0)
            if UP:
                xs, ws = xs.to(tl.float32), ws.to(tl.float32)
            h = tl.dot(xs, ws, h, input_precision=PRECISION)
        h = h.to(narrow)

        here = has_g[:, None, None] & (own_s < outputs)[None, :, None] & has_row[None, None, :]
        my_grad = grad + own_s.to(tl.int64)[None, :, None] * grad_s
        own_grad = tl.load(my_grad + row[None, None, :] * grad_row, mask=here, other=0.0)
        if UP:
            own_grad, h = own_grad.to(tl.float32), h.to(tl.float32)
        second_sum = tl.dot(own_grad, tl.permute(h, (2, 1, 0)), second_sum, input_precision=PRECISION)

        dh = tl.full([BG, BM, BU], 0.0, tl.float32)
        for at in range(0, outputs, BS):
            s = at + tl.arange(0, BS)
            inside = has_g[:, None, None] & has_row[None, :, None] & (s < outputs)[None, None, :]
            at_grad = grad + s.to(tl.int64)[None, None, :] * grad_s
            gs = tl.load(at_grad + row[None, :, None] * grad_row, mask=inside, other=0.0)
            inside = has_g[:, None, None] & (s < outputs)[None, :, None] & has_u[None, None, :]
            ws = tl.load(second + s[None, :, None] * second_s, mask=inside, other=0.0)
            if UP:
                gs, ws = gs.to(tl.float32), ws.to(tl.float32)
            dh = tl.dot(gs, ws, dh, input_precision=PRECISION)
        dh = dh.to(narrow)

        there = has_u[:, None, None] & (own_p < inputs)[None, :, None] & has_row[None, None, :]
        my_x = x + own_p.to(tl.int64)[None, :, None] * x_p
        own_x = tl.load(my_x + row[None, None, :] * x_row, mask=there, other=0.0)
        if UP:
            own_x, dh = own_x.to(tl.float32), dh.to(tl.float32)
        first_sum = tl.dot(own_x, tl.permute(dh, (2, 1, 0)), first_sum, input_precision=PRECISION)

    to = split * first_grad_split + i * first_grad_i + k * first_grad_k + own_p[None, :, None] * first_grad_p
    to += block[:, None, None] * first_grad_block + t[:, None, None] * first_grad_t + g[None, None, :] * first_grad_g
    inside = has_u[:, None, None] & (own_p < inputs)[None, :, None] & has_g[None, None, :]
    tl.store(first_grad + to, first_sum.to(first_grad.dtype.element_ty), mask=inside)
    to = split * second_grad_split + i * second_grad_i + k * second_grad_k + own_s[None, :, None] * second_grad_s
    to += far_g[:, None, None] * second_grad_g + u[None, None, :] * second_grad_u
    inside = has_g[:, None, None] & (own_s < outputs)[None, :, None] & has_u[None, None, :]
    tl.store(second_grad + to, second_sum.to(second_grad.dtype.element_ty), mask=inside)
