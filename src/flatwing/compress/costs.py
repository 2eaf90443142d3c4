"""Costs: what a layer costs, dense or with a candidate, in the unit in which the budget is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..nn import BlastLinear, LinearInfo, StructuredLinear
from .batch import Batch
from .candidates import Candidate
from .evaluate import untouched
from .quantize import int8_bytes
from .timing import QUICK, layer_speed, race_layers

UNITS = ("parameters", "bytes", "flops", "latency")

Cost = Callable[[str, Candidate | None], float]


def calls_per_sample(model: nn.Module, layers: Sequence[str], batch: Batch) -> dict[str, float]:
    """How many vectors go through each layer for one sample: 1 in a perceptron, the positions of a text in a decoder.

    Layers that are never called have 0. Cost: one forward pass.

    >>> calls_per_sample(nn.Sequential(nn.Linear(4, 4)), ["0"], Batch((torch.ones(2, 5, 4),)))
    {'0': 5.0}
    """
    vectors = dict.fromkeys(layers, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            vectors[name] += x.numel() // x.shape[-1]

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(count(n), with_kwargs=True) for n in layers]
    try:
        with untouched(model):
            batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: own / len(batch.inputs) for name, own in vectors.items()}


def unit_cost(
    unit: str,
    layers: Mapping[str, LinearInfo],
    *,
    quantized: bool = False,
    calls: Mapping[str, float] | None = None,
    rows: int = 64,
    seconds: float = QUICK,
) -> Cost:
    """What a budget is spent on: the function that says what a layer costs with a candidate, or dense (None).

    "parameters" (of the matrix), "bytes" on disk (in the layer's dtype, or as int8 with scales if `quantized`),
    "flops" for one sample (2 x parameters x `calls` of the layer, see `calls_per_sample`; 1 without), or "latency" in
    milliseconds for `rows` vectors. Latency is measured, each candidate against its dense layer on this machine and
    once per shape, not predicted; so two runs may plan differently. Raises `ValueError` for another unit.

    >>> from flatwing.nn import linear_layers
    >>> cost = unit_cost("bytes", linear_layers(nn.Sequential(nn.Linear(8, 4))))
    >>> cost("0", None), cost("0", Candidate("low_rank", (4, 8), (1, 1), 1))
    (128.0, 48.0)
    """
    if unit not in UNITS:
        raise ValueError(f"the unit of the budget is {unit!r}. Rule: one of {', '.join(UNITS)}.")
    timed: dict[Any, float] = {}

    def milliseconds(layer: LinearInfo, candidate: Candidate | None) -> float:
        m, n, weight = layer.out_features, layer.in_features, layer.weight
        key = (candidate, m, n, weight.dtype, weight.device)
        if key in timed:
            return timed[key]
        where: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        with torch.random.fork_rng([]):
            dense = nn.Linear(n, m, **where)
            if candidate is None:
                timed[key] = 1e3 * race_layers({"dense": dense}, rows, seconds)["dense"]
            else:
                speed = layer_speed(dense, empty_layer(candidate).to(**where), rows, seconds)
                timed[key] = milliseconds(layer, None) / speed
        return timed[key]

    def cost(name: str, candidate: Candidate | None) -> float:
        layer = layers[name]
        count = layer.weight.numel() if candidate is None else candidate.parameters
        if unit == "latency":
            return milliseconds(layer, candidate) * (1.0 if calls is None else float(calls[name] > 0))
        if unit == "flops":
            return 2.0 * count * (1.0 if calls is None else calls[name])
        if unit == "bytes":
            size = layer.weight.element_size()
            shapes = [tuple(layer.weight.shape)] if candidate is None else factor_shapes(candidate)
            plain = [size * math.prod(shape) for shape in shapes]
            return float(
                sum(min(p, int8_bytes(s)) for p, s in zip(plain, shapes, strict=True)) if quantized else sum(plain)
            )
        return float(count)

    return cost


def factor_shapes(candidate: Candidate) -> list[tuple[int, ...]]:
    """Shapes of the tensors that a layer of this structure keeps.

    >>> factor_shapes(Candidate("blast", (4, 6), (2, 3), 5))
    [(2, 2, 5), (2, 3, 5), (3, 5, 2)]
    """
    chain = candidate.chain
    if chain is not None:
        return [(p.blocks, p.b, p.c) for p in chain]
    (m, n), (A, B), r = candidate.shape, candidate.blocks, candidate.rank
    return [(A, m // A, r), (A, B, r), (B, r, n // B)]


def empty_layer(candidate: Candidate) -> nn.Module:
    """A layer of this structure with random values.

    >>> empty_layer(Candidate("low_rank", (4, 6), (1, 1), 2)).nnz
    20
    """
    (m, n), chain = candidate.shape, candidate.chain
    return BlastLinear(n, m, candidate.blocks, candidate.rank) if chain is None else StructuredLinear(chain)
