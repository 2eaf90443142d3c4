"""Structured layers in a model that is to be trained from scratch, and their description for a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from math import gcd
from typing import Any, cast

from torch import nn

from ..core import divisors, require_number
from ..nn import StructuredLayer, SwapReport, compress_, layer_from_config, replace_module
from ..nn.recipe import Structure
from ..structure import Chain


def structured(
    model: nn.Module,
    structure: Structure | None = None,
    *,
    budget: float | int | None = None,
    where: str | Iterable[str] = "*",
    skip: str | Iterable[str] = (),
    heads: bool = False,
) -> SwapReport:
    """Give an untrained model structured layers, in place, with new values to train from scratch.

    Args:
        model: any module with linear layers; their values are lost.
        structure: as for `flatwing.compress_`: a Chain, "monarch(blocks=4)", "low_rank(rank=8)", "blast(...)", a
            function of name and layer, ...; or else
        budget: share of the parameters of each layer, in (0, 1): `chain_within` that budget.
        where, skip, heads: which layers, as for `flatwing.compress_`.

    The values are drawn by `reset_parameters` of the layers from torch's global generator, so that outputs have the
    variance that a new `nn.Linear` gives them. Returns what was replaced; errors are not reported, for there is nothing
    to be near to. Raises `ValueError` unless exactly one of structure and budget is given, and as `compress_`. Cost: as
    `compress_`, one factorization per layer.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> structured(model, budget=0.25, where="0").replaced, model[0]
    (('0',), StructuredLinear(Chain.parse('(1,8,8,8)(8,8,8,1)'), bias=True))
    """
    if (structure is None) == (budget is None):
        raise ValueError(f"structure is {structure!r} and budget is {budget!r}. Rule: one of them. Write budget=0.25.")
    if budget is not None:
        require_number("budget", budget, above=0, below=1, good=0.25, advice="It is a share of the parameters.")
        structure = partial(_within, budget)
    report = compress_(model, cast(Structure, structure), where=where, skip=skip, heads=heads)
    for name in report.replaced:
        layer = model.get_submodule(name)
        if isinstance(layer, StructuredLayer):
            layer.reset_parameters()
    return SwapReport(tuple(replace(row, error=None, lower_bound=None) for row in report.rows), report.dry_run)


def chain_within(m: int, n: int, budget: float) -> Chain | None:
    """The Monarch chain of an m x n layer with about sqrt(min(m, n)) blocks and the highest rank within a budget.

    `budget` is a share of m * n. Where not even rank 1 fits, there are fewer blocks; None if nothing fits. This is the
    shape of BTT layers (Qiu et al. 2024, "Compute Better Spent").

    >>> print(chain_within(64, 64, 0.5), chain_within(64, 64, 0.05), chain_within(64, 64, 0.01))
    (1,8,16,8)(8,16,8,1) (1,64,1,1)(1,1,64,1) None
    """
    few = [k for k in divisors(gcd(m, n)) if k * k <= min(m, n)]
    for blocks in sorted(few, reverse=True):
        rank = min(int(budget * m * n / (blocks * (m + n))), min(m, n) // blocks)
        if rank >= 1:
            return Chain.monarch(m, n, blocks, rank)
    return None


def _within(budget: float, name: str, linear: nn.Linear) -> Chain | None:
    return chain_within(linear.out_features, linear.in_features, budget)


def layers_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Names of the structured layers of a model, with what `layer_from_config` needs to make them again.

    >>> structured(model := nn.Sequential(nn.Linear(4, 4)), "low_rank(rank=1)").replaced
    ('0',)
    >>> layers_of(model)["0"]["chain"]
    '(1,4,1,1)(1,1,4,1)'
    """
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, StructuredLayer) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module.config()  # terms of a sum are in the description of the sum
    return found


def put_layers(model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace layers of a model by those that `layers_of` described, in place, with values yet to be loaded.

    Raises `ValueError` for a name that the model does not have, a description of no layer, and another size.
    """
    if not isinstance(layers, Mapping):
        raise ValueError(f"a {type(layers).__name__} describes no layers. Rule: what layers_of gives.")
    for name, config in layers.items():
        layer = layer_from_config(config)
        old = dict(model.named_modules()).get(name)
        size = (getattr(old, "out_features", None), getattr(old, "in_features", None))
        if old is not None and size != (layer.out_features, layer.in_features):
            raise ValueError(
                f"layer {name!r} is {layer.out_features} x {layer.in_features}, the model has one of size {size} there."
            )
        replace_module(model, name, layer)
