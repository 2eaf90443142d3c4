"""The methods of this room by name, and what each costs, supports and measures its learning rate in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from torch.optim import Optimizer

from ..core import Registry

Base = Callable[[Any], Optimizer]


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the registry.

    `make(model, base, **settings)` builds the method for a model; `base` makes the optimizer inside from parameters or
    groups (a method that is a base itself ignores it). `off` are settings with which a step equals that of the base
    bit for bit. `passes` is the number of forward and backward passes per step and `bytes` the memory per parameter
    beyond the base's, both with default settings; `memory` says what the bytes are. `refuses` names what raises a
    clear error, among "complex" and "nonlinear-model"; sparse gradients are refused by all.
    """

    name: str
    summary: str
    paper: str
    lr_unit: str
    passes: float
    bytes: float
    make: Callable[..., Optimizer]
    memory: str = ""
    off: dict[str, Any] = field(default_factory=dict)
    wraps: bool = True
    refuses: frozenset[str] = frozenset({"complex"})


METHODS: Registry[Method] = Registry("method")


def add(method: Method) -> Method:
    """File a method under its name; the contract kit of the tests then runs on it."""
    return METHODS.register(method.name)(method)


def list_optimizers() -> tuple[Method, ...]:
    """All methods, in order of registration.

    >>> "IRE" in [method.name for method in list_optimizers()]
    True
    """
    return tuple(METHODS.values())
