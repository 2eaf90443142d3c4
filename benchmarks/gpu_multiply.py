"""Time of the Triton kernels beside what torch offers on the same GPU, in the same process.

    python benchmarks/gpu_multiply.py             # pairs, 40 single patterns, a training step: about fifteen minutes
    python benchmarks/gpu_multiply.py --quick     # a few of each

Prints ratios (above 1: flatwing is faster) and the time over a copy of the activations, which is the physical limit.
Writes benchmarks/results/gpu_multiply.json with the hardware, the date, and for each row what explains it: the tile,
the bytes that must move, the operations, and the rates reached. Rows that we lose stay in. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import statistics
import sys
from collections.abc import Callable
from math import gcd
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
ROWS = 25088  # 196 tokens of 128 images: the batch of the Kronecker-sparse literature
SIZES = (512, 768, 1024, 2048, 4096, 8192)


def patterns(count: int) -> list[Any]:
    """Patterns as in the literature (a, d from 1 to 128, b, c from 48 to 1024) that fit; the same ones each time."""
    from flatwing import Pattern

    everything = [
        Pattern(a, b, c, d)
        for a in (1, 2, 3, 4, 16, 64, 128)
        for d in (1, 2, 3, 4, 16, 64, 128)
        for b in (48, 64, 128, 256, 512, 1024)
        for c in (48, 64, 128, 256, 512, 1024)
        if b in (c, 4 * c) or c == 4 * b
        if a * d * min(b, c) >= 512 and a * d * max(b, c) <= 16384
    ]
    return sorted(random.Random(0).sample(everything, count))


def median(run: Callable[[], Any]) -> float:
    """Median seconds of one call on the device, after warming up."""
    from triton.testing import do_bench

    return 1e-3 * float(do_bench(run, warmup=50, rep=200, return_mode="median"))


def timed(methods: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Name -> seconds, or the reason why there are none."""
    found: dict[str, Any] = {}
    for name, run in methods.items():
        try:
            found[name] = median(run)
        except Exception as error:  # a peer that cannot is a row of the result, too
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
            torch.cuda.empty_cache()
    return found


def seconds(times: dict[str, Any], *names: str) -> float:
    """The shortest time of those among these that ran, or NaN."""
    return min((times[n] for n in names if isinstance(times.get(n), float)), default=float("nan"))


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


def single(pattern: Any, dtype: torch.dtype, rows: int) -> dict[str, Any]:
    """One factor, forward: ours in both layouts, batched GEMM with permutations, block-sparse, einsum, dense."""
    from flatwing.kernels.backend import BACKENDS
    from flatwing.kernels.gpu import run as ours
    from flatwing.structure.factor import embed

    a, b, c, d = pattern
    m, n = pattern.shape
    w = torch.randn(a * d, b, c, device="cuda", dtype=dtype) / c**0.5
    x, columns = torch.randn(rows, n, device="cuda", dtype=dtype), torch.randn(n, rows, device="cuda", dtype=dtype)
    dense = embed(w.float().cpu(), pattern).to("cuda", dtype)
    blocks, native = w.view(a, d, b, c), BACKENDS["bmm"]
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
    try:
        block_sparse = bsr(pattern, w)
        times |= timed({"bsr": lambda: block_sparse(x)})
    except Exception as error:
        times["bsr"] = f"{type(error).__name__}"
    size = dtype.itemsize
    moved, operations = size * (rows * (m + n) + pattern.nnz), 2 * rows * pattern.nnz
    peers = ("bmm", "bsr", "einsum", "dense")
    return {
        "pattern": str(pattern),
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "times": times,
        "over bmm": seconds(times, "bmm") / seconds(times, "ours"),
        "over the best peer": seconds(times, *peers) / seconds(times, "ours"),
        "over the best peer, batch-last": seconds(times, "bmm batch-last") / seconds(times, "ours batch-last"),
        "time / copy": seconds(times, "ours") / (seconds(times, "copy") * (m + n) / (2 * n)),
        "counters": counters(("factor", (pattern,)), moved, operations, seconds(times, "ours")),
    }


