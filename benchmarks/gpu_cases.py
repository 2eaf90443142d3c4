"""The rows of `gpu_multiply.py`: which there are, and the methods that compete in each of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from math import gcd
from typing import Any

import gpu_measure
import torch
from gpu_measure import checked, counters, roofline, said, seconds, timed

DEVICE = "cuda"
ROWS = 25088  # 196 tokens of 128 images: the batch of the Kronecker-sparse literature
SIZES = (512, 768, 1024, 2048, 4096, 8192)
BLOCKS = (16, 32, 64)
MANY = 1 << 16
# smallest ratio that counts as reached
TARGETS = {"over the roofline": 0.8, "over dense": 1.0, "over bmm": 2.0, "over the best peer": 1.4}

Case = tuple[str, tuple[Any, ...]]
"""Name of a function of this module, and what it is called with."""


def patterns(count: int) -> list[tuple[int, int, int, int]]:
    """Patterns as in the literature (a, d from 1 to 128, b, c from 48 to 1024) that fit; the same ones each time."""
    grid = itertools.product(
        (1, 2, 3, 4, 16, 64, 128), (1, 2, 3, 4, 16, 64, 128), *((48, 64, 128, 256, 512, 1024),) * 2
    )
    everything = [
        (a, b, c, d)
        for a, d, b, c in grid
        if b in (c, 4 * c) or c == 4 * b
        if a * d * min(b, c) >= 512 and a * d * max(b, c) <= 16384
    ]
    return random.Random(0).sample(everything, count)


def cases(quick: bool) -> list[Case]:
    """All rows, those that the targets speak of first, so that a run that is cut short has these."""
    shapes, count = ([(512, 16), (1024, 32)], 4) if quick else (list(itertools.product(SIZES, BLOCKS)), 40)
    dtypes = ("bfloat16", "float32")
    single = [("single", (p, dtype)) for p in patterns(count) for dtype in dtypes]
    few = [] if quick else [(n, b, rows) for rows in (1 << 12, 1 << 7) for n, b in shapes]
    return [
        *(("pair", (n, b, MANY)) for n, b in shapes),
        *single[: len(single) // 2],
        *(("step", (n, b, MANY)) for n, b in shapes),
        *single[len(single) // 2 :],
        *(("pair", shape) for shape in few),
        *(("step", shape) for shape in few),
    ]


def label(case: Case) -> dict[str, Any]:
    """What a row says of its case, whatever becomes of it."""
    kind, args = case
    if kind == "single":
        return {"kind": kind, "chain": "({},{},{},{})".format(*args[0]), "dtype": args[1], "rows": ROWS}
    n, blocks, rows = args
    side = n // blocks
    return {
        "kind": kind,
        "chain": f"(1,{blocks},{blocks},{side})({blocks},{side},{side},1)",
        "dtype": "bfloat16",
        "rows": rows,
        "n": n,
    }


def measure(case: Case) -> dict[str, Any]:
    """The row of one case. Raises what goes wrong outside of the methods that are timed."""
    torch.manual_seed(0)
    return {"single": single, "pair": pair, "step": step}[case[0]](*case[1])


def only_checked(case: Case) -> dict[str, Any]:
    """The row of one case with few vectors and without times, for tools under which everything is slow."""
    global ROWS
    gpu_measure.TIMING, ROWS = False, 256
    kind, args = case
    return measure(case if kind == "single" else (kind, (*args[:2], ROWS)))


def single(sizes: tuple[int, int, int, int], dtype_name: str) -> dict[str, Any]:
    """One factor, forward: ours in both layouts, batched GEMM with permutations, block-sparse, einsum, dense."""
    from flatwing import Pattern
    from flatwing.kernels.backend import BACKENDS
    from flatwing.kernels.gpu import run as ours
    from flatwing.structure.factor import embed

    pattern, dtype, rows = Pattern(*sizes), getattr(torch, dtype_name), ROWS
    a, b, c, d = pattern
    m, n = pattern.shape
    w = torch.randn(a * d, b, c, device=DEVICE, dtype=dtype) / c**0.5
    x, columns = torch.randn(rows, n, device=DEVICE, dtype=dtype), torch.randn(n, rows, device=DEVICE, dtype=dtype)
    dense, blocks, native = embed(w, pattern), w.view(a, d, b, c), BACKENDS["bmm"]
    times = timed(
        {
            "ours": lambda: ours.apply(x, w, pattern, False),
            "ours batch-last": lambda: ours.apply(columns.T, w, pattern, True),
            "bmm": lambda: (
                (x.view(rows, a, c, d).permute(1, 3, 0, 2).reshape(a * d, rows, c) @ w.mT)
                .view(a, d, rows, b)
                .permute(2, 0, 3, 1)
                .reshape(rows, m)
            ),
            "bmm batch-last": lambda: native.forward(columns, [w], (d,), True),
            "einsum": lambda: torch.einsum("naxd,adyx->nayd", x.view(rows, a, c, d), blocks).reshape(rows, m),
            "dense": lambda: torch.nn.functional.linear(x, dense),
            "copy": lambda: x.clone(),
        }
    )
    del dense
    try:
        block_sparse = bsr(pattern, w)
        times |= timed({"bsr": lambda: block_sparse(x)})
    except Exception as error:
        times["bsr"] = said(error)
    ratio = seconds(times, "copy") * (m + n) / (2 * n)
    row: dict[str, Any] = {
        "times": times,
        "over bmm": seconds(times, "bmm") / seconds(times, "ours"),
        "over the best peer": seconds(times, "bmm", "bsr", "einsum", "dense") / seconds(times, "ours"),
        "over the best peer, batch-last": seconds(times, "bmm batch-last") / seconds(times, "ours batch-last"),
        "time / copy": seconds(times, "ours") / ratio,
        **checked(lambda y: [ours.apply(y, w, pattern, False)], x, [w], [d], None),
    }
    moved = dtype.itemsize * (rows * (m + n) + pattern.nnz)
    missed = row["over bmm"] < TARGETS["over bmm"] or row["over the best peer"] < TARGETS["over the best peer"]
    again = (lambda: ours.apply(x, w, pattern, False)) if missed else None
    return row | {"counters": counters([pattern], moved, 2 * rows * pattern.nnz, seconds(times, "ours"), again)}


def bsr(pattern: Any, w: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """One factor as block-sparse rows with the vectors in columns, permuted so that its blocks are dense if d > 1."""
    a, b, c, d = pattern
    sparse = torch.block_diag(*w).to_sparse_bsr((gcd(b, c),) * 2)  # (a d b, a d c); the format wants square blocks

    def run(x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        columns = x.view(rows, a, c, d).permute(1, 3, 2, 0).reshape(a * d * c, rows)
        y = sparse @ columns
        return y.view(a, d, b, rows).permute(3, 0, 2, 1).reshape(rows, a * b * d)

    return run


def monarch(
    n: int, blocks: int, rows: int, device: str | None = None
) -> tuple[Any, list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """A square Monarch pair, its values, x and a gradient of the result (rows, n), a dense matrix; bfloat16."""
    from flatwing import Chain, Pattern

    side = n // blocks
    chain = Chain([Pattern(1, blocks, blocks, side), Pattern(blocks, side, side, 1)])
    options: dict[str, Any] = {"device": device or DEVICE, "dtype": torch.bfloat16}
    w = [torch.randn(p.blocks, p.b, p.c, **options) / p.c**0.5 for p in chain]
    x, grad = (torch.randn(rows, n, **options) for _ in range(2))
    return chain, w, x, grad, torch.randn(n, n, **options) / n**0.5


def pair(n: int, blocks: int, rows: int) -> dict[str, Any]:
    """A Monarch pair, forward: fused, as single factors, as batched GEMMs, dense."""
    from flatwing import SparseProduct, kernels
    from flatwing.kernels.backend import BACKENDS
    from flatwing.kernels.gpu import run as ours

    chain, w, x, _, dense = monarch(n, blocks, rows)
    depths, native, product = [p.d for p in chain], BACKENDS["bmm"], SparseProduct(chain, w)

    def run() -> torch.Tensor:
        return kernels.multiply(x, product, backend="triton")

    times = timed(
        {
            "ours": run,
            "two launches": lambda: ours.apply(ours.apply(x, w[1], chain[1], False), w[0], chain[0], False),
            "bmm": lambda: native.forward(x, w, depths, False),
            "dense": lambda: torch.nn.functional.linear(x, dense),
            "copy": lambda: x.clone(),
        }
    )
    row = checked(lambda y: [ours.forward(y, w, depths, False)], x, w, depths, None)
    return versus(row, times, chain, rows, 2 * (2 * rows * n + chain.nnz), 1, run)


def step(n: int, blocks: int, rows: int) -> dict[str, Any]:
    """A Monarch pair, forward and all gradients; and the gradients of the values alone, in one launch and apart."""
    from flatwing import SparseProduct, kernels
    from flatwing.kernels.backend import BACKENDS
    from flatwing.kernels.gpu import run as ours
    from flatwing.kernels.gpu.device import device_of
    from flatwing.kernels.gpu.groups import backward_grouped
    from flatwing.kernels.gpu.model import factor_choices, pair_weights_choices, weights_choices

    chain, w, x, grad, dense = monarch(n, blocks, rows)
    depths, native = [p.d for p in chain], BACKENDS["bmm"]

    def stepped(forward: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> Callable[[], Any]:
        leaves = tuple(t.detach().requires_grad_() for t in leaves)
        return lambda: torch.autograd.grad(forward(*leaves), leaves, grad)

    def apart() -> list[torch.Tensor]:
        h, dh = ours.apply(x, w[1], chain[1], False), ours.apply(grad, w[0].mT, chain[0].T, False)
        return [ours.weights_gradient(h, grad, chain[0], False), ours.weights_gradient(x, dh, chain[1], False)]

    def both(y: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
        gx, gw = ours.backward(y, w, depths, dy, False)
        return [ours.forward(y, w, depths, False), *([] if gx is None else [gx]), *gw]

    run = stepped(lambda y, *v: kernels.multiply(y, SparseProduct(chain, v), backend="triton"), x, *w)
    methods = {
        "ours": run,
        "bmm": stepped(lambda y, *v: native.forward(y, v, depths, False), x, *w),
        "dense": stepped(torch.nn.functional.linear, x, dense),
        "copy": lambda: x.clone(),
        "weights apart": apart,
    }
    setup = (rows, "half", False, device_of(x.device.index))
    predicted = {
        "weights apart": sum(weights_choices(p, *setup)[0].seconds for p in chain)
        + sum(factor_choices(p, *setup)[0].seconds for p in (chain[1], chain[0].T))
    }
    for choice in pair_weights_choices(*chain.patterns, *setup)[:1]:
        methods["weights fused"] = lambda: ours.pair_weights_gradient(x, grad, w, chain.patterns, False)
        predicted["weights fused"] = choice.seconds
    times = timed(methods)
    row = {
        "weights fused over apart": seconds(times, "weights apart") / seconds(times, "weights fused"),
        "predicted": predicted,
        "fused": backward_grouped(chain.patterns, *setup)[1] == (2,),
        **checked(both, x, w, depths, grad),
    }
    # forward, gradient of x and of the values: two vectors each, if nothing else went through memory
    return versus(row, times, chain, rows, 2 * 3 * (2 * rows * n + chain.nnz), 3, run)


def versus(
    row: dict[str, Any],
    times: dict[str, Any],
    chain: Any,
    rows: int,
    moved: int,
    products: int,
    run: Callable[[], Any],
) -> dict[str, Any]:
    """A row for a pair, with its ratios to the peers, to what memory allows and to what the model says."""
    from flatwing.kernels.backend import BACKENDS, Task

    mine, task = seconds(times, "ours"), Task(chain, rows, torch.bfloat16, "cuda", train=products > 1)
    row = {
        "times": times,
        "over dense": seconds(times, "dense") / mine,
        "over bmm": seconds(times, "bmm") / mine,
        "over the roofline": products * roofline(chain.shape[1], chain[0].b, rows) / mine,
        "over the model": BACKENDS["triton"].seconds(task) / mine,
        "time / copy": mine / (products * seconds(times, "copy")),
        **row,
    }
    missed = row["over the roofline"] < TARGETS["over the roofline"] or row["over dense"] < TARGETS["over dense"]
    operations = 2 * products * rows * chain.nnz
    return row | {"counters": counters(chain.patterns, moved, operations, mine, run if missed else None)}
