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

    def accumulate(self, weight: ir.Value, x: list[ir.Value], sums: list[ir.Value], conj: bool) -> list[ir.Value]:
        """sums + weight * x for the weight, or its conjugate, at an address."""
        re = self.broadcast(weight)
        if self.planes == 1:
            return [self.fma(re, part, total) for part, total in zip(x, sums, strict=True)]
        im = self.broadcast(self.at(weight, 1))
        minus = self.minus(im)
        if conj:
            im, minus = minus, im
        return [
            self.fma(minus, x[1], self.fma(re, x[0], sums[0])),
            self.fma(im, x[0], self.fma(re, x[1], sums[1])),
        ]

    def totals(self, vectors: Sequence[ir.Value]) -> list[ir.Value]:
        """The sums over all lanes of each vector, in order and packed into vectors; a power of two of vectors."""
        vectors = list(vectors)
        width = size = self.lanes  # lanes that still belong to one sum, lanes of a vector
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
    value = e.builder.load(e.builder.inttoptr(source, POINTER), align=e.item, typ=e.element)
    e.builder.store(value, e.builder.inttoptr(target, POINTER), align=e.item)


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
    x = e.load_row(source)
    if e.planes == 2:
        pairs = [lane for pair in zip(range(e.lanes), range(e.lanes, 2 * e.lanes), strict=True) for lane in pair]
        x = [e.shuffle(x[0], x[1], half) for half in (pairs[: e.lanes], pairs[e.lanes :])]
    e.store_row(x, target)


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


def _entry(e: TileEmitter, table: ir.Value, i: int) -> ir.Value:
    return e.builder.load(e.builder.inttoptr(e.add(table, 8 * i), POINTER), align=8, typ=INDEX)


def _product(outputs: int) -> Any:
    """Write y[j] = sum over k of w[j, k] x[k] for so many rows y, with all sums in registers."""

    def product(
        e: TileEmitter,
        conj: bool,
        w: ir.Value,
        wj: ir.Value,
        wk: ir.Value,
        x: ir.Value,
        xk: ir.Value,
        y: ir.Value,
        yj: ir.Value,
        inputs: ir.Value,
    ) -> None:
        starts = [e.weights(e.int(0), e.mul(wj, j)) for j in range(outputs)]
        zeros = [e.constant(0.0)] * (outputs * e.vectors)
        with e.loop(0, inputs, carry=[w, x, *zeros]) as loop:
            at, source, *sums = loop.carried
            row, news = e.load_row(source), []
            for j in range(outputs):
                old = sums[j * e.vectors : (j + 1) * e.vectors]
                news += e.accumulate(e.add(at, starts[j]), row, old, conj)
            loop.carried = [e.weights(at, wk), e.rows(source, xk), *news]
        sums = loop.carried[2:]
        for j in range(outputs):
            e.store_row(sums[j * e.vectors : (j + 1) * e.vectors], e.rows(y, e.mul(yj, j)))

    return tiled(product)


product1, product2, product3, product4 = map(_product, (1, 2, 3, 4))
product5, product6, product7, product8 = map(_product, (5, 6, 7, 8))


def _outer(outputs: int, inputs: int) -> Any:
    """Write w[j, k] += sum over the row of g[j] conj(x[k]) for so many j and k."""

    def outer(e: TileEmitter, g: ir.Value, gj: ir.Value, x: ir.Value, xk: ir.Value, w: ir.Value, wj: ir.Value) -> None:
        gs = [e.load_row(e.rows(g, e.mul(gj, j))) for j in range(outputs)]
        xs = [e.load_row(e.rows(x, e.mul(xk, k))) for k in range(inputs)]
        products: list[ir.Value] = []
        for a in gs:
            for b in xs:
                if e.planes == 2:
                    minus = e.minus(a[0])
                    products += [e.fma(a[1], b[1], e.times(a[0], b[0])), e.fma(minus, b[1], e.times(a[1], b[0]))]
                else:
                    total = e.times(a[0], b[0])
                    for p, q in zip(a[1:], b[1:], strict=True):
                        total = e.fma(p, q, total)
                    products.append(total)
        packed = e.totals(products)
        size = min(len(products), e.lanes)  # numbers in one of the packed vectors
        run = inputs * e.planes  # numbers that lie side by side in w
        kind = ir.VectorType(e.element, min(run, size))
        for start in range(0, len(products), kind.count):
            j, side = divmod(start, run)
            part = packed[start // size]
            piece = e.shuffle(part, part, range(start % size, start % size + kind.count))
            pointer = e.builder.inttoptr(e.at(e.weights(w, e.mul(wj, j)), side), POINTER)
            old = e.builder.load(pointer, align=e.item, typ=kind)
            e.builder.store(e.plus(old, piece), pointer, align=e.item)

    return tiled(outer)


outer44, outer42, outer41 = _outer(4, 4), _outer(4, 2), _outer(4, 1)
outer24, outer22, outer21 = _outer(2, 4), _outer(2, 2), _outer(2, 1)
outer14, outer12, outer11 = _outer(1, 4), _outer(1, 2), _outer(1, 1)
