"""Real blocks with whole vectors: their vectors stay rows, forwards and backwards, however large the blocks are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...structure import Chain
from ..backend import Gradients, Prepared
from . import blocks_rows, panels_gradients, workers
from .blocks_call import SECONDS, TAGS, WIDE, Call, call_of, place
from .blocks_kernels import SPEC


def tile_of(rows: int, weights: int) -> int:
    """How many rows go through all factors together for gradients, from the bytes of the weights.

    Heavy weights are read, and their gradients written, seldom where many rows share that; few rows stay in caches.
    Measured: 32 rows are best with 2 MB of weights, and 128 with 16 MB.

    >>> tile_of(1000, 2 << 20), tile_of(1000, 8 << 20), tile_of(1000, 1 << 30), tile_of(5, 1 << 30)
    (32, 64, 128, 5)
    """
    return min(rows, max(32, min(128, weights >> 17)))


def unsupported_because(chain: Chain, dtype: torch.dtype, last: bool) -> str | None:
    """None if these kernels compute it, and both gradients, else a reason.

    >>> unsupported_because(Chain.monarch(1024, 1024, blocks=32), torch.float32, True)
    'the vectors are columns; panels take rows'
    """
    if last:
        return "the vectors are columns; panels take rows"
    if dtype not in blocks_rows.REAL:
        return f"{str(dtype).removeprefix('torch.')} is not computed by panels; they take float32 and float64"
    if not blocks_rows.REGISTERS:
        return "panels need the 32 registers of AVX-512, which this machine does not have"
    lanes = WIDE[dtype] // dtype.itemsize
    for p in chain:
        if (p.d % lanes) if p.d > 1 else (p.b % lanes or p.c % lanes):
            return f"a factor is {p}; panels take d, or both sides of blocks with d = 1, that {lanes} divides"
    return None


def forward(x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], threads: int) -> torch.Tensor:
    """x @ (K_1 ... K_L)^T as a new contiguous (rows, m); arguments as for `Backend.forward`, vectors as rows.

    >>> forward(torch.ones(1, 16), [torch.ones(1, 16, 16)], [1], 1)[0, :3].tolist()
    [16.0, 16.0, 16.0]
    """
    return _forward(call_of(factors, depths), x, threads)


def prepared(factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Prepared:
    """`forward` with these weights, which nobody may change any more: a function of x and a number of threads."""
    call = call_of(factors, depths)
    packed = blocks_rows.pack(call, factors[0].dtype)
    return lambda x, threads: _forward(call, x, threads, packed)


def _forward(
    call: Call, x: torch.Tensor, threads: int, packed: blocks_rows.PackedWeights | None = None
) -> torch.Tensor:
    y = _result(x, (x.shape[0], call.form.m))
    if len(x):
        blocks_rows.forward(call, x, y, workers.useful(threads, len(x) * call.form.nnz * SECONDS[x.dtype]), packed)
    return y


def _result(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    y = x.new_empty(shape)
    workers.expect(y.data_ptr(), y.nbytes)
    return y


def backward(
    x: torch.Tensor,
    factors: Sequence[torch.Tensor],
    depths: Sequence[int],
    grad: torch.Tensor,
    need_x: bool,
    need_factors: bool,
    threads: int,
) -> Gradients:
    """Gradients for x and the factors; arguments as for `Backend.backward`, vectors as rows.

    >>> grads = backward(torch.ones(3, 16), [torch.ones(1, 16, 16)], [1], torch.ones(3, 16), True, True, 1)
    >>> grads.x[0, 0].item(), grads.factors[0][0, 0, 0].item()
    (16.0, 3.0)
    """
    call, rows = call_of(factors, depths), x.shape[0]
    dtype, item = x.dtype, x.element_size()
    gx = _result(x, (rows, call.form.n) if need_x else (0, 0))
    if rows == 0:
        return Gradients(gx if need_x else None, [torch.zeros_like(w) for w in factors] if need_factors else None)
    x, source, x_pitch = place(x)
    grad, given, g_pitch = place(grad)
    wide = WIDE[dtype]
    tag, count, tile = TAGS[dtype, wide], len(call.weights), tile_of(rows, call.form.nnz * item)
    threads = workers.useful(threads, 3 * rows * call.form.nnz * SECONDS[dtype])
    parts = workers.split(rows, threads, 4)
    packed = blocks_rows.pack(call, dtype, threads)
    # rows begin at a vector, and not a power of two apart: a cache holds few such lines
    pitch = -(-call.form.widest * item // wide) * wide + wide
    deep = zip(blocks_rows.packed_sizes(call, item), call.words[4::SPEC], strict=True)
    size = sum(bytes_ for bytes_, d in deep if d > 1) if need_factors else 0

    def part(start: int, stop: int) -> list[torch.Tensor]:
        gradients = [torch.empty_like(w) for w in call.weights] if need_factors else []
        words = call.words[:]
        for f, w in enumerate(gradients):
            words[SPEC * f + 5] = w.data_ptr()
        # apart: what the system takes back after each call, as it does with the largest, costs its pages again
        table, _sums = workers.aligned(8 * wide + size)
        tiles, _tiles = workers.aligned((count + 1) * tile * pitch)
        panels_gradients.backward_rows(
            tag, words.buffer_info()[0], count, packed.address, source, x_pitch, given, g_pitch, gx.data_ptr(),
            call.form.n * item, start, stop, tile, table, table + 8 * wide, tiles, pitch, need_x, need_factors,
        )  # fmt: skip
        return gradients

    first, *others = workers.run(part, parts)
    for other in others:
        for total, more in zip(first, other, strict=True):
            total.add_(more)
    return Gradients(gx if need_x else None, first[::-1] if need_factors else None)
