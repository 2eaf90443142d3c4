"""Explore: error curves of every layer over structures and budgets, and how much the network minds an error there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import nn

from ..factorize import Metric
from ..nn import LinearInfo
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


@contextmanager
def holding(layer: LinearInfo, W: torch.Tensor) -> Iterator[None]:
    """The network with another matrix in this layer, then exactly as before."""
    before = layer.weight.detach().clone()
    with torch.no_grad():
        try:
            layer.weight.copy_(W)
            yield
        finally:
            layer.weight.copy_(before)


def matrix(layer: LinearInfo) -> torch.Tensor:
    """The matrix (m, n) of a layer in float64 on the CPU, where all fits are computed."""
    return layer.weight.detach().double().cpu()


def explore(
    model: nn.Module,
    layers: Mapping[str, LinearInfo],
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
                facts[name] = sensitivity, spectrum(matrix(layer), metric)
                options[name] = [
                    Option(o.candidate, cost(name, o.candidate), sensitivity * o.error**2, o.error, o.bound)
                    for o in own
                ]
                if progress is not None:
                    progress(f"curves {name}", len(options), len(layers))
    taken = fill(allocate(options, budget), budget, cost)
    plans = []
    for name, option in taken.items():
        m, n = layers[name].out_features, layers[name].in_features
        parameters = m * n if option.candidate is None else option.candidate.parameters
        sensitivity, values = facts[name]
        plans.append(
            LayerPlan(
                name, (m, n), option.candidate, parameters, option.error, option.bound, option.loss, sensitivity, values
            )
        )
    return plans, walk.unused


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
        self.model, self.task, self.batches = model, task, []
        seen = 0
        for batch in batches:
            if seen < PROBE:
                self.batches.append(batch)
                seen += batch.positions
        with torch.no_grad():
            self.reference = [batch.logits(model) for batch in self.batches]

    def sensitivity(self, layer: LinearInfo, metric: Metric, share: float) -> float:
        m, n = layer.out_features, layer.in_features
        rough = candidate("low_rank", m, n).within(max(share * m * n, m + n)) or candidate("low_rank", m, n)
        fit = rough.fit(matrix(layer), metric, EFFORT)
        if fit.error < 1e-6:
            return 0.0
        with holding(layer, fit.structure.dense()), torch.no_grad():
            pairs = zip(self.batches, self.reference, strict=True)
            change = torch.cat([divergence(r, b.logits(self.model), b, self.task) for b, r in pairs])
        return float(change.double().mean()) / fit.error**2
