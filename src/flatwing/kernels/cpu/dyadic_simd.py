"""The passes of dyadic butterflies as vector code: packing of weights, forward, backward, gradients of weights.

A 2 x 2 block of weights acts on two positions that lie one stride apart. Strides of whole vectors: the positions of a
group lie on a grid, one axis per factor, and vector i of the group has coordinate 1 on axis s if bit s of i is set.
Strides within a vector: the partner of a position is another lane of the same vector.

Weights are packed in the order in which a pass consumes them, so that it reads them as one stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, cast

from llvmlite import ir

from .simd import Emitter, emitted

Number: TypeAlias = "int | ir.Value"
Vectors: TypeAlias = "list[Any]"


@contextmanager
def groups(e: Emitter, n: Number, grid: Sequence[Number]) -> Iterator[tuple[Number, Number]]:
    """Write loops over all groups of positions; yields the first position of one, and where its weights begin.

    `grid` are the strides of the axes, sorted; none for strides within a vector, where a group is one vector.
    """
    with ExitStack() as stack:
        base: Number = 0
        offset: Number = 0
        stop, scale = n, 2 * len(grid)
        for stride in reversed(grid):
            index = stack.enter_context(e.loop(0, stop, e.mul(stride, 2))).index
            base, offset = e.add(base, index), e.add(offset, e.mul(index, scale))
            stop, scale = stride, 2 * scale
        index = stack.enter_context(e.loop(0, stop, e.lanes)).index
        yield e.add(base, index), e.add(offset, e.mul(index, scale))


def corners(e: Emitter, base: Number, strides: Sequence[Number]) -> list[Number]:
    """Positions of the vectors of a group."""
    places = [base]
    for stride in strides:
        places += [e.add(place, stride) for place in places]
    return places


def pairs(levels: int) -> Iterator[tuple[int, int, int]]:
    """Number of the factor and the two vectors of each block of a group, in the order of the packed weights."""
    for level in range(levels):
        yield from ((level, i, i | 1 << level) for i in range(1 << levels) if not i >> level & 1)


def unzip(e: Emitter, left: ir.Value, right: ir.Value) -> Vectors:
    """Even and odd elements of two vectors in a row."""
    return [e.shuffle(left, right, range(start, 2 * e.lanes, 2)) for start in (0, 1)]


def interleave(e: Emitter, left: ir.Value, right: ir.Value) -> Vectors:
    """The inverse of `unzip`."""
    order = [i // 2 + i % 2 * e.lanes for i in range(2 * e.lanes)]
    return [e.shuffle(left, right, part) for part in (order[: e.lanes], order[e.lanes :])]


def blocks_at(e: Emitter, w: Number, place: Number, stride: Number) -> ir.Value:
    """Address of the block that acts on a position with coordinate 0: block (i, k) for position (i, 0, k)."""
    k = cast(ir.Value, e.builder.urem(e.int(place), e.int(stride)))
    return e.at(w, e.mul(e.add(place, k), 2))  # (i d + k) blocks of four, with place = 2 i d + k


def vectors_at(e: Emitter, address: Number, count: int) -> Vectors:
    """So many vectors in a row."""
    return [e.load(e.at(address, i * e.lanes)) for i in range(count)]


def store_at(e: Emitter, address: Number, vectors: Vectors) -> None:
    """Write vectors in a row."""
    for i, vector in enumerate(vectors):
        e.store(vector, e.at(address, i * e.lanes))


# strides of whole vectors


def _grid_weights(e: Emitter, w: Sequence[Number], base: Number, strides: Sequence[Number]) -> Vectors:
    """Addresses of the blocks of a group, in the order of the packed weights."""
    places = corners(e, base, strides)
    return [blocks_at(e, w[level], places[i], strides[level]) for level, i, _ in pairs(len(strides))]


def _pack_grid(e: Emitter, w: Sequence[Number], packed: Number, n: Number, strides: Any, grid: Any, flip: Any) -> None:
    with groups(e, n, grid) as (base, offset):
        for number, address in enumerate(_grid_weights(e, w, base, strides)):
            v = vectors_at(e, address, 4)
            (w00, w10), (w01, w11) = (unzip(e, *half) for half in zip(unzip(e, *v[:2]), unzip(e, *v[2:]), strict=True))
            at = e.at(packed, offset, 4 * number * e.lanes)
            e.store(w00, at)
            e.store(w01, e.at(at, e.lanes, e.mul(flip, e.lanes)))  # transposed blocks have them exchanged
            e.store(w10, e.at(at, 2 * e.lanes, e.mul(flip, -e.lanes)))
            e.store(w11, e.at(at, 3 * e.lanes))


def _unpack_grid(e: Emitter, w: Sequence[Number], packed: Number, n: Number, strides: Any, grid: Any) -> None:
    with groups(e, n, grid) as (base, offset):
        for number, address in enumerate(_grid_weights(e, w, base, strides)):
            w00, w01, w10, w11 = vectors_at(e, e.at(packed, offset, 4 * number * e.lanes), 4)
            evens, odds = interleave(e, w00, w10), interleave(e, w01, w11)
            store_at(e, address, [v for pair in zip(evens, odds, strict=True) for v in interleave(e, *pair)])


def _butterflies(e: Emitter, v: Vectors, w: Vectors, level: int) -> Vectors:
    """The vectors of a group after the factor of one level."""
    found = list(v)
    for number, (at, i, j) in enumerate(pairs(len(v).bit_length() - 1)):
        if at == level:
            w00, w01, w10, w11 = w[4 * number : 4 * number + 4]
            found[i] = e.fma(w01, v[j], e.times(w00, v[i]))
            found[j] = e.fma(w11, v[j], e.times(w10, v[i]))
    return found


def _forward_grid(
    e: Emitter, x: Number, lead: Number, y: Number, lead_y: Number, rows: Number, packed: Number, n: Number,
    strides: Any, grid: Any, stream: int,
) -> None:  # fmt: skip
    levels = len(strides)
    with groups(e, n, grid) as (base, offset):
        w = vectors_at(e, e.at(packed, offset), 2 * levels << levels)
        places = corners(e, base, strides)
        with e.loop(0, rows, unroll=False) as row:
            skip, skip_y = e.mul(row.index, lead), e.mul(row.index, lead_y)
            v = [e.load(e.at(x, skip, place)) for place in places]
            for level in range(levels):
                v = _butterflies(e, v, w, level)
            for vector, place in zip(v, places, strict=True):
                e.store(vector, e.at(y, skip_y, place), bool(stream))


def _backward_grid(
    e: Emitter, x: Number, lead: Number, g: Number, lead_g: Number, out: Number, lead_out: Number,
    rows: Number, packed: Number, sums: Number, n: Number, strides: Any, grid: Any,
) -> None:  # fmt: skip
    levels = len(strides)
    count = 2 * levels << levels
    with groups(e, n, grid) as (base, offset):
        places = corners(e, base, strides)
        found = e.at(sums, offset)
        with e.loop(0, rows, carry=vectors_at(e, found, count), unroll=False) as row:
            # the sums fill the registers: weights are read again for each row, from the first cache
            w = vectors_at(e, e.at(packed, offset), count)
            inputs = [[e.load(e.at(x, e.mul(row.index, lead), place)) for place in places]]
            for level in range(levels - 1):
                inputs.append(_butterflies(e, inputs[-1], w, level))
            v = [e.load(e.at(g, e.mul(row.index, lead_g), place)) for place in places]
            for number, (level, i, j) in reversed(list(enumerate(pairs(levels)))):
                w00, w01, w10, w11 = w[4 * number : 4 * number + 4]
                a, b, ga, gb = inputs[level][i], inputs[level][j], v[i], v[j]
                terms = [(ga, a), (ga, b), (gb, a), (gb, b)]
                for k, (left, right) in enumerate(terms, start=4 * number):
                    row.carried[k] = e.fma(left, right, row.carried[k])
                v[i], v[j] = e.fma(w10, gb, e.times(w00, ga)), e.fma(w11, gb, e.times(w01, ga))
            for vector, place in zip(v, places, strict=True):
                e.store(vector, e.at(out, e.mul(row.index, lead_out), place))
        store_at(e, found, row.carried)


@emitted
def pack_radix_2(e, w0, packed, n, s0, flip):
    """Pack one factor; with `flip` = 1 its transpose."""
    _pack_grid(e, [w0], packed, n, [s0], [s0], flip)


@emitted
def pack_radix_4(e, w0, w1, packed, n, s0, s1, t0, t1, flip):
    """Pack two factors with strides s0, s1 as applied and t0 < t1 sorted."""
    _pack_grid(e, [w0, w1], packed, n, [s0, s1], [t0, t1], flip)


@emitted
def unpack_radix_2(e, w0, packed, n, s0):
    """The inverse of packing one factor."""
    _unpack_grid(e, [w0], packed, n, [s0], [s0])


@emitted
def unpack_radix_4(e, w0, w1, packed, n, s0, s1, t0, t1):
    """The inverse of packing two factors."""
    _unpack_grid(e, [w0, w1], packed, n, [s0, s1], [t0, t1])


@emitted
def radix_2(e, x, lead, y, lead_y, rows, packed, n, s0, stream):
    """One factor applied to rows: y = x K^T."""
    _forward_grid(e, x, lead, y, lead_y, rows, packed, n, [s0], [s0], stream)


@emitted
def radix_4(e, x, lead, y, lead_y, rows, packed, n, s0, s1, t0, t1, stream):
    """Two factors applied to rows."""
    _forward_grid(e, x, lead, y, lead_y, rows, packed, n, [s0, s1], [t0, t1], stream)


@emitted
def radix_2_back(e, x, lead, g, lead_g, out, lead_out, rows, packed, sums, n, s0):
    """Gradients of one factor's input (written to `out`) and weights (added to `sums`), from those of its output."""
    _backward_grid(e, x, lead, g, lead_g, out, lead_out, rows, packed, sums, n, [s0], [s0])


