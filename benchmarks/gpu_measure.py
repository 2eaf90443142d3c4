"""How the rows of `gpu_multiply.py` are measured: times, errors and races, and what explains a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

TIMING = True  # if not, nothing is timed
AGAIN = 4  # more runs whose results must have the same bits: an error that moves is a race
EXACT = 1 << 27  # numbers per float64 tensor; of more than that the first rows are checked
# rounding of one factor: to the nearest number of the dtype, and of sums of up to 1024 products in float32
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def timed(methods: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Name -> seconds, or the reason why there are none."""
    found: dict[str, Any] = {}
    for name, run in methods.items() if TIMING else ():
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
    errors = [float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(first, right, strict=True)]
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


def roofline(n: int, blocks: int, rows: int) -> float:
    """Seconds that the memory and the cache need for a fused Monarch pair in 16 bits, with the best tile there is.

    A tile of rows x groups keeps what stands between the factors on the chip (128 KB); x comes through the cache once
    for each tile of groups, the values once for each tile of rows.
    """
    from flatwing.kernels.gpu.device import device_of

    device, side = device_of(None), n // blocks
    nnz = n * (side + blocks)
    cached = min(
        2 * (n * max(1, side / groups) + n + nnz / height)
        for height, groups in itertools.product((16, 32, 64, 128, 256), (16, 32, 64, 128, 256, 512))
        if height * groups * blocks * 2 <= 128 * 1024
    )
    return max((4 * n * rows + 2 * nnz) / device.memory, rows * cached / device.cache)
