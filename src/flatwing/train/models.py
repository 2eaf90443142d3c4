"""The built-in models by name, with the sizes that data ask for, dense or structured."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from math import isqrt, prod
from typing import Any

from torch import nn

from ..data import Dataset
from .architecture import MODELS as MODELS
from .architecture import Model as Model
from .decoder import ByteLM as ByteLM
from .decoder import Llama as Llama
from .structured import layers_of, put_layers, structured
from .vision import CNN as CNN
from .vision import MLP as MLP
from .vision import DigitsMLP as DigitsMLP
from .vision import DigitsViT as DigitsViT
from .vision import LinearClassifier as LinearClassifier
from .vision import ViT as ViT

STRUCTURE = ("structure", "budget")  # keys of a configuration that are no sizes


def build_model(name: str, config: Mapping[str, Any]) -> Model:
    """The built-in architecture `name` with the sizes of `config`, untrained; unknown names raise `ValueError`.

    The key "structure", such as "monarch(blocks=4)", or "budget", a share of the parameters, gives the model structured
    layers instead of dense ones (its heads stay dense): see `structured`.

    >>> build_model("digits-mlp", {"width": 8, "depth": 1})
    DigitsMLP(...)
    >>> build_model("digits-mlp", {"width": 64, "budget": 0.25}).layers[0]
    StructuredLinear(Chain.parse('(1,8,8,8)(8,8,8,1)'), bias=True)
    """
    how = {key: config[key] for key in STRUCTURE if key in config}
    model = MODELS[name].from_config({key: value for key, value in config.items() if key not in how})
    if how:
        structured(model, **how)
    return model


def twin(model: Model) -> Model:
    """An untrained model of the same architecture and sizes, with the same structured layers, in training mode.

    >>> twin(build_model("digits-mlp", {"width": 64, "budget": 0.25})).layers[0].nnz
    1024
    """
    made = type(model).from_config(model.config())
    put_layers(made, layers_of(model))
    return made


def sizes_for(name: str, data: Dataset) -> dict[str, int]:
    """The sizes of the architecture `name` that follow from data: classes, inputs or side, vocab and context.

    Raises `ValueError` for data of another task, and where an architecture for squares is to see other images.

    >>> from flatwing.data import open_data
    >>> sizes_for("cnn", open_data("digits")), sizes_for("llama", open_data("python", length=64, vocab=128))
    ({'side': 8, 'classes': 10}, {'vocab': 128, 'context': 64})
    """
    kind = MODELS[name]
    if kind.task != data.task:
        fitting = ", ".join(other for other, model in MODELS.items() if model.task == data.task)
        raise ValueError(f"model {name!r} is for {kind.task!r}, data {data.name!r} are {data.task!r}. Take {fitting}.")
    known = inspect.signature(kind).parameters
    if data.task == "lm":
        said = {"vocab": data.classes, "context": data.shape[0]}
    else:
        pixels = prod(data.shape)
        said = {"inputs": pixels, "side": isqrt(pixels), "classes": data.classes}
        images = [size for size in data.shape if size > 1]  # a channel of one is no dimension of the picture
        if "side" in known and (isqrt(pixels) ** 2 != pixels or images[1:] not in ([], images[:1])):
            raise ValueError(f"model {name!r} is for squares, one sample of {data.name!r} is {data.shape}. Take 'mlp'.")
    return {size: said[size] for size in known if size in said}


def architecture_of(model: nn.Module) -> str | None:
    """The name under which the model's class is registered, None if it is not a built-in.

    >>> architecture_of(DigitsMLP())
    'digits-mlp'
    """
    return next((name for name, architecture in MODELS.items() if type(model) is architecture), None)
