"""Explore: error curves of every layer over structures and budgets, and how much the network minds an error there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median
from typing import Any, final

import torch
from torch import nn

from ..factorize import Metric
from ..nn import LinearInfo
from .batch import Batch, main_output, until
from .candidates import STRUCTURES, Candidate, candidate
from .divergence import divergence
from .moments import Target
from .plan import LayerPlan, Option, allocate, fill
from .trace import call_apart
from .walk import Walk

STEPS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0)  # budgets of a layer, relative to the mean one
FINALISTS = 2  # structures that are followed over all budgets, besides low rank
EFFORT = 0.25  # of the sweeps of the final fit
# Errors are made in one layer at a time to measure how much each matters, but in all of them at once when it counts,
# and later layers absorb some. On both examples the square root of what was measured planned better than the value
# itself (byte LM at 25 %: loss 1.59 against 1.61) and than equal weights (1.71).
TEMPER = 0.5
PROBED = 0.5  # share of a layer at which that is measured; less where that loses nothing
VISIBLE = 1e-3  # relative error of a layer that is large enough to see what the outputs make of it
LEAST = 1e-3  # sensitivity that every layer has, relative to the median one: no layer is free
PROBE = 2048  # positions on which the sensitivity is measured
POSITIONS = 16384  # positions that the error curves are measured on, unless a layer is wider than a tenth of it
SPECTRUM = 128  # singular values that are kept for the report

Cost = Callable[[str, Candidate | None], float]


def matrix(layer: LinearInfo) -> torch.Tensor:
    """The matrix (m, n) of a layer in float64 on the CPU, where all fits are computed."""
    return layer.weight.detach().double().cpu()


@final
@dataclass(frozen=True)
class Explored:
    """What is known about one layer: its options, how much the outputs mind its error, its spectrum on the data."""

    name: str
    shape: tuple[int, int]
    options: tuple[Option, ...]
    sensitivity: float
    spectrum: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "options": [option.to_dict() for option in self.options]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Explored:
        """Inverse of `to_dict`, of what JSON made of it."""
        options = tuple(Option.from_dict(option) for option in data["options"])
        return cls(data["name"], tuple(data["shape"]), options, data["sensitivity"], tuple(data["spectrum"]))


def explore(
    model: nn.Module,
    layers: Mapping[str, LinearInfo],
    batches: Sequence[Batch],
    *,
    share: float,
    cost: Cost,
    task: str,
    structures: Sequence[str] = tuple(STRUCTURES),
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Explored]:
    """Options around a `share` of every layer that the network calls, in the order of the calls, priced by `cost`.

    The network stays as it is. Raises `ValueError` naming the layer if an error there makes outputs that are no
    numbers. Cost: a forward pass over some of the batches, and per layer about 20 quick fits and a forward pass.
    """
    widest = max(layer.in_features for layer in layers.values())
    some = until(batches, max(POSITIONS, 10 * widest))
    walk = Walk(model, model, list(layers), some)
    probe = _Probe(model, batches, task)
    found: list[Explored] = []
    for segment in walk:
        for stage, moments in walk.inputs(segment).items():
            for name in stage:
                layer = layers[name]
                target = moments.target(name, matrix(layer), layer.bias)
                measured = curve(layer, target.metric, share, structures, seed)
                options = tuple(replace(o, cost=cost(name, o.candidate)) for o in measured)
                shape, values = (layer.out_features, layer.in_features), spectrum(matrix(layer), target.metric)
                found.append(Explored(name, shape, options, probe.sensitivity(layer, target), values))
                if progress is not None:
                    progress(f"error curves of {name}", len(found), len(layers))
    return weighed(found)


def weighed(found: Sequence[Explored]) -> list[Explored]:
    """The layers with the losses of their options; a layer that seems to matter to nothing still matters a little."""
    positive = [own.sensitivity for own in found if own.sensitivity > 0]
    least = LEAST * median(positive) if positive else 1.0
    result = []
    for own in found:
        sensitivity = max(own.sensitivity, least)
        options = tuple(replace(o, loss=sensitivity**TEMPER * o.error**2) for o in own.options)
        result.append(replace(own, options=options, sensitivity=sensitivity))
    return result


def decide(found: Sequence[Explored], budget: float, cost: Cost) -> list[LayerPlan]:
    """Plan all explored layers within `budget`, in units of `cost`; raises `ValueError` if that is impossible."""
    taken = fill(allocate({own.name: own.options for own in found}, budget), budget, cost)
    plans = []
    for own in found:
        option, (m, n) = taken[own.name], own.shape
        parameters = m * n if option.candidate is None else option.candidate.parameters
        facts = option.error, option.bound, option.loss, own.sensitivity, own.spectrum
        plans.append(LayerPlan(own.name, own.shape, option.candidate, parameters, *facts))
    return plans


def curve(layer: LinearInfo, metric: Metric, share: float, structures: Sequence[str], seed: int) -> list[Option]:
    """Error of every structure at the mean budget, and of the best ones over all budgets; dense costs most, loses none.

    The costs are left 0.
    """
    m, n = layer.out_features, layer.in_features
    W = matrix(layer)
    found: list[Option] = []

    def measure(name: str, step: float) -> float | None:
        wanted = share * step * m * n
        within = candidate(name, m, n).within(wanted) if wanted < 0.95 * m * n else None
        if within is None or any(o.candidate == within for o in found):
            return None
        fit = within.fit(W, metric, EFFORT, seed)
        found.append(Option(within, 0.0, 0.0, fit.error, fit.lower_bound))
        return fit.error

    at_mean = {name: measure(name, 1.0) for name in structures}
    known = {name: error for name, error in at_mean.items() if error is not None}
    best = sorted(known, key=lambda name: (known[name], name))[:FINALISTS]
    always = ["low_rank"] if "low_rank" in structures else []
    for name in [*best, *(name for name in always if name not in best)] or structures[:1]:
        for step in STEPS:
            measure(name, step)
    if not found:  # a layer so small that not even rank 1 fits the mean budget: take the cheapest structure there is
        name = structures[0]
        if (least := candidate(name, m, n)).parameters < m * n:
            fit = least.fit(W, metric, EFFORT, seed)
            found.append(Option(least, 0.0, 0.0, fit.error, fit.lower_bound))
    return [*found, Option(None, 0.0, 0.0)]


def spectrum(W: torch.Tensor, metric: Metric) -> tuple[float, ...]:
    """Singular values of W C^(1/2), relative to the largest; at most `SPECTRUM`, evenly spaced."""
    values = torch.linalg.svdvals(W @ metric.root)
    picked = values[torch.linspace(0, len(values) - 1, min(SPECTRUM, len(values))).round().long()]
    return tuple(round(float(v), 6) for v in picked / values[0].clamp_min(1e-300))


@final
class _Probe:
    """How much the outputs change per squared relative error of one layer, measured by making one."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], task: str) -> None:
        self.model, self.task, self.batches = model, task, until(batches, PROBE)
        self.references = [self._outputs(batch, {}) for batch in self.batches]

    def _outputs(self, batch: Batch, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return main_output(call_apart(self.model, batch.args, batch.kwargs, parameters))

    def sensitivity(self, layer: LinearInfo, target: Target) -> float:
        W, (m, n) = matrix(layer), (layer.out_features, layer.in_features)
        rough = candidate("low_rank", m, n).within(max(PROBED * m * n, float(m + n))) or candidate("low_rank", m, n)
        fit = rough.fit(W, target.metric, EFFORT)
        while fit.error < VISIBLE and rough.rank > 1:  # a layer of low rank loses nothing above it
            rough = replace(rough, rank=rough.rank // 2)
            fit = rough.fit(W, target.metric, EFFORT)
        dense, error = fit.structure.dense(), fit.error
        if error < VISIBLE:
            dense, error = torch.zeros_like(W), 1.0
        new, pairs = instead(layer, dense, target), zip(self.references, self.batches, strict=True)
        change = torch.cat([divergence(r, self._outputs(batch, new), batch, self.task) for r, batch in pairs])
        mean = float(change.double().mean())
        if not isfinite(mean):
            raise ValueError(
                f"layer {layer.name!r}: an error of {error:.1%} in it changes the outputs by {mean}. Rule: outputs are "
                "finite; look for NaN in the weights and the data, or run in float32 if half precision overflows."
            )
        return max(0.0, mean) / error**2  # rounding may make it negative


def instead(layer: LinearInfo, W: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
    """The parameters of the network, by name, that put W into a layer, with the bias that keeps its mean output."""
    new = {"weight": (W.mT if layer.transposed else W).to(layer.weight)}
    if layer.bias is not None and (bias := target.bias(W)) is not None:
        new["bias"] = bias.to(layer.bias)
    return {f"{layer.name}.{name}".lstrip("."): value for name, value in new.items()}
