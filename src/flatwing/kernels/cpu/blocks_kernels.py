"""Compiled kernels for general blocks: tiles of the batch go through all factors in cache.

What a call needs lies in memory as 64-bit words, so that a call passes a few whole numbers: `SPEC` words for each
factor, in the order in which factors are applied (address of the weights, a, b, c, d, and for the backward pass the
address of the gradient of the weights). Everything else, too, is an address or a size in bytes.
"""

from __future__ import annotations

from typing import no_type_check

from .blocks_memory import drain, fill
from .blocks_products import apply, apply_few, few_suits, run_of
from .simd import compiled
from .tiles import item_bytes, row_bytes, word

SPEC = 6
"""Words for each factor."""


@compiled
@no_type_check
def _through(tag, spec, factors, this, other, count, pitch, gathered, few):
    """`count` tiles through all factors; the address of the first result, `this` or `other`.

    With `few` > 0 only so many vectors of a tile matter.
    """
    run = 0
    for f in range(factors):
        at = spec + 8 * SPEC * f
        w, a, b = word(tag, at), word(tag, at + 8), word(tag, at + 16)
        c, d = word(tag, at + 24), word(tag, at + 32)
        packed, run, next_c, next_d = run > 0, 0, 0, 0
        if few_suits(tag, few, b, c):
            apply_few(tag, w, a, b, c, d, this, other, gathered, few)
            this, other = other, this
            continue
        if f + 1 < factors and not few:
            after = at + 8 * SPEC
            next_c, next_d = word(tag, after + 24), word(tag, after + 32)
            run = run_of(b, c, d, word(tag, after + 16), next_c, next_d)
        target = this if b == c and b <= 8 and run == 0 and not packed else other
        apply(tag, None, w, c, 1, a, b, c, d, this, packed, target, run, next_c, next_d, gathered, count, pitch)
        if target != this:
            this, other = other, this
    return this


@compiled
@no_type_check
def forward_tiles(
    tag,
    spec,
    factors,
    x,
    x_pitch,
    y,
    y_pitch,
    last,
    start,
    stop,
    rows,
    table,
    spare,
    tiles,
    widest,
    inner,
    group,
    shared,
):
    """Vectors start ... stop - 1 of x, of `rows` vectors, through all factors into y.

    Tiles are read and written in groups; those of a group go through the factors together if weights are `shared`, else
    one by one. Memory: `table` holds an address for each vector of a tile, `spare` the longest vector of x or y (it
    stands in for vectors beyond the last), `tiles` `inner` rows of a tile and two times `widest` rows for each tile of
    a group.
    """
    row = row_bytes(tag)
    width = row // item_bytes(tag)
    pitch = widest * row
    n = word(tag, spec + 8) * word(tag, spec + 24) * word(tag, spec + 32)
    end = spec + 8 * SPEC * (factors - 1)
    m = word(tag, end + 8) * word(tag, end + 16) * word(tag, end + 32)
    few = rows if rows <= 2 else 0
    this = tiles + inner * row
    other = this + group * pitch
    for begin in range(start, stop, width * group):
        count = min(group, (stop - begin + width - 1) // width)
        fill(tag, x, x_pitch, last, n, begin, rows, this, count, pitch, table, spare)
        at = this
        if shared:
            at = _through(tag, spec, factors, this, other, count, pitch, tiles, few)
        else:
            for t in range(count):
                ahead = t * pitch
                at = _through(tag, spec, factors, this + ahead, other + ahead, 1, pitch, tiles, few) - ahead
        drain(tag, at, y, y_pitch, last, m, begin, rows, count, pitch, table, spare)
