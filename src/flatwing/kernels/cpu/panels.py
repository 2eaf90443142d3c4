"""Panels: products of small matrices with strides of any kind, to be called from compiled functions.

A panel is a rectangle of sums in registers, y[r, v] += sum over k of x[r, k] w[k, v], where v counts vectors of the
machine. Entries of x are single numbers, the same for all lanes, or `paired`: vectors as well, each lane with its own.
Real numbers only; `tag` is that of a tile with one vector a row. Addresses and strides are in bytes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .tiles import TileEmitter, tiled

LINE = 64
"""Bytes that a cache moves at once."""


def _panel(high: int, wide: int, paired: bool = False) -> Any:
    """Write, or add with `more` != 0, the sums of `high` rows and `wide` vectors."""

    def panel(
        e: TileEmitter,
        more: ir.Value,
        x: ir.Value,
        xr: ir.Value,
        xk: ir.Value,
        w: ir.Value,
        wk: ir.Value,
        wv: ir.Value,
        y: ir.Value,
        yr: ir.Value,
        yv: ir.Value,
        inputs: ir.Value,
    ) -> None:
        if not paired:  # the rows that follow are far away, where the machine does not look ahead by itself
            for r in range(high):
                after = e.add(x, e.mul(xr, high + r))
                e.prefetch(after)
                e.prefetch(e.add(after, LINE))
        with e.loop(0, inputs, carry=[x, w, *[e.constant(0.0)] * (high * wide)]) as loop:
            left, right, *sums = loop.carried
            loop.carried = [e.add(left, xk), e.add(right, wk), *_added(e, sums, left, xr, right, wv)]
        sums = loop.carried[2:]
        places = [e.add(y, e.mul(yr, r), e.mul(yv, v)) for r in range(high) for v in range(wide)]
        with e.builder.if_else(e.builder.icmp_signed("!=", more, e.int(0))) as (add, put):
            with add:
                for place, total in zip(places, sums, strict=True):
                    e.store(e.plus(e.load(place), total), place)
            with put:
                for place, total in zip(places, sums, strict=True):
                    e.store(total, place)

    def _added(
        e: TileEmitter, sums: list[ir.Value], x: ir.Value, xr: ir.Value, w: ir.Value, wv: ir.Value
    ) -> list[ir.Value]:
        """The sums after one more k. Registers hold the shorter side; what is on the longer one passes by."""
        load = e.load if paired else e.broadcast
        news = dict(enumerate(sums))
        if high >= wide:
            row = [e.load(e.add(w, e.mul(wv, v))) for v in range(wide)]
            for r in range(high):
                entry = load(e.add(x, e.mul(xr, r)))
                news |= {i: e.fma(entry, row[i % wide], sums[i]) for i in range(r * wide, (r + 1) * wide)}
        else:
            column = [load(e.add(x, e.mul(xr, r))) for r in range(high)]
            for v in range(wide):
                vector = e.load(e.add(w, e.mul(wv, v)))
                news |= {i: e.fma(column[i // wide], vector, sums[i]) for i in range(v, len(sums), wide)}
        return [news[i] for i in range(len(sums))]

    return tiled(panel)


shared44, shared42, shared41 = _panel(4, 4), _panel(4, 2), _panel(4, 1)
shared14, shared12, shared11 = _panel(1, 4), _panel(1, 2), _panel(1, 1)
paired28, paired24, paired21 = _panel(2, 8, True), _panel(2, 4, True), _panel(2, 1, True)
paired18, paired14, paired11 = _panel(1, 8, True), _panel(1, 4, True), _panel(1, 1, True)