@emitted
def radix_4_back(e, x, lead, g, lead_g, out, lead_out, rows, packed, sums, n, s0, s1, t0, t1):
    """The same of two factors."""
    _backward_grid(e, x, lead, g, lead_g, out, lead_out, rows, packed, sums, n, [s0, s1], [t0, t1])


# strides within a vector


def lane_strides(e: Emitter, descending: int = 0) -> list[int]:
    """All strides within a vector, as applied."""
    rising = [1 << i for i in range(e.lanes.bit_length() - 1)]
    return rising[::-1] if descending else rising


@emitted
def pack_lanes(e, w, slot, slots, stride, packed, n, flip):
    """Pack one factor, or the identity if its address is 0, as number `slot` of a pass that has `slots` of them.

    Each vector of positions has a vector of coefficients of themselves, and one of their partners.
    """
    place = e.at(packed, e.mul(slot, 2 * e.lanes))
    step = e.mul(slots, 2)
    for d in lane_strides(e):
        second = [lane // d % 2 for lane in range(e.lanes)]
        own = [4 * (lane // (2 * d) * d + lane % d) + 3 * j for lane, j in enumerate(second)]
        partner = [at + 1 - 2 * j for at, j in zip(own, second, strict=True)]
        flipped = [at + 2 - 4 * j for at, j in zip(own, second, strict=True)]
        with e.when(stride, "==", d), e.when(w, "!=", 0), e.loop(0, n, e.lanes, unroll=False) as at:
            v = vectors_at(e, e.at(w, e.mul(at.index, 2)), 2)
            straight = e.builder.icmp_signed("==", e.int(flip), e.int(0))
            other = e.builder.select(straight, e.shuffle(*v, partner), e.shuffle(*v, flipped))
            store_at(e, e.at(place, e.mul(at.index, step)), [e.shuffle(*v, own), other])
    with e.when(w, "==", 0), e.loop(0, n, e.lanes, unroll=False) as at:
        store_at(e, e.at(place, e.mul(at.index, step)), [e.constant(1.0), e.constant(0.0)])


@emitted
def unpack_lanes(e, w, slot, slots, stride, packed, n):
    """The inverse of packing one factor; nothing if its address is 0."""
    place = e.at(packed, e.mul(slot, 2 * e.lanes))
    step = e.mul(slots, 2)
    for d in lane_strides(e):
        order = []
        for block, j, i in ((at // 4, at % 4 // 2, at % 2) for at in range(2 * e.lanes)):
            lane = block // d * 2 * d + j * d + block % d
            order.append(lane if i == j else e.lanes + lane)
        with e.when(stride, "==", d), e.when(w, "!=", 0), e.loop(0, n, e.lanes, unroll=False) as at:
            v = vectors_at(e, e.at(place, e.mul(at.index, step)), 2)
            halves = [e.shuffle(*v, part) for part in (order[: e.lanes], order[e.lanes :])]
            store_at(e, e.at(w, e.mul(at.index, 2)), halves)


@emitted
def lanes(e, x, lead, y, lead_y, rows, packed, n, descending, stream):
    """All factors with strides within a vector applied to rows."""
    strides = lane_strides(e, descending)
    with e.loop(0, n, e.lanes) as at:
        w = vectors_at(e, e.at(packed, e.mul(at.index, 2 * len(strides))), 2 * len(strides))
        with e.loop(0, rows, unroll=False) as row:
            v = e.load(e.at(x, e.mul(row.index, lead), at.index))
            for level, d in enumerate(strides):
                v = e.fma(w[2 * level + 1], e.swap(v, d), e.times(w[2 * level], v))
            e.store(v, e.at(y, e.mul(row.index, lead_y), at.index), bool(stream))


@emitted
def lanes_back(e, x, lead, g, lead_g, out, lead_out, rows, packed, sums, n, descending):
    """Gradients of the input and the weights of all factors with strides within a vector."""
    strides = lane_strides(e, descending)
    count = 2 * len(strides)
    with e.loop(0, n, e.lanes) as at:
        w = vectors_at(e, e.at(packed, e.mul(at.index, count)), count)
        found = e.at(sums, e.mul(at.index, count))
        with e.loop(0, rows, carry=vectors_at(e, found, count), unroll=False) as row:
            v = e.load(e.at(x, e.mul(row.index, lead), at.index))
            inputs = []
            for level, d in enumerate(strides):
                inputs.append((v, e.swap(v, d)))
                v = e.fma(w[2 * level + 1], inputs[-1][1], e.times(w[2 * level], v))
            v = e.load(e.at(g, e.mul(row.index, lead_g), at.index))
            for level, d in reversed(list(enumerate(strides))):
                for k, factor in enumerate(inputs[level], start=2 * level):
                    row.carried[k] = e.fma(v, factor, row.carried[k])
                v = e.fma(w[2 * level], v, e.swap(e.times(w[2 * level + 1], v), d))
            e.store(v, e.at(out, e.mul(row.index, lead_out), at.index))
        store_at(e, found, row.carried)


@emitted
def clear(e, address, count):
    """Write so many zeros, a multiple of the lanes."""
    with e.loop(0, count, e.lanes) as at:
        e.store(e.constant(0.0), e.at(address, at.index))


@emitted
def gather(e, address, count, parts):
    """Add parts of `count` elements, which follow each other, to the first of them, in order."""
    with e.loop(0, count, e.lanes) as at:
        first = e.load(e.at(address, at.index))
        with e.loop(1, parts, carry=[first]) as part:
            part.carried = [e.plus(part.carried[0], e.load(e.at(address, at.index, e.mul(part.index, count))))]
        e.store(part.carried[0], e.at(address, at.index))


@emitted
def fence(e):
    """What was written past the caches is seen by all threads that learn that this one is done."""
    e.fence()
