"""Compiled drivers of dyadic butterflies: which pass is which code, and the way of a tile of rows through all of them.

Addresses are whole numbers; `item` is the size of an element, `t` a row of the table of passes (see `dyadic_passes`),
`lead` the distance of rows in elements. Compilation is per element type, which `kind` carries.
"""

from __future__ import annotations

from typing import no_type_check

from .dyadic_passes import ASCENDING, DESCENDING, FACTOR, KIND, OFFSET, RADIX_2, SORTED, STRIDE
from .dyadic_simd import (
    clear,
    fence,
    gather,
    lanes,
    lanes_back,
    pack_lanes,
    pack_radix_2,
    pack_radix_4,
    radix_2,
    radix_2_back,
    radix_4,
    radix_4_back,
    unpack_lanes,
    unpack_radix_2,
    unpack_radix_4,
)
from .simd import compiled

LINE = 64
BLOCK = 1024
"""Rows whose gradients of weights are summed one by one, before such sums are summed: rounding errors add up."""


@compiled
@no_type_check
def pack(kind, item, table, factors, packed, n, slots, flip):
    """Weights (a*d, 2, 2) at the given addresses, brought into the order in which the passes read them."""
    for i in range(table.shape[0]):
        t, p = table[i], packed + table[i, OFFSET] * item
        if t[KIND] <= DESCENDING:
            for slot in range(slots):
                number = t[FACTOR + slot]
                w = factors[number] if number >= 0 else 0
                pack_lanes(kind, w, slot, slots, t[STRIDE + slot], p, n, flip)
        elif t[KIND] == RADIX_2:
            pack_radix_2(kind, factors[t[FACTOR]], p, n, t[STRIDE], flip)
        else:
            w0, w1, s0, s1 = factors[t[FACTOR]], factors[t[FACTOR + 1]], t[STRIDE], t[STRIDE + 1]
            pack_radix_4(kind, w0, w1, p, n, s0, s1, t[SORTED], t[SORTED + 1], flip)


