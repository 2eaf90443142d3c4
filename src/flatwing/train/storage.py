"""Safetensors files with a format name and JSON notes: weights of a model, state of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..core import parse_json, replacing
from .models import Model, architecture_of, build_model
from .structured import layers_of, put_layers

WEIGHTS = "flatwing.weights.1"
KEY = "flatwing"  # of the metadata


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Any], kind: str
) -> None:
    """Write tensors and what JSON can hold of `notes` under a format name; the file appears whole or not at all."""
    # clones, because two names of one storage (tied weights) are two tensors in the file
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            # one key, for safetensors writes several in an order of its own each time: equal runs, equal bytes
            save_file(copies, temporary, metadata={KEY: json.dumps({"format": kind, "notes": notes})})
        except SafetensorError as error:
            raise OSError(f"could not write {str(path)!r}: {error}") from error


def load_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_tensors` wrote under that format name; raises `ValueError` for any other file. Nothing is executed."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}. Rule: a safetensors file of format {kind!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # earlier files have the format and the notes, as JSON, side by side
            told = parse_json(metadata[KEY]) if KEY in metadata else metadata
            if told.get("format") != kind:
                raise ValueError(f"{str(path)!r} has format {told.get('format')!r}. Rule: {kind!r}. Name another file.")
            notes = told["notes"] if KEY in metadata else parse_json(told["notes"])
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
    except (SafetensorError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} is not readable ({error}); it may be truncated. Rule: a file of format {kind!r}. Delete it."
        ) from error


def save_model(path: str | os.PathLike[str], model: Model, recipe: Mapping[str, Any] | None = None) -> None:
    """Weights, name, sizes and structured layers of a built-in model in one safetensors file, for `load_model`.

    `recipe` says how it was trained, in what JSON can hold. Raises `ValueError` for a class that is not in `MODELS`.
    """
    name = architecture_of(model)
    if name is None:
        raise ValueError(f"{type(model).__name__} is not a built-in architecture. Rule: one of flatwing.train.MODELS.")
    notes: dict[str, Any] = {"architecture": name, "config": model.config(), "recipe": dict(recipe or {})}
    if layers := layers_of(model):
        notes["layers"] = layers
    save_tensors(path, model.state_dict(), notes, WEIGHTS)


def load_model(path: str | os.PathLike[str], recipe: Mapping[str, Any] | None = None) -> Model:
    """The model that `save_model` wrote, in training mode as a new one.

    Raises `ValueError` for any other file, and for one that was trained by another recipe, if one is given.
    """
    tensors, notes = load_tensors(path, WEIGHTS)
    for name, value in (recipe or {}).items():
        if notes.get("recipe", {}).get(name) != value:
            raise ValueError(
                f"{str(path)!r} was trained with {name}={notes.get('recipe', {}).get(name)!r}, wanted is "
                f"{name}={value!r}. Rule: the same recipe. Name another file, or delete this one."
            )
    try:
        model = build_model(notes["architecture"], notes["config"])
        put_layers(model, notes.get("layers", {}))
        load_weights(model, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no built-in model: {error}") from error
    return model


def load_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict, every name and shape; raises `ValueError` where torch would raise `RuntimeError`."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {type(model).__name__}: {error}") from error
