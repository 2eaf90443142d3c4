"""`compress_` and `densify_`: structured layers into a model and out of it again; `pack_`: made ready for inference."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

from torch import nn

from .adapter import StructuredAdapter
from .base import StructuredLayer, linear_of
from .linear import StructuredLinear
from .names import LinearInfo, linear_layers, matching, replace_module
from .recipe import Made, Structure, as_recipe
from .swap_report import SwapReport, SwapRow


def compress_(
    model: nn.Module,
    structure: Structure,
    *,
    where: str | Iterable[str] = "*",
    skip: str | Iterable[str] = (),
    heads: bool = False,
    dry_run: bool = False,
) -> SwapReport:
    """Replace linear layers of a model by structured ones, in place; without data, so only the weights are fitted.

    Args:
        model: any module; also with layers of transformers' Conv1D kind.
        structure: a Chain, a share of the parameters such as 0.5, a text such as "monarch(blocks=4)", or a function of
            name and `nn.Linear` (see `as_recipe`).
        where: glob or globs over dotted names; a layer with several names is meant by each of them.
        skip: globs of layers to leave alone.
        heads: also replace output heads (lm_head, classifier, ...): off, because errors there are errors of the logits.
        dry_run: do all the work except the replacement.

    Layers that share a weight are replaced together and go on sharing it; a module at several places is replaced at all
    of them. Frozen stays frozen. What cannot be replaced is in the report with its reason. If anything fails the model
    is as before. Raises `ValueError` for globs that match nothing, a structure that fits none of the layers, or values
    that are not finite (the layer is named). Cost: one factorization per layer; a share also searches all chains, half
    a minute for a 1024 x 1024 layer.

    `nn.TransformerEncoderLayer` reads `.weight` in its fast path (evaluation without gradients), which makes the matrix
    at each call: the outputs are right, the gain is lost. `torch.backends.mha.set_fastpath_enabled(False)` avoids it.

    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    >>> report = compress_(model, "low_rank(rank=2)", where="0")
    >>> report.replaced, report.parameters_before, report.parameters_after
    (('0',), 512, 320)
    >>> densify_(model)
    ['0']
    """
    recipe = as_recipe(structure)
    infos = linear_layers(model)
    if not infos:
        raise ValueError(f"this {type(model).__name__} has no linear layers. Rule: a model with nn.Linear or Conv1D.")
    chosen = matching(infos, where)
    excluded = matching(infos, skip, "skip") if skip else set()
    if "" in chosen and infos[""].skip is None:
        raise ValueError("the model itself is a linear layer. Use StructuredLinear.from_linear(model, chain).")
    stays = {name: _why_not(info, chosen, excluded, heads, infos) for name, info in infos.items()}
    made: dict[str, Made] = {}
    for group in _tied_groups(infos, stays):
        first = group[0]
        try:
            made[first.name] = recipe(first.name, first.as_linear())
        except (ValueError, TypeError) as error:
            raise type(error)(f"layer {first.name!r}: {error}") from error
        layer = made[first.name].layer
        if layer is not None and not made[first.name].given:
            layer.bias = cast(nn.Parameter, first.bias)  # the very same one: optimizers and ties know it
        for other in group[1:]:
            made[other.name] = _twin(made[first.name], other)
    if made and not any(m.fits for m in made.values()):
        reasons = "; ".join(dict.fromkeys(m.reason for m in made.values()))
        raise ValueError(f"structure={structure!s} fits none of the layers: {reasons}.")
    rows = _rows(infos, stays, made)
    if not dry_run:
        for name, m in made.items():
            if m.layer is not None:
                replace_module(model, name, m.layer)
    return SwapReport(rows, dry_run)


def densify_(model: nn.Module) -> list[str]:
    """Replace every structured layer and adapter by the `nn.Linear` with its matrix, in place; returns their names.

    Outputs are equal to rounding. Layers that shared their values share the matrix. Where a Conv1D stood before
    `compress_`, there is an `nn.Linear` now. Raises `ValueError` if the model
    itself is the layer; call its `to_linear()` then.
    """
    shared: dict[tuple[int, ...], nn.Linear] = {}
    dense: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in dense):
            continue  # a term of a sum
        if isinstance(module, StructuredLayer):
            key = tuple(id(p) for p in module.parameters() if p is not module.bias)
            if key in shared:
                linear = linear_of(shared[key].weight, None, module.training)
            else:
                linear = shared[key] = module.to_linear()
            linear.bias = cast(nn.Parameter, module.bias)  # the very same one: optimizers and ties know it
            dense[name] = linear
        elif isinstance(module, StructuredAdapter):
            dense[name] = module.merge()
    if "" in dense:
        raise ValueError("the model itself is the structured layer, so nothing holds it. Call model.to_linear().")
    for name, linear in dense.items():
        replace_module(model, name, linear)
    return list(dense)


def _why_not(
    info: LinearInfo, chosen: set[str], excluded: set[str], heads: bool, infos: dict[str, LinearInfo]
) -> str | None:
    """Why a layer is left alone, or None; tied layers are left alone together."""
    if info.name not in chosen:
        return "not named by where"
    if info.name in excluded:
        return "named by skip"
    if info.skip is not None:
        return info.skip
    if info.is_head and not heads:
        return "a head makes the model's outputs; heads=True replaces it too"
    owners = {f"{name}.weight": other for other in infos.values() for name in other.names}
    for tied in info.tied_to:
        other = owners[tied]
        if other.name not in chosen - excluded or (other.is_head and not heads):
            return f"its weight is also {tied}, which stays"
    return None


def _tied_groups(infos: dict[str, LinearInfo], stays: dict[str, str | None]) -> list[list[LinearInfo]]:
    """The layers to be replaced; those with one weight are together."""
    groups: dict[frozenset[str], list[LinearInfo]] = {}
    for name, info in infos.items():
        if stays[name] is None:
            groups.setdefault(info.weights, []).append(info)
    return list(groups.values())


def _twin(made: Made, info: LinearInfo) -> Made:
    """A layer for a tied weight: the same parameters, its own bias."""
    if made.layer is None:
        return made
    shared = {id(p): p for p in made.layer.parameters() if p is not made.layer.bias}
    twin = copy.deepcopy(made.layer, memo=shared)
    twin.bias = cast(nn.Parameter, info.bias)
    return Made(twin.train(info.module.training), made.error, made.lower_bound, made.reason)


def _rows(infos: dict[str, LinearInfo], stays: dict[str, str | None], made: dict[str, Made]) -> tuple[SwapRow, ...]:
    rows, counted = [], set()
    for name, info in infos.items():
        shape = (info.out_features, info.in_features)
        count = 0 if info.weights in counted else shape[0] * shape[1]
        new = made.get(name)
        if new is None:
            rows.append(SwapRow(name, shape, "skipped", "", count, count, reason=stays[name] or ""))
        elif new.layer is None:
            rows.append(SwapRow(name, shape, "kept" if new.fits else "skipped", "", count, count, reason=new.reason))
        else:
            after = 0 if info.weights in counted else new.layer.nnz
            text, bound = describe(new.layer), new.lower_bound
            rows.append(SwapRow(name, shape, "replaced", text, count, after, new.error, bound, new.reason))
        counted.add(info.weights)
    return tuple(rows)


def describe(layer: StructuredLayer) -> str:
    """The structure of a layer in a few characters: a chain as it is written, otherwise the layer's own repr."""
    return str(layer.chain) if isinstance(layer, StructuredLinear) else repr(layer)


