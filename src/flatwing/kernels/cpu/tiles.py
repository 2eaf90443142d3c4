"""Tiles: vector code for general blocks, to be called from compiled functions.

A tile holds R vectors of a batch, batch-last: row k holds entry k of all of them, in `16 * len(tag)` bytes. Rows of
real tiles are one or two machine vectors; rows of complex tiles are real parts, then imaginary parts, so that products
need no shuffles. The type of `tag`, a tuple of scalars such as (np.float32(0),) * 8, says all of this when code is
generated. Addresses are in bytes, strides between rows of a tile in rows, strides between weights in weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .simd import INDEX, POINTER, Emitter, vector_bytes

UNIT = 16
"""Bytes of a row of a tile for each entry of the tag."""


class TileEmitter(Emitter):
    """Writes code for the tiles that a tag describes; `element` is the real type, also of complex tiles."""

    def __init__(self, builder: ir.IRBuilder, element: ir.Type, row: int, planes: int) -> None:
        super().__init__(builder, element)
        self.row = row
        """Bytes of a row."""
        self.planes = planes
        """2 for complex tiles, else 1."""
        self.lanes = min(vector_bytes(), row // planes) // self.item
        self.vector = ir.VectorType(element, self.lanes)
        self.vectors = row // (self.lanes * self.item)
        """Vectors of a row; of a complex tile, the real and the imaginary parts."""

    def rows(self, address: ir.Value, count: int | ir.Value) -> ir.Value:
        """The address that lies so many rows further."""
        return self.add(address, self.mul(count, self.row))

    def weights(self, address: ir.Value, count: int | ir.Value) -> ir.Value:
        """The address that lies so many weights further."""
        return self.add(address, self.mul(count, self.item * self.planes))

    def load_row(self, address: ir.Value) -> list[ir.Value]:
        """The vectors of a row."""
        return [self.load(self.at(address, v * self.lanes)) for v in range(self.vectors)]

    def store_row(self, vectors: Sequence[ir.Value], address: ir.Value) -> None:
        """Write the vectors of a row."""
        for v, vector in enumerate(vectors):
            self.store(vector, self.at(address, v * self.lanes))

    def minus(self, vector: ir.Value) -> ir.Value:
        """The negated vector; costs nothing in a product, which the machine can negate as well."""
        return cast(ir.Value, self.builder.fneg(vector))

    def accumulate(
        self, weight: ir.Value, x: list[ir.Value], sums: list[ir.Value] | None, conj: bool
    ) -> list[ir.Value]:
        """sums + weight * x for the weight, or its conjugate, at an address; without sums the product."""
        re = self.broadcast(weight)
        first = [self.fma(re, u, sums[i]) if sums else self.times(re, u) for i, u in enumerate(x)]
        if self.planes == 1:
            return first
        im = self.broadcast(self.at(weight, 1))
        minus = self.minus(im)
        if conj:
            im, minus = minus, im
        return [self.fma(minus, x[1], first[0]), self.fma(im, x[0], first[1])]

    def joined(self, x: list[ir.Value]) -> list[ir.Value]:
        """A row with real and imaginary parts alternating, as in tensors."""
        if self.planes == 1:
            return x
        pairs = [lane + part for lane in range(self.lanes) for part in (0, self.lanes)]
        return [self.shuffle(x[0], x[1], half) for half in (pairs[: self.lanes], pairs[self.lanes :])]

    def totals(self, vectors: Sequence[ir.Value], width: int = 0) -> list[ir.Value]:
        """The sums of `width` lanes each, by default of all, in order and packed into vectors; powers of two."""
        vectors, size = list(vectors), self.lanes
        width = width or size  # lanes that still belong to one sum
        while width > 1:
            half = width // 2
            if len(vectors) > 1:
                low = [lane for lane in range(2 * self.lanes) if lane % width < half]
                pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
            else:
                low = [lane for lane in range(size) if lane % width < half]
                pairs = [(vectors[0], vectors[0])]
            high, size = [lane + half for lane in low], len(low)
            vectors = [self.plus(self.shuffle(x, y, low), self.shuffle(x, y, high)) for x, y in pairs]
            width = half
        return vectors


def tiled(emit: Callable[..., ir.Value | None]) -> Any:
    """Make `emit(tile_emitter, *arguments)` callable inside compiled functions, there as `f(tag, *arguments)`.

    Arguments are whole numbers, or None and True, which reach `emit` as flags when code is generated. What `emit`
    returns, a whole number, is the result.
    """
    returns = types.int64 if inspect.signature(emit).return_annotation == "ir.Value" else types.none

    def define(_: Any, tag: Any, *arguments: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            planes = 2 if isinstance(tag.dtype, types.Complex) else 1
            real = tag.dtype.underlying_float if planes == 2 else tag.dtype
            emitter = TileEmitter(builder, context.get_value_type(real), UNIT * tag.count, planes)
            given = [
                context.cast(builder, value, kind, types.int64)
                if isinstance(kind, types.Integer)
                else not isinstance(kind, types.NoneType)
                for kind, value in zip(arguments, values[1:], strict=True)
            ]
            result = emit(emitter, *given)
            return context.get_dummy_value() if returns is types.none else result

        return returns(tag, *arguments), lower

    first, *others = inspect.signature(emit).parameters.values()
    names = [first.replace(name="context"), first.replace(name="tag"), *others]
    define.__signature__ = inspect.Signature([p.replace(annotation=p.empty) for p in names])  # type: ignore[attr-defined]
    define.__name__ = emit.__name__
    return intrinsic(define)


@tiled
def word(e: TileEmitter, address: ir.Value) -> ir.Value:
    """The 64-bit whole number at an address."""
    return e.builder.load(e.builder.inttoptr(address, POINTER), align=8, typ=INDEX)


@tiled
def put_word(e: TileEmitter, address: ir.Value, value: ir.Value) -> None:
    """Write a 64-bit whole number."""
    e.builder.store(value, e.builder.inttoptr(address, POINTER), align=8)


@tiled
def row_bytes(e: TileEmitter) -> ir.Value:
    """Bytes of a row of a tile."""
    return e.int(e.row)


@tiled
def real_bytes(e: TileEmitter) -> ir.Value:
    """Bytes of one real number."""
    return e.int(e.item)


@tiled
def item_bytes(e: TileEmitter) -> ir.Value:
    """Bytes of one number, real or complex."""
    return e.int(e.item * e.planes)


@tiled
def planes(e: TileEmitter) -> ir.Value:
    """2 for complex tiles, else 1."""
    return e.int(e.planes)


@tiled
def lanes(e: TileEmitter) -> ir.Value:
    """Real numbers in one vector."""
    return e.int(e.lanes)


@tiled
def copy_row(e: TileEmitter, source: ir.Value, target: ir.Value) -> None:
    """Copy one row."""
    e.store_row(e.load_row(source), target)


@tiled
def clear_row(e: TileEmitter, target: ir.Value) -> None:
    """Fill one row with zeros."""
    e.store_row([e.constant(0.0)] * e.vectors, target)


@tiled
def copy_real(e: TileEmitter, source: ir.Value, target: ir.Value) -> None:
    """Copy one real number."""
    e.put(e.number(source), target)


@tiled
def part_planes(e: TileEmitter, source: ir.Value, target: ir.Value) -> None:
    """A row as it is in a batch-last tensor, real and imaginary parts alternating, into a row of a tile."""
    x = e.load_row(source)
    if e.planes == 2:
        x = [e.shuffle(x[0], x[1], range(part, 2 * e.lanes, 2)) for part in range(2)]
    e.store_row(x, target)


@tiled
def join_planes(e: TileEmitter, source: ir.Value, target: ir.Value) -> None:
    """A row of a tile into a row as it is in a batch-last tensor."""
    e.store_row(e.joined(e.load_row(source)), target)


@tiled
def turn_in(e: TileEmitter, table: ir.Value, offset: ir.Value, target: ir.Value, pitch: ir.Value) -> None:
    """Transpose a square: one vector from each address in a table, plus an offset, to targets `pitch` bytes apart."""
    x = [e.load(e.add(_entry(e, table, i), offset)) for i in range(e.lanes)]
    for i, vector in enumerate(e.transpose(x)):
        e.store(vector, e.add(target, e.mul(pitch, i)))


@tiled
def turn_out(e: TileEmitter, source: ir.Value, pitch: ir.Value, table: ir.Value, offset: ir.Value) -> None:
    """Transpose a square: vectors `pitch` bytes apart to each address in a table, plus an offset."""
    x = [e.load(e.add(source, e.mul(pitch, i))) for i in range(e.lanes)]
    for i, vector in enumerate(e.transpose(x)):
        e.store(vector, e.add(_entry(e, table, i), offset))


@tiled
def turn(e: TileEmitter, source: ir.Value, pitch: ir.Value, target: ir.Value) -> None:
    """Transpose as many rows as there are lanes, `pitch` bytes apart, into rows side by side; one vector a plane."""
    for plane in range(e.planes):
        x = [e.load(e.at(e.add(source, e.mul(pitch, i)), plane * e.lanes)) for i in range(e.lanes)]
        for i, vector in enumerate(e.transpose(x)):
            e.store(vector, e.at(e.rows(target, i), plane * e.lanes))


def _entry(e: TileEmitter, table: ir.Value, i: int) -> ir.Value:
    return e.builder.load(e.builder.inttoptr(e.add(table, 8 * i), POINTER), align=8, typ=INDEX)
