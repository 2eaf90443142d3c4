"""Landmarks: what simpler methods reach with the same budget on the same data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from ..core import require_number
from ..nn import LinearInfo
from ..structure import SparseProduct
from .baselines import LANDMARKS, WITH_DATA, Known, Replaced, uniform_rank
from .batch import Batch
from .choice import better_choice as better_choice
from .costs import calls_per_sample
from .evaluate import evaluate, untouched
from .measure import flops, parameters, state_bytes
from .walk import Walk


def landmarks(
    original: nn.Module,
    layers: Mapping[str, LinearInfo],
    batches: Sequence[Batch],
    fitted: int,
    eval_batches: Sequence[Batch],
    task: str,
    share: float,
    *,
    names: Sequence[str] = tuple(LANDMARKS),
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table of landmarks: the `layers` by each method, at a `share` of their parameters where it has one.

    Each row has "name", "loss", "accuracy", "agreement_kl" (value and stderr), "bytes" of the whole model on disk in
    its own dtype, "parameters", "flops" for one sample, and a "note". Methods with data see the first `fitted` of the
    `batches` through the original network, and correct the mean of the outputs where there is a bias.

    Raises `ValueError` for unknown names and a share outside (0, 1]. The original is as before. Cost: one walk over
    the network, one copy of it, and one evaluation for each method.
    """
    require_number("share", share, above=0, most=1, good=0.25, advice="It is the part of the parameters that is kept.")
    methods = {name: LANDMARKS[name] for name in names}
    facts: dict[str, _Facts] = {}
    if set(methods) & set(WITH_DATA):
        with untouched(original):
            facts = _facts(original, layers, batches[:fitted], share, "whitened SVD" in methods)
    calls = calls_per_sample(original, list(layers), eval_batches[0])
    dense = {"bytes": state_bytes(original), "parameters": parameters(original)}
    dense["flops"] = flops(original, eval_batches[0])
    model, rows = copy.deepcopy(original), []
    for name, method in methods.items():
        totals, left, done = dict(dense), 0, set[int]()
        for layer in layers.values():
            W, itemsize = layer.weight.detach().double().cpu(), layer.weight.element_size()
            whole = Replaced(W, W.numel(), W.numel() * itemsize, W.numel())
            own = facts.get(layer.name) if name in WITH_DATA else None
            made = None
            if own is not None or name not in WITH_DATA:
                made = method(Known(W, share, itemsize, own and own.power, own and own.whitened))
            left += made is None
            new = made or whole
            totals["flops"] += round(2 * (new.products - whole.products) * calls[layer.name])
            if layer.weight.data_ptr() in done:  # a weight that several layers share
                continue
            done.add(layer.weight.data_ptr())
            totals["bytes"] += new.bytes - whole.bytes
            totals["parameters"] += new.parameters - whole.parameters
            _write(model, layer, new.matrix, own.bias(new.matrix) if own and made else None)
        found = evaluate(model, eval_batches, task, original)
        plain = found.to_dict()
        note = " ".join((method.__doc__ or "").split())
        if left:
            note += f" {left} of {len(layers)} layers stay as they are."
        rows.append(
            {
                "name": name,
                "loss": plain["loss"],
                "accuracy": plain["accuracy"],
                "agreement_kl": found.kl and found.kl.to_dict(),
                **totals,
                "note": note,
            }
        )
        if progress is not None:
            progress(f"landmark {name}", len(rows), len(methods))
    return rows


@final
@dataclass(frozen=True)
class _Facts:
    """What one walk over the data leaves of a layer: vectors, and two thin factors."""

    power: torch.Tensor
    mean_output: torch.Tensor | None
    mean_input: torch.Tensor
    whitened: SparseProduct | None

    def bias(self, W: torch.Tensor) -> torch.Tensor | None:
        return None if self.mean_output is None else self.mean_output - W @ self.mean_input


def _facts(
    model: nn.Module, layers: Mapping[str, LinearInfo], batches: Sequence[Batch], share: float, whitened: bool
) -> dict[str, _Facts]:
    facts = {}
    walk = Walk(model, model, list(layers), batches)
    for segment in walk:
        for stage, moments in walk.inputs(segment).items():
            for name in stage:
                layer = layers[name]
                W = layer.weight.detach().double().cpu()
                target = moments.target(name, W, layer.bias)
                wanted = uniform_rank(W.shape, share) if whitened else None
                best = None if wanted is None else wanted.fit(W, target.metric).structure.to(torch.float32)
                power = target.metric.covariance.diagonal().clone()
                facts[name] = _Facts(power, target.mean_output, target.mean_input, best)
    return facts


def _write(model: nn.Module, layer: LinearInfo, W: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Put a matrix and a bias, the original one if None, into the copy of a layer."""
    module = model.get_submodule(layer.name)
    weight = module.get_parameter("weight")
    with torch.no_grad():
        (weight.mT if layer.transposed else weight).copy_(W)
        if layer.bias is not None:
            module.get_parameter("bias").copy_(layer.bias if bias is None else bias)
