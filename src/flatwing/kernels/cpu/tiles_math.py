"""Tiles: products of a block with rows of a tile, and the sums over tiles that are the gradients of its weights."""

from __future__ import annotations

from typing import Any, cast

from llvmlite import ir

from .simd import POINTER
from .tiles import TileEmitter, tiled


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


def _square(size: int) -> Any:
    """Write y[j] = sum over k of w[j, k] x[k] for so many j and k, without a loop; y may be x."""

    def square(
        e: TileEmitter,
        conj: bool,
        w: ir.Value,
        wj: ir.Value,
        wk: ir.Value,
        x: ir.Value,
        xk: ir.Value,
        y: ir.Value,
        yj: ir.Value,
    ) -> None:
        rows = [e.load_row(e.rows(x, e.mul(xk, k))) for k in range(size)]
        results: list[list[ir.Value]] = []
        for j in range(size):
            sums: list[ir.Value] | None = None
            for k in range(size):
                sums = e.accumulate(e.weights(w, e.add(e.mul(wj, j), e.mul(wk, k))), rows[k], sums, conj)
            results.append(sums or [])
        for j, sums in enumerate(results):
            e.store_row(sums, e.rows(y, e.mul(yj, j)))

    return tiled(square)


square2, square4 = _square(2), _square(4)


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


def _turned(outputs: int) -> Any:
    """Write w[j, k] += sum over the row of g[j] conj(x[k]) for so many j and as many k as lanes, from x turned."""

    def turned(e: TileEmitter, g: ir.Value, gj: ir.Value, x: ir.Value, w: ir.Value, wj: ir.Value) -> None:
        starts = [e.rows(g, e.mul(gj, j)) for j in range(outputs)]
        zeros = [e.constant(0.0)] * (outputs * e.planes)
        with e.loop(0, e.lanes, carry=zeros) as loop:
            row = e.load_row(e.rows(x, loop.index))
            news: list[ir.Value] = []
            for j, start in enumerate(starts):
                old = loop.carried[j * e.planes : (j + 1) * e.planes]
                re = e.broadcast(e.at(start, loop.index))
                first = e.fma(re, row[0], old[0])
                if e.planes == 1:
                    news.append(first)
                    continue
                im = e.broadcast(e.at(start, loop.index, e.lanes))
                news += [e.fma(im, row[1], first), e.fma(e.minus(re), row[1], e.fma(im, row[0], old[1]))]
            loop.carried = news
        for j in range(outputs):
            at = e.weights(w, e.mul(wj, j))
            for part, vector in enumerate(e.joined(loop.carried[j * e.planes : (j + 1) * e.planes])):
                spot = e.at(at, part * e.lanes)
                e.store(e.plus(e.load(spot), vector), spot)

    return tiled(turned)


turned4, turned8 = _turned(4), _turned(8)


def _dots(outputs: int) -> Any:
    """Write y[j] = sum over k of w[j, k] x[k] for so many j and one vector of the batch, from x side by side.

    Rows of weights are read as they are in tensors, and what a vector leaves over number by number: there are only
    whole vectors of complex numbers. Results are `yj` bytes apart.
    """

    def dots(
        e: TileEmitter, w: ir.Value, wj: ir.Value, x: ir.Value, y: ir.Value, yj: ir.Value, inputs: ir.Value
    ) -> None:
        starts = [e.weights(w, e.mul(wj, j)) for j in range(outputs)]
        signs = ir.Constant(e.vector, [ir.Constant(e.element, (-1.0) ** lane) for lane in range(e.lanes)])
        zeros = [e.constant(0.0)] * (outputs * e.planes)
        whole = e.mul(cast(ir.Value, e.builder.udiv(inputs, e.int(e.lanes // e.planes))), e.lanes)
        with e.loop(0, whole, e.lanes, carry=zeros) as loop:
            given = e.load(e.at(x, loop.index))
            # with real and imaginary parts alternating, sums over lanes give the real part, then the imaginary part
            factors = [given] if e.planes == 1 else [e.times(given, signs), e.swap(given, 1)]
            sums = iter(loop.carried)
            weights = [e.load(e.at(start, loop.index)) for start in starts]
            loop.carried = [e.fma(weight, factor, next(sums)) for weight in weights for factor in factors]
        packed = e.totals(loop.carried)
        size, word = min(len(zeros), e.lanes), ir.IntType(32)
        totals = [e.builder.extract_element(packed[i // size], word(i % size)) for i in range(len(zeros))]
        if e.planes == 1:
            with e.loop(whole, inputs, carry=totals) as loop:
                factor = e.number(e.at(x, loop.index))
                weights = [e.number(e.at(start, loop.index)) for start in starts]
                loop.carried = [
                    e.plus(old, e.times(weight, factor)) for old, weight in zip(loop.carried, weights, strict=True)
                ]
            totals = loop.carried
        for i, total in enumerate(totals):
            j, plane = divmod(i, e.planes)
            e.put(total, e.at(e.add(y, e.mul(yj, j)), plane * e.lanes))

    return tiled(dots)


dots1, dots8 = _dots(1), _dots(8)


def _ranks(outputs: int) -> Any:
    """Write w[j, k] += g[j] x[k] for so many j and one vector of the batch, from x side by side; real numbers only.

    `steps` vectors hold x and a row of w; g is a number in a row of a tile.
    """

    def ranks(
        e: TileEmitter, g: ir.Value, gj: ir.Value, x: ir.Value, w: ir.Value, wj: ir.Value, steps: ir.Value
    ) -> None:
        factors = [e.broadcast(e.rows(g, e.mul(gj, j))) for j in range(outputs)]
        starts = [e.weights(w, e.mul(wj, j)) for j in range(outputs)]
        with e.loop(0, steps) as loop:
            offset = e.mul(loop.index, e.lanes)
            given = e.load(e.at(x, offset))
            for factor, start in zip(factors, starts, strict=True):
                place = e.at(start, offset)
                e.store(e.fma(factor, given, e.load(place)), place)

    return tiled(ranks)


ranks1, ranks8 = _ranks(1), _ranks(8)


def _columns(vectors: int) -> Any:
    """Write y[k] = sum over j of w[j, k] g[j] for so many vectors of k, side by side, and one vector of the batch.

    Real numbers only; g is a number in a row of a tile.
    """

    def columns(
        e: TileEmitter, g: ir.Value, gj: ir.Value, w: ir.Value, wj: ir.Value, y: ir.Value, outputs: ir.Value
    ) -> None:
        with e.loop(0, outputs, carry=[g, w, *[e.constant(0.0)] * vectors]) as loop:
            given, start, *sums = loop.carried
            factor = e.broadcast(given)
            sums = [e.fma(factor, e.load(e.at(start, v * e.lanes)), old) for v, old in enumerate(sums)]
            loop.carried = [e.rows(given, gj), e.weights(start, wj), *sums]
        for v, total in enumerate(loop.carried[2:]):
            e.store(total, e.at(y, v * e.lanes))

    return tiled(columns)


columns1, columns4 = _columns(1), _columns(4)
