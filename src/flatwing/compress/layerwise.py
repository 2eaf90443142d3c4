"""Layer by layer: fit each structure to what the layer should do now, on the inputs that it will really get."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn

from ..nn import LinearInfo, replace_module
from .batch import Batch
from .candidates import make_layer
from .explore import matrix
from .moments import Moments, Target
from .plan import LayerPlan
from .walk import Walk

TRUST = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of the anchored correction; held-out data choose


@final
@dataclass(frozen=True)
class LayerResult:
    """What became of one layer; all errors are relative.

    `error` and `lower_bound` are in the norm of the data, `heldout_error` in that of data that were not fitted,
    `unweighted_error` in the Frobenius norm. `trust` is the share of the anchored correction that held-out data kept.
    """

    name: str
    structure: str
    parameters: int
    dense_parameters: int
    error: float
    heldout_error: float
    lower_bound: float
    unweighted_error: float
    trust: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@runtime_checkable
class Store(Protocol):
    """Where finished layers are kept, so that an interrupted run goes on behind the last one."""

    def load(self, name: str, like: nn.Module) -> tuple[nn.Module, LayerResult] | None:
        """The finished layer, None if there is none; one that stayed dense is a copy of `like` with other values."""
        ...

    def save(self, name: str, layer: nn.Module, result: LayerResult) -> None:
        """Keep a finished layer."""
        ...


def fit_layers(
    original: nn.Module,
    compressed: nn.Module,
    layers: Mapping[str, LinearInfo],
    plans: Sequence[LayerPlan],
    batches: Sequence[Batch],
    fitted: int,
    *,
    anchored: bool = True,
    store: Store | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[LayerResult]:
    """Replace the planned layers of `compressed` (in place, a copy of `original`), in the order in which they run.

    The first `fitted` batches are fitted, the others decide how far an anchored correction is trusted and give the
    held-out errors. With `anchored`, each layer is fitted on the inputs it gets from the layers already replaced, to
    the outputs of the original network, residual stream included; layers that stay dense absorb the errors before
    them in the same way. Without, each is fitted on the inputs of the original network.
    """
    wanted = {plan.name: plan for plan in plans}
    walk = Walk(original, compressed if anchored else original, [n for n in layers if n in wanted], batches)
    results: list[LayerResult] = []
    for segment in walk:
        for stage in segment.stages:
            kept = {name: store.load(name, layers[name].module) if store else None for name in stage}
            moments = None
            if not all(kept.values()):
                moments = walk.moments(segment, stage, fitted)
            for name in stage:
                finished = kept[name]
                if finished is None:
                    assert moments is not None
                    finished = _fit(layers[name], wanted[name], *moments, seed)
                    if store is not None:
                        store.save(name, *finished)
                layer, result = finished
                replace_module(compressed, name, layer)
                results.append(result)
                if progress is not None:
                    progress(f"{name}: {result.structure}", len(results), len(wanted))
    return results


def _fit(
    layer: LinearInfo, plan: LayerPlan, moments: Moments, heldout: Moments, seed: int
) -> tuple[nn.Module, LayerResult]:
    target, trust = _trusted(layer, moments, heldout)
    W, metric = target.matrix, target.metric
    m, n = layer.out_features, layer.in_features
    if plan.candidate is None:
        made, error, bound, unweighted, structure = _dense(layer, target), 0.0, 0.0, 0.0, "dense"
        approximation = W
    else:
        fit = plan.candidate.fit(W, metric, seed=seed)
        approximation = fit.structure.dense()
        made = make_layer(fit, target.bias(approximation), layer.weight.dtype).to(layer.weight.device)
        error, bound, unweighted, structure = fit.error, fit.lower_bound, fit.unweighted_error, str(plan.candidate)
    made.train(layer.module.training)
    for parameter in made.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    if heldout.samples:
        outside = heldout.covariance(layer.bias is not None)
        heldout_error = _norm(W - approximation, outside) / max(_norm(W, outside), 1e-300)
    else:
        heldout_error = float("nan")
    count = m * n if plan.candidate is None else plan.candidate.parameters
    return made, LayerResult(
        layer.name, structure, count, m * n, error, heldout_error, bound, unweighted, trust, moments.samples
    )


def _trusted(layer: LinearInfo, moments: Moments, heldout: Moments) -> tuple[Target, float]:
    """The target with as much of the anchored correction as held-out data confirm."""
    W = matrix(layer)
    target = moments.target(layer.name, W, layer.bias)
    if bool((moments.hh == moments.xh).all()) and layer.name not in moments.dh:
        return replace(target, matrix=W), 1.0  # nothing changed in front of this layer
    correction = target.matrix - W
    if not heldout.samples:
        return target, 1.0
    values = [heldout.objective(layer.name, W, layer.bias, W + share * correction) for share in TRUST]
    share = TRUST[min(range(len(TRUST)), key=values.__getitem__)]
    return replace(target, matrix=W + share * correction), share


def _dense(layer: LinearInfo, target: Target) -> nn.Module:
    """The layer itself, with the weight and bias of the target."""
    made = copy.deepcopy(layer.module)
    weight = made.get_parameter("weight")
    with torch.no_grad():
        (weight.mT if layer.transposed else weight).copy_(target.matrix)
        if (bias := target.bias(target.matrix)) is not None:
            made.get_parameter("bias").copy_(bias)
    return made


def _norm(E: torch.Tensor, covariance: torch.Tensor) -> float:
    return float(((E @ covariance) * E).sum().clamp_min(0).sqrt())
