"""Rates: how fast this machine calls, multiplies and moves, found out once and kept in the wisdom file."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..core import using_threads
from . import wisdom
from .cost import MACHINES, WIDTHS, dtype_name

# what `_trials` finds on the machine to which the constants of `cost` were fitted
REFERENCE = {"call": 2.55e-6, "cached": 6.5e-6, "memory": 2.4e-3, "gemm": 326e-6}
SIDE = 256  # of the matrices that are multiplied
SMALL, LARGE = 1 << 16, 1 << 24  # numbers that are copied in the caches, and read from memory
SECONDS = 0.02  # for each trial


def measure_rates() -> dict[str, float]:
    """The rates of one core of this processor, by their names in `cost.Machine`, and the widths of the dtypes.

    The best of many short trials each, as other programs make a core slower than it is, but never faster. Cost: a
    third of a second.

    >>> rates = measure_rates()
    >>> rates["gemm"] > 1e8, rates["memory"] < 1e13
    (True, True)
    """
    with using_threads(1), torch.no_grad():
        found = _trials()
        squares = {dtype: torch.ones(SIDE, SIDE, dtype=dtype) for dtype in WIDTHS["cpu"]}
        widths = {dtype: _best(lambda a=a: F.linear(a, a)) for dtype, a in squares.items()}
    shipped = MACHINES["cpu"]._asdict()
    rates = {"call": found["call"] / REFERENCE["call"] * shipped["call"]}
    rates |= {name: REFERENCE[name] / found[name] * shipped[name] for name in ("cached", "memory", "gemm")}
    return {**rates, **{f"width {dtype_name(dtype)}": time / found["gemm"] for dtype, time in widths.items()}}


def _trials() -> dict[str, float]:
    """Seconds of a tiny call, a copy in the caches, a walk through memory and a GEMM."""
    x, w, small, target = torch.ones(1, 8), torch.ones(8, 8), torch.ones(SMALL), torch.empty(SMALL)
    large, square = torch.ones(LARGE), torch.ones(SIDE, SIDE)
    return {
        "call": _best(lambda: F.linear(x, w)),
        "cached": _best(lambda: target.copy_(small)),
        "memory": _best(large.sum),
        "gemm": _best(lambda: F.linear(square, square)),
    }


def ensure_rates(device: str) -> None:
    """Measure and store the rates of this machine unless they are known, or no file is to be kept.

    Only of processors: on a GPU the shipped ones are used until tasks are measured. Raises as `wisdom.store` does;
    what stands in the place of the file and is no file of ours is left alone, with one warning.
    """
    if device == "cpu" and wisdom.keeps() and not wisdom.rates(device):
        wisdom.store_rates(device, measure_rates())


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of many calls, after one that warms up."""
    # time that this thread was running, where the system counts it finely enough
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    clock = time.thread_time if fine else time.perf_counter
    call()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end or best == float("inf"):
        start = clock()
        call()
        best = min(best, clock() - start)
    return best