def pair(n: int, blocks: int, rows: int, train: bool) -> dict[str, Any]:
    """A Monarch pair in bfloat16: fused, as single factors, as batched GEMMs, dense; and what the model promised."""
    from flatwing import Chain, Pattern, SparseProduct, kernels
    from flatwing.kernels.backend import BACKENDS, Task
    from flatwing.kernels.gpu import run as ours

    dtype, size = torch.bfloat16, n // blocks
    chain = Chain([Pattern(1, blocks, blocks, size), Pattern(blocks, size, size, 1)])
    w = [torch.randn(p.blocks, p.b, p.c, device="cuda", dtype=dtype) / p.c**0.5 for p in chain]
    x, grad = (torch.randn(rows, n, device="cuda", dtype=dtype) for _ in range(2))
    dense = torch.randn(n, n, device="cuda", dtype=dtype) / n**0.5
    depths, native = [p.d for p in chain], BACKENDS["bmm"]

    def fused(y: torch.Tensor, *v: torch.Tensor) -> torch.Tensor:
        return kernels.multiply(y, SparseProduct(chain, v), backend="triton")

    def apart() -> torch.Tensor:
        return ours.apply(ours.apply(x, w[1], chain[1], False), w[0], chain[0], False)

    def step(forward: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> Callable[[], Any]:
        leaves = tuple(t.detach().requires_grad_() for t in leaves)
        return lambda: torch.autograd.grad(forward(*leaves), leaves, grad)

    methods: dict[str, Callable[[], Any]]
    if train:
        methods = {
            "ours": step(fused, x, *w),
            "bmm": step(lambda y, *v: native.forward(y, v, depths, False), x, *w),
            "dense": step(torch.nn.functional.linear, x, dense),
        }
    else:
        methods = {
            "ours": lambda: fused(x, *w),
            "two launches": apart,
            "bmm": lambda: native.forward(x, w, depths, False),
            "dense": lambda: torch.nn.functional.linear(x, dense),
            "copy": lambda: x.clone(),
        }
    times = timed(methods)
    task = Task(chain, rows, dtype, "cuda", train=train)
    moved, operations = 2 * (2 * rows * n + chain.nnz), 2 * rows * chain.nnz
    copy = seconds(times, "copy")
    return {
        "n": n,
        "chain": str(chain),
        "rows": rows,
        "train": train,
        "times": times,
        "over dense": seconds(times, "dense") / seconds(times, "ours"),
        "over bmm": seconds(times, "bmm") / seconds(times, "ours"),
        "over the model": BACKENDS["triton"].seconds(task) / seconds(times, "ours"),
        "time / copy": seconds(times, "ours") / copy,
        "counters": counters(("pair", chain.patterns), moved, operations, seconds(times, "ours")),
    }


def counters(launch: tuple[str, Any], moved: int, operations: int, time: float) -> dict[str, Any]:
    """What explains a time: least bytes and operations, rates reached, and the tiles that were chosen."""
    from flatwing.kernels.gpu import tune

    picked = [str(tile) for key, tile in tune._picked.items() if key[:2] == launch]
    return {
        "bytes": moved,
        "operations": operations,
        "bytes per second": moved / time,
        "operations per second": operations / time,
        "tiles": picked,
    }


def hardware() -> dict[str, Any]:
    import triton

    from flatwing.kernels.gpu.device import device_of

    return {
        "gpu": torch.cuda.get_device_name(),
        "rates": str(device_of(0)),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "host": platform.platform(),
        "date": datetime.date.today().isoformat(),
    }


def show(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...], name: str) -> None:
    print(f"\n{title}\n" + " ".join(f"{c:>30}" for c in (name, *columns)))
    for row in rows:
        print(" ".join([f"{row[name]!s:>30}", *(f"{row[c]:30.2f}" for c in columns)]))
    for c in columns:
        values = [row[c] for row in rows if row[c] == row[c]]
        if values and c != "rows":
            print(f"median of {c}: {statistics.median(values):.2f}")


def without_nan(value: Any) -> Any:
    """What JSON can hold: a ratio to something that did not run is null."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few sizes and patterns only; nothing is written")
    quick = parser.parse_args().quick
    if not torch.cuda.is_available():
        sys.exit(
            "this benchmark times CUDA kernels, and torch sees no CUDA device here. Run it on a machine with a GPU."
        )
    torch.manual_seed(0)
    result: dict[str, Any] = {"hardware": hardware(), "pairs": [], "single": []}
    print(result["hardware"])
    for train in (False, True):
        found = [
            pair(n, blocks, rows, train)
            for n in (SIZES[2:4] if quick else SIZES)
            for blocks in ([32] if quick else [16, 32, 64])
            for rows in ([1 << 16] if quick else [1 << 7, 1 << 12, 1 << 16])
        ]
        result["pairs"] += found
        title = f"Monarch pair, bfloat16, {'training step' if train else 'forward'}"
        show(title, found, ("rows", "over dense", "over bmm", "time / copy"), "chain")
    for dtype in (torch.bfloat16, torch.float32):
        found = [single(p, dtype, ROWS) for p in patterns(4 if quick else 40)]
        result["single"] += found
        columns = ("over bmm", "over the best peer", "over the best peer, batch-last", "time / copy")
        show(f"one factor, {dtype}, forward, {ROWS} rows", found, columns, "pattern")
    if not quick:
        from flatwing.core import replacing

        RESULTS.mkdir(exist_ok=True)
        with replacing(RESULTS / "gpu_multiply.json") as temporary:
            temporary.write_text(json.dumps(without_nan(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
