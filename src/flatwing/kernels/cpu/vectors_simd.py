"""Products of short rows of weights with one vector, to be called from compiled functions: sums within machine vectors.

A machine vector holds several rows of weights, as they lie in tensors, and the inputs they share are repeated as often.
Adding neighbours of neighbouring vectors halves the number of vectors until each lane is one output. Real numbers only;
but for `few`, rows are a power of two below the lanes of a vector. `tag` is that of a tile with one vector a row.
Addresses and strides are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from llvmlite import ir

from .simd import POINTER
from .tiles import TileEmitter, tiled


def _repeated(e: TileEmitter, address: ir.Value, inputs: int) -> ir.Value:
    """So many numbers, again and again until a vector is full."""
    kind = ir.VectorType(e.element, inputs)
    part = e.builder.load(e.builder.inttoptr(address, POINTER), align=e.item, typ=kind)
    return e.shuffle(part, part, [lane % inputs for lane in range(e.lanes)])


def _few(outputs: int) -> Any:
    """Write y[j] = sum over k of w[j, k] x[k] for so many j, `apart` bytes apart, number by number."""

    def few(e: TileEmitter, w: ir.Value, x: ir.Value, y: ir.Value, apart: ir.Value, inputs: ir.Value) -> None:
        starts = [e.at(w, e.mul(inputs, j)) for j in range(outputs)]
        with e.loop(0, inputs, carry=[ir.Constant(e.element, 0.0)] * outputs) as loop:
            given = e.number(e.at(x, loop.index))
            loop.carried = [
                e.plus(total, e.times(e.number(e.at(start, loop.index)), given))
                for total, start in zip(loop.carried, starts, strict=True)
            ]
        for j, total in enumerate(loop.carried):
            e.put(total, e.add(y, e.mul(apart, j)))

    return tiled(few)


few1, few4 = _few(1), _few(4)


def _zipped(e: TileEmitter, streams: Sequence[ir.Value]) -> list[ir.Value]:
    """First numbers of all vectors, then second ones, and so on; a power of two of vectors."""
    if len(streams) == 1:
        return list(streams)
    found, half = [], e.lanes // 2
    for x, y in zip(_zipped(e, streams[::2]), _zipped(e, streams[1::2]), strict=True):
        for first in (0, half):
            found.append(e.shuffle(x, y, [lane for i in range(first, first + half) for lane in (i, e.lanes + i)]))
    return found


def _unzipped(e: TileEmitter, stream: Sequence[ir.Value]) -> list[ir.Value]:
    """The inverse: as many vectors, the first one with the first number of each run of so many."""
    if len(stream) == 1:
        return list(stream)
    sides = []
    for side in range(2):
        lanes = range(side, 2 * e.lanes, 2)
        sides.append(_unzipped(e, [e.shuffle(x, y, lanes) for x, y in zip(stream[::2], stream[1::2], strict=True)]))
    return [vector for pair in zip(*sides, strict=True) for vector in pair]


def _along(inputs: int) -> Any:
    """Write y[j] = sum over k of w[j, k] x[j >> shift, k] for `groups` vectors of j: blocks that follow each other.

    Two to the power of `shift` vectors hold the weights of a block.
    """

    def along(e: TileEmitter, w: ir.Value, x: ir.Value, y: ir.Value, groups: ir.Value, shift: ir.Value) -> None:
        if inputs >= e.lanes:
            return
        with e.loop(0, groups) as loop:
            products = []
            for v in range(inputs):
                vector = e.add(e.mul(loop.index, inputs), v)
                block = cast(ir.Value, e.builder.lshr(vector, shift))
                given = _repeated(e, e.at(x, e.mul(block, inputs)), inputs)
                products.append(e.times(e.load(e.at(w, e.mul(vector, e.lanes))), given))
            e.store(e.totals(products, inputs)[0], e.at(y, e.mul(loop.index, e.lanes)))

    return tiled(along)


along2, along4, along8 = _along(2), _along(4), _along(8)


def _across(inputs: int) -> Any:
    """Write y[j, l] = sum over k of w[l, j, k] x[k, l] for the blocks l of as many lanes, side by side in x and y.

    A block is `size` bytes long, rows of x and y are `pitch` bytes apart, and `line` is memory for the inputs.
    """

    def across(
        e: TileEmitter, w: ir.Value, size: ir.Value, x: ir.Value, y: ir.Value, pitch: ir.Value, line: ir.Value
    ) -> None:
        if inputs >= e.lanes:
            return
        given = [e.load(e.add(x, e.mul(pitch, k))) for k in range(inputs)]
        for v, vector in enumerate(_zipped(e, given)):
            e.store(vector, e.at(line, v * e.lanes))
        vectors = cast(ir.Value, e.builder.udiv(size, e.int(e.row)))
        with e.loop(0, vectors, carry=[w, y]) as loop:
            weights, target = loop.carried
            products = [
                e.times(e.load(e.add(weights, e.mul(size, i))), _repeated(e, e.at(line, i * inputs), inputs))
                for i in range(e.lanes)
            ]
            for vector in _unzipped(e, e.totals(products, inputs)):
                e.store(vector, target)
                target = e.add(target, pitch)
            loop.carried = [e.add(weights, e.row), target]

    return tiled(across)


across2, across4, across8 = _across(2), _across(4), _across(8)


def _squares(depth: int) -> Any:
    """Write the products of `count` times as many 2 x 2 blocks as there are lanes.

    Inputs and outputs are two vectors: the first ones of all blocks, then the second ones, `pitch` bytes apart; or,
    with a `depth` below the lanes of a vector, side by side, and first and second ones take turns in so long runs.
    """

    def squares(e: TileEmitter, w: ir.Value, x: ir.Value, y: ir.Value, pitch: ir.Value, count: ir.Value) -> None:
        if depth >= e.lanes:
            return
        far, step = (e.int(e.row), 2 * e.row) if depth else (pitch, e.row)
        both = range(2 * e.lanes)
        sides = [[lane for lane in both if lane // (depth or e.lanes) % 2 == side] for side in range(2)]
        places = sorted(both, key=(sides[0] + sides[1]).__getitem__)
        with e.loop(0, count) as loop:
            source, target = (e.add(address, e.mul(loop.index, step)) for address in (x, y))
            block = e.add(w, e.mul(loop.index, 4 * e.row))
            weights = _unzipped(e, [e.load(e.add(block, e.row * v)) for v in range(4)])
            low, high = e.load(source), e.load(e.add(source, far))
            first, second = (e.shuffle(low, high, lanes) for lanes in sides)
            found = [e.fma(weights[j], first, e.times(weights[j + 1], second)) for j in (0, 2)]
            for v in range(2):
                lanes = places[v * e.lanes : (v + 1) * e.lanes]
                e.store(e.shuffle(found[0], found[1], lanes), e.add(target, e.mul(far, v)))

    return tiled(squares)


squares = _squares(0)
squares1, squares2, squares4, squares8 = map(_squares, (1, 2, 4, 8))
