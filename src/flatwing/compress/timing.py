"""Timing: milliseconds of networks and of layers, taken in turns, with an interval that assumes no distribution."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from ..kernels.race import no_collection
from ..nn import StructuredLinear
from .batch import Batch
from .evaluate import untouched

ROUNDS = 7  # at least, so that the interval of a median exists
QUICK = 0.05  # seconds that one layer is timed for


def latency(
    models: Mapping[str, nn.Module],
    make_batch: Callable[[int], Batch],
    sizes: Sequence[int] = (1, 16, 64),
    seconds: float = 1.0,
    seed: int = 0,
) -> dict[str, list[dict[str, int | float]]]:
    """Milliseconds of a forward pass of each model, by batch size: {name: [{"batch", "ms", "low", "high"}, ...]}.

    The models take turns, in an order drawn anew in each round, so that what else the machine does hits all alike.
    Structured layers are packed meanwhile, as `flatwing.nn.pack_` leaves them for inference.
    "ms" is the median, "low" and "high" its distribution-free 95 % interval (order statistics). At least `ROUNDS`
    rounds after a warm-up, and about `seconds` for each model and size.

    Raises `ValueError` for no models and sizes below 1.

    >>> rows = latency({"net": nn.Linear(4, 4)}, lambda n: Batch((torch.ones(n, 4),)), sizes=(2,), seconds=0.01)
    >>> rows["net"][0]["low"] <= rows["net"][0]["ms"] <= rows["net"][0]["high"]
    True
    """
    if not models or min(sizes, default=0) < 1:
        raise ValueError(
            f"{len(models)} models, batch sizes {tuple(sizes)}. Rule: at least one model, sizes from 1 on."
        )
    rows: dict[str, list[dict[str, int | float]]] = {name: [] for name in models}
    with untouched(*models.values()), packed(*models.values()):
        for size in sizes:
            batch = make_batch(size)
            calls = {name: partial(batch.call, model) for name, model in models.items()}
            for name, times in _race(calls, seconds, batch.inputs.device, seed).items():
                low, high = median_interval(times)
                ms = statistics.median(times)
                rows[name].append({"batch": size, "ms": 1e3 * ms, "low": 1e3 * low, "high": 1e3 * high})
    return rows


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics between which the median lies with a probability of at least 95 %, whatever the law.

    With fewer than 6 values there is no such interval and these are the extremes.

    >>> median_interval([float(v) for v in range(1, 11)])  # covers with 1 - 2 (1 + 10) / 2^10 = 0.979
    (2.0, 9.0)
    """
    ordered, n = sorted(values), len(values)
    if n > 200:  # the binomial law is normal by now
        k = math.floor((n - 1.96 * math.sqrt(n)) / 2 - 0.5)
        return ordered[k], ordered[n - 1 - k]
    k, below = 0, 1 / 2**n  # below: the chance that at most k of n values are under the median
    while (more := below + math.comb(n, k + 1) / 2**n) <= 0.025:
        k, below = k + 1, more
    return ordered[k], ordered[n - 1 - k]


def layer_speed(dense: nn.Module, structured: nn.Module, rows: int, seconds: float = QUICK, seed: int = 0) -> float:
    """How many times as fast as the dense layer the structured one is, measured here and now for this many rows.

    >>> layer_speed(nn.Linear(8, 8), nn.Linear(8, 8), rows=4, seconds=0.01) > 0
    True
    """
    times = race_layers({"dense": dense, "structured": structured}, rows, seconds, seed)
    return times["dense"] / times["structured"]


def race_layers(layers: Mapping[str, nn.Module], rows: int, seconds: float, seed: int = 0) -> dict[str, float]:
    """Median seconds of each layer on one random input."""
    first = next(p for layer in layers.values() for p in layer.parameters())
    sizes = (getattr(layer, "in_features", None) for layer in layers.values())
    n = next((int(size) for size in sizes if size is not None), first.shape[0])  # transformers' Conv1D: (in, out)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=generator).to(device=first.device, dtype=first.dtype)
    with torch.no_grad(), packed(*layers.values()):
        calls = {name: partial(layer, x) for name, layer in layers.items()}
        times = _race(calls, seconds, first.device, seed)
    return {name: statistics.median(own) for name, own in times.items()}


@contextmanager
def packed(*models: nn.Module) -> Iterator[None]:
    """Pack the structured layers that are not packed yet, for so long."""
    chosen = []
    try:
        for layer in (layer for model in models for layer in model.modules() if isinstance(layer, StructuredLinear)):
            if not layer.is_packed:
                with suppress(ValueError):  # some cannot be packed
                    layer.pack()
                    chosen.append(layer)
        yield
    finally:
        for layer in chosen:
            layer.unpack()


def _race(
    calls: Mapping[str, Callable[[], Any]], seconds: float, device: torch.device, seed: int
) -> dict[str, list[float]]:
    """Times of each call, taken in turns of random order, after a warm-up, until `seconds` for each are over."""
    order, shuffle = list(calls), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in order}

    def timed(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for call in (*calls.values(), *calls.values()):
        timed(call)
    with no_collection():
        end = time.perf_counter() + seconds * len(order)
        while len(times[order[0]]) < ROUNDS or time.perf_counter() < end:
            shuffle.shuffle(order)
            for name in order:
                times[name].append(timed(calls[name]))
    return times
