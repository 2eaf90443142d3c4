"""What a call of the kernels for general blocks is made of: types of numbers, tags of tiles, where factors are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch

from ..backend import LOW, resolved, solid
from .blocks_kernels import SPEC
from .simd import vector_bytes
from .tiles import UNIT

_SHAPE = attrgetter("shape")

SCALARS = {
    torch.float32: np.float32(0),
    torch.float64: np.float64(0),
    torch.complex64: np.complex64(0),
    torch.complex128: np.complex128(0),
}
WIDE = {dtype: vector_bytes() * (2 if dtype.is_complex else 1) for dtype in SCALARS}
"""Bytes of a row of a tile: one vector, or one of real and one of imaginary parts."""

SECONDS = {dtype: 5e-12 * dtype.itemsize * (2 if dtype.is_complex else 1) for dtype in SCALARS}
"""Time of one multiplication in a large product, by which it is judged whether threads are worth waking."""

TAGS = {
    (dtype, row): (scalar,) * (row // UNIT)
    for dtype, scalar in SCALARS.items()
    for row in (WIDE[dtype] // 2, WIDE[dtype])
    if row >= (2 * UNIT if dtype.is_complex else UNIT)
}
"""Tags of tiles, by type and bytes of a row; half vectors are for few rows."""


class Form(NamedTuple):
    """What calls have in common whose factors have the same sizes."""

    words: array[int]
    """The factors as the kernels read them, without addresses."""
    n: int
    m: int
    widest: int
    """Largest number of rows or columns of a factor."""
    inner: int
    """Largest b or c."""
    kept: int
    """Entries of the inputs of all factors."""
    nnz: int
    """Weights of all factors."""


class Call(NamedTuple):
    """The factors of one call, as the kernels read them, and what is known of their sizes."""

    words: array[int]
    weights: Sequence[torch.Tensor]
    """In the order of the words; kept alive while their addresses are in use."""
    form: Form


def call_of(factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Call:
    """The call for factors (blocks, b, c), the first one applied last, and their d.

    >>> call = call_of([torch.ones(2, 3, 2)] * 2, [2, 1])
    >>> call.form.n, call.form.m, call.form.nnz, call.words[1:5].tolist()
    (4, 6, 24, [2, 3, 2, 1])
    """
    if any(map(torch.Tensor.is_neg, factors)) or any(map(torch.Tensor.is_conj, factors)):
        factors = list(map(resolved, factors))
    return called(factors, form_of(tuple(map(_SHAPE, factors)), tuple(depths)))


def called(factors: Sequence[torch.Tensor], form: Form) -> Call:
    """The call for factors of this form, without conjugation or negation that torch only noted."""
    weights, pointers = readable(factors)
    words = form.words[:]
    words[::SPEC] = array("q", pointers[::-1])
    return Call(words, weights[::-1], form)


def readable(factors: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], tuple[int, ...]]:
    """The factors, copied unless they are contiguous, and their addresses; on the way of every call."""
    if not all(map(torch.Tensor.is_contiguous, factors)):  # map: loops in Python take a microsecond
        factors = [w.contiguous() for w in factors]
    pointers = tuple(map(torch.Tensor.data_ptr, factors))
    if min(pointers) < LOW:
        factors = list(map(solid, factors))
        pointers = tuple(map(torch.Tensor.data_ptr, factors))
    return factors, pointers


@lru_cache(maxsize=1024)
def form_of(shapes: Sequence[torch.Size], depths: Sequence[int]) -> Form:
    """The form of factors (blocks, b, c) and their d, both as tuples."""
    shapes, depths = shapes[::-1], depths[::-1]
    words: array[int] = array("q")
    for (blocks, b, c), d in zip(shapes, depths, strict=True):
        words.extend((0, blocks // d, b, c, d, 0))
    outputs, inputs = [blocks * b for blocks, b, _ in shapes], [blocks * c for blocks, _, c in shapes]
    inner = max(max(b, c) for _, b, c in shapes)
    nnz = sum(blocks * b * c for blocks, b, c in shapes)
    return Form(words, inputs[0], outputs[-1], max(outputs + inputs), inner, sum(inputs), nnz)


def place(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """x, or a copy whose rows are contiguous, its address, and the bytes from one row to the next."""
    lead, step = x.stride()
    if (step != 1 and x.shape[1] > 1) or x.data_ptr() < LOW or x.is_neg() or x.is_conj():
        x = resolved(x).contiguous()
        lead = x.stride()[0]
    return x, x.data_ptr(), lead * x.element_size()
