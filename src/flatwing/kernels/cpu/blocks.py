"""General blocks on the CPU: products of factors of any pattern, and their gradients, tile by tile in cache."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from ...structure import Chain
from ..backend import Gradients, Prepared
from . import blocks_backward, blocks_kernels, blocks_rows, vectors, workers
from .blocks_call import SCALARS, SECONDS, TAGS, WIDE, Call, call_of, place
from .blocks_cost import seconds as seconds


def unsupported_because(chain: Chain, dtype: torch.dtype, rows: int, last: bool) -> str | None:
    """None if these kernels compute it, else a reason; they take every chain, number of rows and layout.

    >>> unsupported_because(Chain.butterfly(8), torch.bfloat16, 4, False)
    'bfloat16 is not computed by the numba kernels; they take float32, float64, complex64 and complex128'
    """
    if dtype in SCALARS:
        return None
    name = str(dtype).removeprefix("torch.")
    return f"{name} is not computed by the numba kernels; they take float32, float64, complex64 and complex128"


HEAVY = 4 << 20
"""Bytes of weights that caches near the core do not hold."""

SHARERS, NEIGHBOURS = 6, 8
"""Tiles that share heavy weights; tiles of a batch-last matrix that are read together, several lines of each row."""

TILES = 12 << 20
"""Bytes of tiles in work, at most, unless one is larger."""


def _group(wanted: int, tiles: int, size: int) -> int:
    """How many of so many tiles, of `size` bytes each with all that is kept of them, are in work at once."""
    return max(1, min(wanted, tiles, TILES // size))


def _row(dtype: torch.dtype, rows: int) -> int:
    """Bytes of a row of the tiles for so many rows of x."""
    wide = WIDE[dtype]
    half = wide // 2
    return half if rows * dtype.itemsize <= half and (dtype, half) in TAGS else wide


def forward(
    x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool, threads: int
) -> torch.Tensor:
    """x @ (K_1 ... K_L)^T as a new contiguous (rows, m), or (m, rows) if `last`; arguments as for `Backend.forward`.

    >>> forward(torch.ones(1, 4), [torch.ones(2, 2, 2)] * 2, [2, 1], False, 1).tolist()
    [[4.0, 4.0, 4.0, 4.0]]
    """
    call = call_of(factors, depths)
    rows = x.shape[1 if last else 0]
    if vectors.suits(rows, call.form.nnz, x.dtype, last):
        return vectors.run(call, x.mT).mT if last else vectors.run(call, x)
    return _run(call, x, last, threads)


SMALL = Chain.butterfly(27)
"""A product that no other kernels take."""


def example(chain: Chain, rows: int, dtype: torch.dtype, last: bool, packed: bool) -> tuple[Chain, int]:
    """A small product, and a number of rows, that need the same code: tiles for few or many rows, or no tiles.

    >>> example(Chain.monarch(1024, 1024, blocks=32), 1, torch.float32, False, False)[1]
    1
    """
    if vectors.suits(rows, chain.nnz, dtype, last):
        return SMALL, 1
    words = [word for p in reversed(chain.patterns) for word in (0, *p, 0)]
    many = packed or (not last and rows * sum(chain.shape) >= blocks_rows.WORTH * chain.nnz)
    if many and blocks_rows.packs(words, dtype, chain.nnz):
        return Chain.monarch(256, 256, blocks=16), 64
    return SMALL, (3 if _row(dtype, rows) < WIDE[dtype] else 64)


def preparing_seconds(chain: Chain, dtype: torch.dtype) -> float:
    """What `seconds` counts for looking up where weights are, which `prepared` does once."""
    return vectors.preparing_seconds(chain)


def prepared(factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Prepared:
    """`forward` of rows with these weights, which nobody may change any more: a function of x and a number of threads.

    >>> prepared([torch.ones(2, 2, 2)] * 2, [2, 1])(torch.ones(1, 4), 1).tolist()
    [[4.0, 4.0, 4.0, 4.0]]
    """
    call, dtype = call_of(factors, depths), factors[0].dtype
    packs = blocks_rows.packs(call.words, dtype, call.form.nnz)
    packed: list[blocks_rows.PackedWeights] = []

    def run(x: torch.Tensor, threads: int) -> torch.Tensor:
        if vectors.suits(x.shape[0], call.form.nnz, dtype):
            return vectors.run(call, x)
        if packs and not packed:  # few vectors do not need it
            packed.append(blocks_rows.pack(call, dtype))
        return _run(call, x, False, threads, packed[0] if packs else None)

    return run


def _run(
    call: Call, x: torch.Tensor, last: bool, threads: int, packed: blocks_rows.PackedWeights | None = None
) -> torch.Tensor:
    words, weights, (_, n, m, widest, inner, _, nnz) = call
    rows = x.shape[1 if last else 0]
    y = x.new_empty((m, rows) if last else (rows, m))
    if rows == 0:
        return y
    dtype, item = x.dtype, x.element_size()
    if threads > 1:
        threads = workers.useful(threads, rows * nnz * SECONDS[dtype])
    numbers = rows * (n + m) // threads
    # calls for few vectors are short: they ask no further
    many = packed or not (last or numbers < blocks_rows.WORTH * nnz)
    if many and blocks_rows.near(dtype, widest, numbers) and (packed or blocks_rows.packs(words, dtype, nnz)):
        blocks_rows.forward(call, x, y, threads, packed)
        return y
    x, source, x_pitch = place(x)
    y_pitch = (rows if last else m) * item
    row = _row(dtype, rows)
    width = row // item
    # small blocks do not share: between two blocks, tiles would leave the caches
    heavy = nnz * item > HEAVY and inner >= 64
    wanted = NEIGHBOURS if last else SHARERS if heavy else 1
    group = _group(wanted, -(-rows // width), 2 * row * widest)
    lines = row * (inner + 2 * widest * group)
    spare = item * (n if n > m else m)
    tag, spec, target, count = TAGS[dtype, row], words.buffer_info()[0], y.data_ptr(), len(weights)

    def part(start: int, stop: int) -> None:
        tiles, _memory = workers.scratch(lines + 8 * width + spare)
        table = tiles + lines
        blocks_kernels.forward_tiles(
            tag, spec, count, source, x_pitch, target, y_pitch, last, start, stop, rows,
            table, table + 8 * width, tiles, widest, inner, group, heavy,
        )  # fmt: skip

    if threads == 1 or rows <= width:
        part(0, rows)
    else:
        workers.run(part, workers.split(rows, threads, width))
    return y


def backward(
    x: torch.Tensor,
    factors: Sequence[torch.Tensor],
    depths: Sequence[int],
    grad: torch.Tensor,
    last: bool,
    need_x: bool,
    need_factors: bool,
    threads: int,
) -> Gradients:
    """Gradients for x and the factors, as autograd conjugates them; arguments as for `Backend.backward`.

    >>> grads = backward(torch.ones(3, 2), [torch.ones(1, 1, 2)], [1], torch.ones(3, 1), False, True, True, 1)
    >>> grads.x.tolist(), grads.factors[0].tolist()
    ([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [[[3.0, 3.0]]])
    """
    call = call_of(factors, depths)
    form = call.form
    rows = x.shape[1 if last else 0]
    dtype, item = x.dtype, x.element_size()
    row = _row(dtype, rows)
    width = row // item
    threads = workers.useful(threads, 5 * rows * form.nnz * SECONDS[dtype])
    parts = workers.split(rows, threads, width) if rows else []
    # tensors of their own: cutting one into pieces takes longer than asking for several
    sums = [[w.new_zeros(w.shape) for w in call.weights] if need_factors else [] for _ in parts or [()]]
    y = x.new_empty(((form.n, rows) if last else (rows, form.n)) if need_x else (0, 0))
    x, source, x_pitch = place(x)
    grad, given, g_pitch = place(grad)
    kept = 2 * form.widest + (form.kept if need_factors else 0)
    group = _group(NEIGHBOURS if last else 1, -(-rows // width), row * kept)
    lines = 2 * form.inner + group * kept
    edge = 2 * item * max(form.n, form.m)

    def part(number: int, start: int, stop: int) -> None:
        words = array("q", call.words)
        for f, total in enumerate(sums[number]):
            words[blocks_kernels.SPEC * f + 5] = total.data_ptr()
        tiles, _memory = workers.scratch(row * lines + 8 * width + edge + 8)
        table = tiles + row * lines
        blocks_backward.backward_tiles(
            TAGS[dtype, row], words.buffer_info()[0], len(factors), source, x_pitch, given, g_pitch,
            y.data_ptr(), (rows if last else form.n) * item, last, start, stop, rows,
            table, table + 8 * width, tiles, form.widest, form.inner, form.kept, group, need_x, need_factors,
        )  # fmt: skip

    if len(parts) == 1:  # starting one part by itself costs less
        part(0, *parts[0])
    elif parts:
        workers.run(part, [(number, *span) for number, span in enumerate(parts)])
    if not need_factors:
        return Gradients(y if need_x else None, None)
    totals, *others = sums
    for other in others:
        for total, more in zip(totals, other, strict=True):
            total += more
    return Gradients(y if need_x else None, totals[::-1])
