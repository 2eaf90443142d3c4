"""`flatwing.load`: the network that a compressed directory holds."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import parse_json
from ..nn import layer_from_config, replace_module
from .checkpoint import Checkpoint
from .quantize import restore_state
from .source import skeleton

FORMAT, VERSION = "flatwing.model", 1


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The network of a directory that `flatwing compress` wrote, in evaluation mode.

    Built-in architectures and those of transformers are built from the directory; for others give the dense network
    `model`, whose layers are replaced in place. Values kept as int8 become floating point again. Nothing in the
    directory is executed.

    Raises `ValueError` for a directory of another kind, a damaged one, a version of the format that is not known, and
    a `model` whose names or shapes do not fit.

    >>> load("nowhere")
    Traceback (most recent call last):
    ValueError: there is no 'nowhere/flatwing.json'. Rule: a directory that flatwing compress wrote.
    """
    folder = Path(path)
    description = read_description(folder)
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config or {}
    layers = {name: _config(entry) for name, entry in _mapping(description, "layers").items()}
    with torch.device("meta"):  # shapes first, memory later: a damaged or hostile description may want any amount
        outline = skeleton(folder, description["architecture"], config) if model is None else _outline(model)
    for name, own in layers.items():
        _place(outline, name, layer_from_config(own, device="meta"), folder)
    needed = sum(p.numel() for p in outline.parameters())
    held = sum(math.prod(checkpoint.info(name).shape) for name in checkpoint.names)
    if needed > 2 * held:  # what is only a little wrong is named below
        raise ValueError(
            f"{str(folder)!r} describes a network of {needed:,} numbers and holds {held:,}. "
            "Rule: files and descriptions of one compression."
        )
    if model is None:
        model = skeleton(folder, description["architecture"], config)
    state = {name: checkpoint.tensor(name) for name in checkpoint.names}
    if description.get("quantized"):
        state = restore_state(state, _mapping(description, "tensors"))
    for name, own in layers.items():
        _place(model, name, layer_from_config(own), folder)
    _adopt_dtypes(model, state)
    fill(model, state, str(folder))
    return model.eval()


def read_description(folder: Path) -> dict[str, Any]:
    """What flatwing.json says, checked for format and version."""
    file = folder / "flatwing.json"
    if not file.is_file():
        raise ValueError(f"there is no {str(file)!r}. Rule: a directory that flatwing compress wrote.")
    try:
        description = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Rule: as flatwing compress writes it.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{str(file)!r} is not of format {FORMAT!r}. Rule: as flatwing compress writes it.")
    if description.get("version") != VERSION:
        raise ValueError(
            f"{str(file)!r} has version {description.get('version')!r} of the format, this flatwing reads {VERSION}. "
            "Update flatwing."
        )
    _mapping(description, "architecture")
    return description


def fill(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy a state into a model; only names of tied tensors may be missing. Raises `ValueError` for anything else."""
    own = model.state_dict(keep_vars=True)
    if unknown := [name for name in state if name not in own]:
        raise ValueError(f"{where} holds {unknown[0]!r}, which the network does not have. Give the network it is of.")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{where}: {name!r} has shape {tuple(tensor.shape)}, the network has {tuple(own[name].shape)}. "
                "Rule: the network it is of."
            )
    held = {own[name].data_ptr() for name in state}
    if missing := [name for name, tensor in own.items() if name not in state and tensor.data_ptr() not in held]:
        raise ValueError(f"{where} does not hold {missing[0]!r}, which the network needs. It is of another network.")
    model.load_state_dict(dict(state), strict=False)


def _place(model: nn.Module, name: str, layer: nn.Module, folder: Path) -> None:
    try:
        old = model.get_submodule(name)
        weight = old.get_parameter("weight")
    except AttributeError as error:
        raise ValueError(
            f"{str(folder)!r} replaces a layer {name!r} that the network does not have. Give the network it is of."
        ) from error
    bias = isinstance(getattr(old, "bias", None), torch.Tensor)
    shape = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
    if set(shape) != set(weight.shape) or bias != (getattr(layer, "bias", None) is not None):
        raise ValueError(
            f"{str(folder)!r}: the layer {name!r} is {shape}, the network's is {tuple(weight.shape)}. "
            "Rule: the dense network that was compressed."
        )
    replace_module(model, name, layer)


def _adopt_dtypes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give every parameter and buffer the dtype of its file, with values to be filled in."""
    for prefix, module in model.named_modules():
        for entries in (module._parameters, module._buffers):
            for key, tensor in entries.items():
                saved = state.get(f"{prefix}.{key}" if prefix else key)
                if tensor is not None and saved is not None and saved.dtype != tensor.dtype:
                    tensor.data = tensor.data.to(saved.dtype)


def _outline(model: nn.Module) -> nn.Module:
    """A copy of a network without its values."""
    bare: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, bare | {id(b): b.to("meta") for b in model.buffers()})


def _config(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("flatwing.json describes a layer by something else than an object. Write it again.")
    return _mapping(entry, "config")


def _mapping(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key, {} if key in ("layers", "tensors") else None)
    if not isinstance(value, dict):
        raise ValueError(f"flatwing.json has no object {key!r}. Rule: as flatwing compress writes it.")
    return value
