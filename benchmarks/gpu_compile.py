"""Compiles what `gpu_multiply.py` will launch, on all processors at once: one by one it would take half of its time.

The launches are found by running the cases on tensors without memory, so nothing here says twice what runs. What is
compiled lies in Triton's cache on disk, where the benchmark finds it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import torch
from gpu_cases import ROWS, Case, monarch


def compile_all(cases: list[Case], device: Any, seconds: float) -> None:
    """Compile for a `Device`, in as many processes as there are processors; what takes too long is left."""
    context, count = multiprocessing.get_context("spawn"), os.cpu_count() or 1
    workers = [context.Process(target=compile_part, args=(cases, device, at, count)) for at in range(count)]
    end = time.monotonic() + seconds
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        worker.kill()


def compile_part(cases: list[Case], device: Any, first: int, step: int) -> None:
    """Every `step`-th of the launches."""
    from flatwing.kernels.gpu import ahead

    major, minor = device.capability
    for launch in launches(cases, device)[first::step]:
        try:
            ahead.compile_for(10 * major + minor, launch)
        except Exception as error:  # the tuner will find out, too, and leave the tile out
            print(f"not compiled: {launch.kernel.__name__}, {launch.options}: {type(error).__name__}", flush=True)


def launches(cases: list[Case], device: Any) -> list[Any]:
    """All launches of the cases that differ in what is compiled, with all tiles that the tuner will try."""
    from flatwing import Pattern
    from flatwing.kernels.gpu import run, tune
    from flatwing.kernels.gpu.launch import Launch

    found: dict[Any, Launch] = {}

    def keep(self: Launch) -> None:
        args = tuple(a.dtype if isinstance(a, torch.Tensor) else (a == 1, a % 16 == 0, a >= 2**31) for a in self.args)
        found.setdefault((id(self.kernel), tuple(self.options.items()), args), self)

    def all_tiles(kind: Any, patterns: Any, rows: Any, x: Any, last: Any, choices: Any, start: Any) -> Any:
        for choice in choices[: tune.MEASURED]:
            start(choice.tile)
        return choices[0].tile

    before = Launch.run, run.tile_for, run.device_of
    Launch.run, run.tile_for, run.device_of = keep, all_tiles, lambda index: device
    try:
        for kind, args in cases:
            if kind == "single":
                pattern, options = Pattern(*args[0]), {"device": "meta", "dtype": getattr(torch, args[1])}
                n, w = pattern.shape[1], torch.empty(pattern.blocks, pattern.b, pattern.c, **options)
                run.apply(torch.empty(ROWS, n, **options), w, pattern, False)
                run.apply(torch.empty(n, ROWS, **options).T, w, pattern, True)
                continue
            chain, w, x, grad, _ = monarch(*args, device="meta")
            depths, (left, right) = [p.d for p in chain], chain
            run.forward(x, w, depths, False)
            run.apply(run.apply(x, w[1], right, False), w[0], left, False)
            if kind == "step":
                run.backward(x, w, depths, grad, False)
                run.apply(grad, w[0].mT, left.T, False)
                run.weights_gradient(x, grad, left, False)
                run.weights_gradient(x, grad, right, False)
                if run.pair_weights_choices(left, right, len(x), "half", False, device):
                    run.pair_weights_gradient(x, grad, w, chain.patterns, False)
    finally:
        Launch.run, run.tile_for, run.device_of = before
    return list(found.values())
