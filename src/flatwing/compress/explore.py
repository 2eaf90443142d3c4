"""Explore: error curves of every layer over structures and budgets, and how much the network minds an error there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from ..factorize import Metric
from .batch import Batch
from .candidates import STRUCTURES, Candidate, candidate
from .divergence import divergence
from .plan import LayerPlan, Option, allocate, fill
from .walk import Walk

STEPS = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0)  # budgets of a layer, relative to the mean one
FINALISTS = 2  # structures that are followed over all budgets, besides low rank
EFFORT = 0.15  # of the sweeps of the final fit
PROBE = 4096  # positions on which the sensitivity is measured
SPECTRUM = 128  # singular values that are kept for the report

Cost = Callable[[str, Candidate | None], float]


@final
@dataclass(frozen=True)
class Layer:
    """A layer that may be compressed: its matrix (m, n) and bias."""

    name: str
    module: nn.Module
    transposed: bool = False  # transformers' Conv1D keeps (n, m)

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (m, n), out by in; a view of the parameter."""
        weight = self.module.get_parameter("weight")
        return weight.mT if self.transposed else weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, None if there is none."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, torch.Tensor) else None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self.weight.shape
        return m, n

    @contextmanager
    def holding(self, W: torch.Tensor) -> Iterator[None]:
        """The network with another matrix in this layer, then exactly as before."""
        before = self.weight.detach().clone()
        with torch.no_grad():
            try:
                self.weight.copy_(W)
                yield
            finally:
                self.weight.copy_(before)


def explore(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Batch],
    *,
    budget: float,
    share: float,
    cost: Cost,
    task: str,
    structures: Sequence[str] = tuple(STRUCTURES),
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[LayerPlan], list[str]]:
    """Plan all `layers` within `budget` (in units of `cost`, about a `share` of all); and the layers never called.

    Cost: a forward pass over the batches per group of layers, and about 20 quick fits per layer.
    """
    walk = Walk(model, model, list(layers), batches)
    probe = _Probe(model, batches, task)
    options: dict[str, list[Option]] = {}
    facts: dict[str, tuple[float, tuple[float, ...]]] = {}
    for segment in walk:
        for stage in segment.stages:
            moments, _ = walk.moments(segment, stage, len(batches))
            for name in stage:
                layer = layers[name]
                metric = moments.target(name, layer.weight, layer.bias).metric
                own = curve(layer, metric, share, structures, seed)
                sensitivity = probe.sensitivity(layer, metric, share)
                facts[name] = sensitivity, spectrum(layer.weight, metric)
                options[name] = [
                    Option(o.candidate, cost(name, o.candidate), sensitivity * o.error**2, o.error, o.bound)
                    for o in own
                ]
                if progress is not None:
                    progress(f"curves {name}", len(options), len(layers))
    taken = fill(allocate(options, budget), budget, cost)
    plans = []
    for name, option in taken.items():
        m, n = layers[name].shape
        parameters = m * n if option.candidate is None else option.candidate.parameters
        sensitivity, values = facts[name]
        plans.append(
            LayerPlan(
                name, (m, n), option.candidate, parameters, option.error, option.bound, option.loss, sensitivity, values
            )
        )
    return plans, walk.unused


def curve(layer: Layer, metric: Metric, share: float, structures: Sequence[str], seed: int) -> list[Option]:
    """Error of every structure at the mean budget, and of the best ones over all budgets; dense costs most, loses none.

    The costs are left 0.
    """
    m, n = layer.shape
    W = layer.weight.detach().double().cpu()
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
    followed = dict.fromkeys([*best, *(["low_rank"] if "low_rank" in structures else []), *structures[: not best]])
    for name in followed:
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
    values = torch.linalg.svdvals(W.detach().double().cpu() @ metric.root)
    picked = values[torch.linspace(0, len(values) - 1, min(SPECTRUM, len(values))).round().long()]
    return tuple(round(float(v), 6) for v in picked / values[0].clamp_min(1e-300))


@final
class _Probe:
    """How much the outputs change per squared relative error of one layer, measured by making one."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], task: str) -> None:
        self.model, self.task, self.batches = model, task, []
        seen = 0
        for batch in batches:
            if seen < PROBE:
                self.batches.append(batch)
                seen += batch.positions
        with torch.no_grad():
            self.reference = [batch.logits(model) for batch in self.batches]

    def sensitivity(self, layer: Layer, metric: Metric, share: float) -> float:
        m, n = layer.shape
        rough = candidate("low_rank", m, n).within(max(share * m * n, m + n)) or candidate("low_rank", m, n)
        fit = rough.fit(layer.weight.detach(), metric, EFFORT)
        if fit.error < 1e-6:
            return 0.0
        with layer.holding(fit.structure.dense()), torch.no_grad():
            pairs = zip(self.batches, self.reference, strict=True)
            change = torch.cat([divergence(r, b.logits(self.model), b, self.task) for b, r in pairs])
        return float(change.double().mean()) / fit.error**2


def plan_from(data: Sequence[Mapping[str, Any]]) -> list[LayerPlan]:
    """The plan that `LayerPlan.to_dict` wrote."""
    return [LayerPlan.from_dict(row) for row in data]
