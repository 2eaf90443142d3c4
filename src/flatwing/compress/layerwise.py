"""Layer by layer: fit each structure to what the layer should do now, on the inputs that it will really get."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn

from ..factorize import Metric
from ..nn import LinearInfo, StructuredLayer, replace_module
from .batch import Batch
from .candidates import make_layer
from .explore import matrix
from .moments import Moments, Target
from .plan import LayerPlan
from .walk import Walk

TRUST = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of the anchored correction; held-out data choose
TINY = 1e-300  # instead of a norm of zero


@final
@dataclass(frozen=True)
class LayerResult:
    """What became of one layer; all errors are relative and those of the layer as it is kept, in its dtype.

    `error`, `heldout_error` and `lower_bound` are against the target that was fitted: the layer's own matrix and, in an
    anchored run, what makes up for the errors before it. `error` and `lower_bound` are in the norm of the data,
    `heldout_error` in that of data that were not fitted, damped as much. `unweighted_error` is against the layer's own
    matrix in the Frobenius norm; it is above 0 for a layer that stayed dense and was fitted to its new inputs. `trust`
    is the share of the anchored correction that held-out data kept.
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
        made, bound, structure, count = _dense(layer, W), 0.0, "dense", m * n
    else:
        fit = plan.candidate.fit(W, metric, seed=seed)
        made = make_layer(fit, target.bias(W), layer.weight.dtype).to(layer.weight.device)
        bound, structure, count = fit.lower_bound, str(plan.candidate), plan.candidate.parameters
    kept = _kept(made, layer)
    if (bias := target.bias(kept)) is not None:
        with torch.no_grad():  # of the matrix that is kept: rounding it must not move the mean of the outputs
            made.get_parameter("bias").copy_(bias)
    made.train(layer.module.training)
    for parameter in made.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    error = metric.norm(W - kept) / max(metric.norm(W), TINY)
    own = matrix(layer)
    return made, LayerResult(
        name=layer.name,
        structure=structure,
        parameters=count,
        dense_parameters=m * n,
        error=error,
        heldout_error=_heldout_error(W, kept, metric, heldout, layer.bias is not None),
        lower_bound=min(bound, error),  # which rounding may lift above the best error there is
        unweighted_error=float((own - kept).norm() / own.norm().clamp_min(TINY)),
        trust=trust,
        samples=moments.samples,
    )


def _heldout_error(W: torch.Tensor, kept: torch.Tensor, metric: Metric, heldout: Moments, centred: bool) -> float:
    """Relative error in the norm of other data, with the ridge of the fitted ones: what they lack costs as much."""
    if not heldout.samples:
        return float("nan")
    covariance = heldout.covariance(centred).clone()
    covariance.diagonal().add_(metric.covariance.diagonal().mean() * metric.damp / (1 + metric.damp))
    return _norm(W - kept, covariance) / max(_norm(W, covariance), TINY)


def _kept(made: nn.Module, layer: LinearInfo) -> torch.Tensor:
    """The matrix (m, n) of a new layer as it is kept: after rounding to its dtype."""
    if isinstance(made, StructuredLayer):
        return copy.deepcopy(made).double().dense().detach().cpu()
    weight = made.get_parameter("weight").detach().double().cpu()
    return weight.mT if layer.transposed else weight


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


def _dense(layer: LinearInfo, W: torch.Tensor) -> nn.Module:
    """The layer itself, with another matrix."""
    made = copy.deepcopy(layer.module)
    weight = made.get_parameter("weight")
    with torch.no_grad():
        (weight.mT if layer.transposed else weight).copy_(W)
    return made


def _norm(E: torch.Tensor, covariance: torch.Tensor) -> float:
    return float(((E @ covariance) * E).sum().clamp_min(0).sqrt())
