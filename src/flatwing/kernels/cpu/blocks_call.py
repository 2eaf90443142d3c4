"""What a call of the kernels for general blocks is made of: types of numbers, tags of tiles, where factors are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..backend import LOW, resolved
from .simd import vector_bytes
from .tiles import UNIT

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


class Call(NamedTuple):
    """The factors of one call, as the kernels read them, and the sizes of the memory they need."""

    words: array[int]
    weights: list[torch.Tensor]
    """Kept alive while their addresses are in use."""
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


def call_of(factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Call:
    """The call for factors (blocks, b, c), the first one applied last, and their d.

    >>> call = call_of([torch.ones(2, 3, 2)] * 2, [2, 1])
    >>> call.n, call.m, call.nnz, call.words[1:5].tolist()
    (4, 6, 24, [2, 3, 2, 1])
    """
    words: array[int] = array("q")
    weights: list[torch.Tensor] = []
    n = m = widest = inner = kept = nnz = 0
    for w, d in zip(reversed(factors), reversed(depths), strict=True):
        if not w.is_contiguous() or w.is_complex() or w.is_neg() or w.data_ptr() < LOW:
            w = resolved(w).contiguous()
        weights.append(w)
        blocks, b, c = w.shape
        words.extend((w.data_ptr(), blocks // d, b, c, d, 0))
        m, columns = blocks * b, blocks * c
        n = n or columns
        # this runs once per factor in every call: comparisons are cheaper than max()
        if m > widest:
            widest = m
        if columns > widest:
            widest = columns
        if b > inner:
            inner = b
        if c > inner:
            inner = c
        kept += columns
        nnz += columns * b
    return Call(words, weights, n, m, widest, inner, kept, nnz)


def place(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """x, or a copy whose last dimension is contiguous, its address, and the bytes from one row to the next."""
    x = resolved(x)
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    return x, x.data_ptr(), x.stride(0) * x.element_size()
