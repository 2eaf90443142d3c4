"""What every built-in model is: a network that says its task, and how it was made in what JSON can hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from ..core import Registry, require_whole


class Model(nn.Module):
    """A network that can say how it was made.

    Law: `type(model).from_config(model.config())` has the same modules and shapes; `config()` survives JSON. Arguments
    are whole numbers, at least 1, or true and false. `task` is "classification", logits (batch, classes), or "lm",
    logits (batch, length, vocab).
    """

    task: ClassVar[str] = "classification"

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            if not isinstance(size, bool):
                require_whole(name, size)
        self._sizes = sizes

    def config(self) -> dict[str, int]:
        """The arguments this model was made with; structured layers that came later are not among them."""
        return {name: self._sizes[name] for name in inspect.signature(type(self)).parameters}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Model:
        """A new, untrained model; raises `ValueError` for an argument that the architecture does not have."""
        known: Registry[inspect.Parameter] = Registry(f"argument of {cls.__name__}")
        for name, parameter in inspect.signature(cls).parameters.items():
            known.register(name)(parameter)
        for name, value in config.items():
            kind = bool if isinstance(known[name].default, bool) else int
            if type(value) is not kind:
                rule = "true or false" if kind is bool else "a whole number, at least 1"
                raise ValueError(f"{name} is {value!r}. Rule: {rule}.")
        return cls(**config)


MODELS: Registry[type[Model]] = Registry("architecture")
