"""General blocks whose vectors stay rows: how calls of these kernels are made, and for which chains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import blocks_rows_kernels as kernels
from . import workers
from .blocks_call import TAGS, WIDE, Call, place
from .blocks_kernels import SPEC
from .simd import vector_bytes

WORTH = 2.5
"""Numbers of x and y for each weight: with fewer, packing weights costs more than transposing x and y does."""

LIGHT = 1 << 20
"""Bytes of weights that the second cache holds. Heavier ones are read again too often."""

NEAR, SHORT = 6 << 20, 2 << 10
"""Bytes of x and y that come from caches; bytes of rows that come from beyond as fast, being read in pieces."""

TILE = 64
"""Rows that go through all factors together."""

REGISTERS = vector_bytes() == 64
"""Whether panels fit: such machines have twice as many registers as others, where nothing was measured."""

REAL = (torch.float32, torch.float64)


class PackedWeights(NamedTuple):
    """Weights as these kernels read them: their address, and the memory that holds them."""

    address: int
    memory: np.ndarray


def packs(words: Sequence[int], dtype: torch.dtype, nnz: int) -> bool:
    """Whether these kernels compute factors, from the words of a call, and faster for a good number of rows.

    >>> packs([0, 8, 3, 3, 1, 0], torch.float32, 72), packs([0, 8, 16, 16, 1, 0], torch.complex64, 2048)
    (False, False)
    """
    if nnz * dtype.itemsize > LIGHT or dtype not in REAL or not REGISTERS:
        return False
    lanes = WIDE[dtype] // dtype.itemsize
    for at in range(0, len(words), SPEC):
        b, _, d = words[at + 2 : at + 5]
        if (d % lanes) if d > 1 else (b % lanes):
            return False
    return True


def suits(words: Sequence[int], dtype: torch.dtype, nnz: int, widest: int, numbers: int) -> bool:
    """Whether these kernels compute such factors and are faster for so many numbers of x and y together."""
    return numbers >= WORTH * nnz and near(dtype, widest, numbers) and packs(words, dtype, nnz)


def near(dtype: torch.dtype, widest: int, numbers: int) -> bool:
    """Whether so many numbers of x and y are close enough to be read and written in pieces."""
    return numbers * dtype.itemsize <= NEAR or widest * dtype.itemsize <= SHORT


def packed_sizes(call: Call, item: int) -> list[int]:
    """Bytes of the packed weights of each factor: a row of those with d > 1 has a vector to spare."""
    pairs = zip(call.weights, call.words[4::SPEC], strict=True)
    return [w.shape[0] * w.shape[1] * (w.shape[2] + (d > 1)) * item for w, d in pairs]


def _bytes(call: Call, item: int) -> int:
    """Bytes of the packed weights of all factors."""
    return sum(packed_sizes(call, item))


def pack(call: Call, dtype: torch.dtype, threads: int = 1) -> PackedWeights:
    """The weights of a call as these kernels read them, in memory of their own; threads share the factors."""
    wide, spec, count = WIDE[dtype], call.words.buffer_info()[0], len(call.weights)
    sizes = packed_sizes(call, dtype.itemsize)
    table = 8 * wide  # an address for each lane, for each factor
    start, memory = workers.aligned(count * table + sum(sizes))
    address = start + count * table

    def part(first: int, stop: int) -> None:
        for f in range(first, stop):
            at = spec + 8 * SPEC * f
            kernels.pack(TAGS[dtype, wide], at, 1, address + sum(sizes[:f]), start + f * table)

    workers.run(part, workers.split(count, threads))
    return PackedWeights(address, memory)


def forward(call: Call, x: torch.Tensor, y: torch.Tensor, threads: int, packed: PackedWeights | None = None) -> None:
    """Write the product for the rows of x into the rows of y."""
    rows, item, wide = x.shape[0], x.element_size(), WIDE[x.dtype]
    tag, spec, count = TAGS[x.dtype, wide], call.words.buffer_info()[0], len(call.weights)
    x, source, x_pitch = place(x)
    target, y_pitch = y.data_ptr(), call.form.m * item
    tile = min(TILE, rows)
    # rows begin at a vector, and not a power of two apart: a cache holds few such lines
    pitch = -(-call.form.widest * item // wide) * wide + wide
    area = tile * pitch if count > 1 else 0
    if packed is None and threads > 1 and call.form.nnz * item > LIGHT:
        packed = pack(call, x.dtype, threads)  # else each thread packs for itself
    size = 0 if packed else _bytes(call, item)
    table = 8 * wide

    def part(start: int, stop: int) -> None:
        memory, _memory = workers.scratch(table + 2 * area + size)
        this = memory + table
        weights = packed.address if packed else this + 2 * area
        if not packed:
            kernels.pack(tag, spec, count, weights, memory)
        kernels.forward_rows(
            tag, spec, count, weights, source, x_pitch, target, y_pitch, start, stop, tile, this, this + area, pitch
        )

    if threads == 1:  # starting one part by itself costs less
        part(0, rows)
    else:
        workers.run(part, workers.split(rows, threads, 4))