def pack_(model: nn.Module) -> list[str]:
    """Pack the weights of every `StructuredLinear` in a model for inference, in place; returns their names.

    Nothing else changes: parameters, state and training are as before, see `StructuredLinear.pack`. `unpack_` frees the
    memory. Raises `ValueError` for a model without such layers, or naming the first one that cannot be packed; then
    none is.

    >>> model = nn.Sequential(StructuredLinear("butterfly(64)"), nn.ReLU())
    >>> pack_(model), unpack_(model)
    (['0'], ['0'])
    """
    layers = _chain_layers(model)
    before = {name: layer._packed for name, layer in layers.items()}
    for name, layer in layers.items():
        try:
            layer.pack()
        except ValueError as error:
            for other, packed in before.items():
                layers[other]._packed = packed
            raise ValueError(f"layer {name!r} cannot be packed: {error}") from None
    return list(layers)


def unpack_(model: nn.Module) -> list[str]:
    """Undo `pack_`; returns the names of the layers. Raises `ValueError` for a model without such layers."""
    layers = _chain_layers(model)
    for layer in layers.values():
        layer.unpack()
    return list(layers)


def _chain_layers(model: nn.Module) -> dict[str, StructuredLinear]:
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, StructuredLinear)}
    if not found:
        raise ValueError(
            f"this {type(model).__name__} has no StructuredLinear. Rule: a model with layers of chains, as "
            "compress_(model, structure) puts them in."
        )
    return found
