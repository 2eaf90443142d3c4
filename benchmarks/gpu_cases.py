"""What one row of `gpu_multiply.py` measures: times, the error against float64, a race check, counters."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import torch

DEVICE = "cuda"
ROWS = 25088  # 196 tokens of 128 images: the batch of the Kronecker-sparse literature
SIZES = (512, 768, 1024, 2048, 4096, 8192)
BLOCKS = (16, 32, 64)
MANY = 1 << 16
AGAIN = 4  # more runs whose results must have the same bits: an error that moves is a race
EXACT = 1 << 27  # numbers per float64 tensor; of more than that the first rows are checked
# rounding of one factor: to the nearest number of the dtype, and of the sums
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
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
    sizes, blocks, count = (SIZES[2:4], (32,), 4) if quick else (SIZES, BLOCKS, 40)
    shapes = list(itertools.product(sizes, blocks))
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


def monarch(n: int, blocks: int, rows: int) -> tuple[Any, list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """A square Monarch pair, its values, x and a gradient of the result (rows, n), a dense matrix; bfloat16."""
    from flatwing import Chain, Pattern

    side = n // blocks
    chain = Chain([Pattern(1, blocks, blocks, side), Pattern(blocks, side, side, 1)])
    options: dict[str, Any] = {"device": DEVICE, "dtype": torch.bfloat16}
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
    from flatwing.kernels.gpu.model import pair_weights_choices

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
    if pair_weights_choices(*chain.patterns, rows, "half", False, device_of(x.device.index)):
        methods["weights fused"] = lambda: ours.pair_weights_gradient(x, grad, w, chain.patterns, False)
    times = timed(methods)
    row = {
        "weights fused over apart": seconds(times, "weights apart") / seconds(times, "weights fused"),
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
    from flatwing.kernels.gpu.device import device_of

    mine, task = seconds(times, "ours"), Task(chain, rows, torch.bfloat16, "cuda", train=products > 1)
    row = {
        "times": times,
        "over dense": seconds(times, "dense") / mine,
        "over bmm": seconds(times, "bmm") / mine,
        "over the roofline": moved / device_of(None).memory / mine,
        "over the model": BACKENDS["triton"].seconds(task) / mine,
        "time / copy": mine / (products * seconds(times, "copy")),
        **row,
    }
    missed = row["over the roofline"] < TARGETS["over the roofline"] or row["over dense"] < TARGETS["over dense"]
    operations = 2 * products * rows * chain.nnz
    return row | {"counters": counters(chain.patterns, moved, operations, mine, run if missed else None)}


def timed(methods: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Name -> seconds, or the reason why there are none."""
    found: dict[str, Any] = {}
    for name, run in methods.items():
        try:
            found[name] = median(run)
        except Exception as error:  # a peer that cannot is part of the result, too
            found[name] = said(error)
            torch.cuda.empty_cache()
    return found


def median(run: Callable[[], Any]) -> float:
    """Median seconds of one call on the device, after warming up."""
    from triton.testing import do_bench

    return 1e-3 * float(do_bench(run, warmup=25, rep=100, return_mode="median"))


def seconds(times: dict[str, Any], *names: str) -> float:
    """The shortest time of those among these that ran, or NaN."""
    return min((times[n] for n in names if isinstance(times.get(n), float)), default=float("nan"))


def said(error: BaseException) -> str:
    """The first line of an exception."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:120] if text else ''}"


def checked(*args: Any) -> dict[str, Any]:
    """What `check` says, or why it says nothing."""
    try:
        return check(*args)
    except Exception as error:
        return {"correct": None, "check": said(error)}


def check(
    run: Callable[..., list[torch.Tensor]],
    x: torch.Tensor,
    w: Sequence[torch.Tensor],
    depths: Sequence[int],
    grad: torch.Tensor | None,
) -> dict[str, Any]:
    """Largest error against float64, relative to the norm, and whether more runs give the same bits.

    The gradients of values of many rows are sums of as many products of rounded numbers: their errors average out.
    """
    from flatwing.structure.factor import apply_factor

    inputs: tuple[torch.Tensor, ...] = (x,) if grad is None else (x, grad)
    first = run(*inputs)
    same = all(torch.equal(a, b) for _ in range(AGAIN) for a, b in zip(first, run(*inputs), strict=True))
    height = min(len(x), max(1, EXACT // max(t.shape[1] for t in (x, first[0]))))
    if height < len(x):
        inputs = tuple(t[:height] for t in inputs)
        first = run(*inputs)
    leaves = [t.detach().double().requires_grad_(grad is not None) for t in (inputs[0], *w)]
    y = leaves[0].T
    for v, d in list(zip(leaves[1:], depths, strict=True))[::-1]:
        y = apply_factor(v, y, d)
    right = [y.T] if grad is None else [y.T, *torch.autograd.grad(y.T, leaves, inputs[1].double())]
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(first, right, strict=True)]
    fine = same and all(e <= len(w) * TOLERANCE[x.dtype] for e in errors)  # NaN is not fine
    return {"errors": errors, "same bits": same, "correct": fine}


def counters(
    members: Sequence[Any], moved: int, operations: int, time: float, missed: Callable[[], Any] | None
) -> dict[str, Any]:
    """What explains a time: least bytes and operations, the rates reached, and the tiles that were chosen.

    Where a target was missed, also the time without the launches (in a CUDA graph), what the model says of the tiles,
    and what each launch of `missed` uses of the device: spilled bytes, registers, shared memory, tensor cores.
    """
    from flatwing.kernels.gpu import tune

    wanted = {*members, *(p.T for p in members)}
    found: dict[str, Any] = {
        "bytes": moved,
        "operations": operations,
        "bytes per second": moved / time,
        "operations per second": operations / time,
        "tiles": sorted({f"{key[0]}: {tile}" for key, tile in tune._picked.items() if {*key[1]} <= wanted}),
    }
    if missed is not None:
        for name, ask in {"graph seconds": in_a_graph, "launches": resources}.items():
            try:
                found[name] = ask(missed)
            except Exception as error:
                found[name] = said(error)
    return found


def in_a_graph(run: Callable[[], Any]) -> float:
    """Seconds of one call without what Python and the driver take to launch it."""
    from triton.testing import do_bench_cudagraph

    return 1e-3 * float(do_bench_cudagraph(run, rep=50, return_mode="median"))


def resources(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The launches of one call, compiled again to be looked at."""
    from flatwing.kernels.gpu import ahead
    from flatwing.kernels.gpu.device import device_of
    from flatwing.kernels.gpu.launch import Launch

    seen: list[Launch] = []
    original = Launch.run

    def watched(self: Launch) -> None:
        seen.append(self)
        original(self)

    Launch.run = watched
    try:
        run()
    finally:
        Launch.run = original
    major, minor = device_of(None).capability
    return [
        {
            "kernel": launch.kernel.__name__,
            "programs": launch.programs,
            "options": {k: v for k, v in launch.options.items() if k.isupper() or k.startswith("num")},
            **ahead.compile_for(10 * major + minor, launch)._asdict(),
        }
        for launch in seen
    ]