@compiled
@no_type_check
def unpack(kind, item, table, factors, packed, size, parts, n, slots):
    """The sum of the parts' packed gradients of weights, `size` bytes each, written as (a*d, 2, 2) to the addresses."""
    gather(kind, packed, size // item, parts)
    for i in range(table.shape[0]):
        t, p = table[i], packed + table[i, OFFSET] * item
        if t[KIND] <= DESCENDING:
            for slot in range(slots):
                number = t[FACTOR + slot]
                w = factors[number] if number >= 0 else 0
                unpack_lanes(kind, w, slot, slots, t[STRIDE + slot], p, n)
        elif t[KIND] == RADIX_2:
            unpack_radix_2(kind, factors[t[FACTOR]], p, n, t[STRIDE])
        else:
            w0, w1, s0, s1 = factors[t[FACTOR]], factors[t[FACTOR + 1]], t[STRIDE], t[STRIDE + 1]
            unpack_radix_4(kind, w0, w1, p, n, s0, s1, t[SORTED], t[SORTED + 1])


@compiled
@no_type_check
def _apply(kind, t, x, lead, y, lead_y, rows, p, n):
    if t[KIND] == ASCENDING:
        lanes(kind, x, lead, y, lead_y, rows, p, n, 0, 0)
    elif t[KIND] == DESCENDING:
        lanes(kind, x, lead, y, lead_y, rows, p, n, 1, 0)
    elif t[KIND] == RADIX_2:
        radix_2(kind, x, lead, y, lead_y, rows, p, n, t[STRIDE], 0)
    else:
        radix_4(kind, x, lead, y, lead_y, rows, p, n, t[STRIDE], t[STRIDE + 1], t[SORTED], t[SORTED + 1], 0)


@compiled
@no_type_check
def _apply_past_caches(kind, t, x, lead, y, lead_y, rows, p, n):
    if t[KIND] == ASCENDING:
        lanes(kind, x, lead, y, lead_y, rows, p, n, 0, 1)
    elif t[KIND] == DESCENDING:
        lanes(kind, x, lead, y, lead_y, rows, p, n, 1, 1)
    elif t[KIND] == RADIX_2:
        radix_2(kind, x, lead, y, lead_y, rows, p, n, t[STRIDE], 1)
    else:
        radix_4(kind, x, lead, y, lead_y, rows, p, n, t[STRIDE], t[STRIDE + 1], t[SORTED], t[SORTED + 1], 1)


@compiled
@no_type_check
def _apply_back(kind, t, x, lead, g, lead_g, out, lead_out, rows, p, sums, n):
    if t[KIND] == ASCENDING:
        lanes_back(kind, x, lead, g, lead_g, out, lead_out, rows, p, sums, n, 0)
    elif t[KIND] == DESCENDING:
        lanes_back(kind, x, lead, g, lead_g, out, lead_out, rows, p, sums, n, 1)
    elif t[KIND] == RADIX_2:
        radix_2_back(kind, x, lead, g, lead_g, out, lead_out, rows, p, sums, n, t[STRIDE])
    else:
        s0, s1, t0, t1 = t[STRIDE], t[STRIDE + 1], t[SORTED], t[SORTED + 1]
        radix_4_back(kind, x, lead, g, lead_g, out, lead_out, rows, p, sums, n, s0, s1, t0, t1)


@compiled
@no_type_check
def push(kind, item, table, packed, x, lead, y, start, stop, tile, few, n, buffer, stream):
    """Rows start to stop of x, `tile` at a time, through all passes, and `few` at a time through the last one.

    `buffer` holds tile * (n + 64 / item) elements.
    """
    room = n + LINE // item  # rows of a power of two would all fall into the same sets of the cache
    final = table.shape[0] - 1
    p = packed + table[final, OFFSET] * item
    for row in range(start, stop, tile):
        end = min(row + tile, stop)
        source, lead_in = x + row * lead * item, lead
        for i in range(final):
            _apply(kind, table[i], source, lead_in, buffer, room, end - row, packed + table[i, OFFSET] * item, n)
            source, lead_in = buffer, room
        for at in range(row, end, few):
            source_at, target = source + (at - row) * lead_in * item, y + at * n * item
            if stream:
                _apply_past_caches(kind, table[final], source_at, lead_in, target, n, min(few, end - at), p, n)
            else:
                _apply(kind, table[final], source_at, lead_in, target, n, min(few, end - at), p, n)
    if stream:
        fence(kind)


@compiled
@no_type_check
def pull(kind, item, table, size, packed, sums, layers, x, lead, g, lead_g, gx, start, stop, tile, n, buffer):
    """Gradients: rows of g back through all passes to gx (unless that is 0), those of the weights into `sums`.

    What enters each pass is computed once more and kept in `buffer`, which holds a tile per pass. `sums` are `layers`
    times `size` bytes, which add up to the gradients: one for up to `BLOCK` rows, two for more.
    """
    room = n + LINE // item
    step = tile * room * item
    clear(kind, sums, layers * size // item)
    summed = 0
    for row in range(start, stop, tile):
        rows = min(tile, stop - row)
        if layers > 1 and summed + rows > BLOCK:
            gather(kind, sums, size // item, 2)
            clear(kind, sums + size, size // item)
            summed = 0
        summed += rows
        recent = sums + (layers - 1) * size
        source, lead_in = x + row * lead * item, lead
        for i in range(table.shape[0] - 1):
            target = buffer + (i + 1) * step
            _apply(kind, table[i], source, lead_in, target, room, rows, packed + table[i, OFFSET] * item, n)
            source, lead_in = target, room
        given, lead_given = g + row * lead_g * item, lead_g
        for i in range(table.shape[0] - 1, -1, -1):
            source, lead_in, target, lead_out = buffer + i * step, room, buffer, room
            if i == 0:
                source, lead_in = x + row * lead * item, lead
                if gx != 0:
                    target, lead_out = gx + row * n * item, n
            p, s = packed + table[i, OFFSET] * item, recent + table[i, OFFSET] * item
            _apply_back(kind, table[i], source, lead_in, given, lead_given, target, lead_out, rows, p, s, n)
            given, lead_given = buffer, room


@compiled
@no_type_check
def multiply(kind, item, table, factors, packed, x, lead, y, rows, tile, few, n, buffer, stream, slots, flip):
    """`pack` and `push`: the whole work of one thread in one call."""
    pack(kind, item, table, factors, packed, n, slots, flip)
    push(kind, item, table, packed, x, lead, y, 0, rows, tile, few, n, buffer, stream)


@compiled
@no_type_check
def differentiate(
    kind, item, table, factors, grads, size, packed, sums, layers, x, lead, g, lead_g, gx, rows, tile, n, buffer, slots
):
    """`pack`, `pull` and `unpack`: the whole work of one thread in one call."""
    pack(kind, item, table, factors, packed, n, slots, 0)
    pull(kind, item, table, size, packed, sums, layers, x, lead, g, lead_g, gx, 0, rows, tile, n, buffer)
    unpack(kind, item, table, grads, sums, size, layers, n, slots)
