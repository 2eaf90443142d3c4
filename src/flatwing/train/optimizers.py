"""Optimizers of torch by name, over the parameters of a model that can be trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..core import Registry
from ..optim import METHODS, Shell

REFUSED = {
    "LBFGS": "it evaluates the loss several times per step",
    "SparseAdam": "it needs sparse gradients",
}
# rows of a table do not mix, so the matrix sign has no meaning there; embeddings are known by their type
TABLES = {"classifier", "head", "lm_head", "positions", "score"}

OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")
for _name, _kind in sorted(vars(torch.optim).items()):
    if isinstance(_kind, type) and issubclass(_kind, Optimizer) and _kind is not Optimizer:
        OPTIMIZERS.register(_name)(_kind)

AROUND: Registry[Callable[..., Optimizer]] = Registry("method")
"""Functions (model, optimizer, **settings) -> optimizer, from the innermost to the outermost."""


def _around(name: str) -> Callable[..., Optimizer]:
    return lambda model, optimizer, **settings: METHODS[name].make(model, lambda params: optimizer, **settings)


for _name in ("GradPower", "IRE"):
    AROUND.register(_name.lower())(_around(_name))


def make_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
) -> Optimizer:
    """The optimizer of `torch.optim` called `name`: "Muon" takes the matrices and leaves the rest to AdamW.

    `options` are further arguments of that optimizer. Weight decay falls on matrices only, not on biases, norms and
    other vectors. Muon's steps are scaled to the size of AdamW's, so both take one `lr`; embeddings and heads go to
    AdamW (Jordan, 2024; Liu et al., 2025, arXiv:2502.16982).
    `methods` are those of `flatwing.optim` that go around it, by name in small letters with their settings:
    {"ire": {"kappa": 3.0}}; the order is fixed, what changes gradients goes inside what changes steps.
    Raises `ValueError` for an unknown name, one that `fit` cannot drive, or a model without trainable parameters.

    >>> optimizer = make_optimizer(nn.Linear(2, 2), "Muon", 1e-3)
    >>> [type(member).__name__ for member in optimizer.members]
    ['Muon', 'AdamW']
    >>> make_optimizer(nn.Linear(2, 2), "AdamWW", 1e-3)
    Traceback (most recent call last):
    ValueError: unknown optimizer 'AdamWW', did you mean 'AdamW'? Known: ...
    """
    for method in methods or {}:
        AROUND[method]  # raises, with the nearest name
    made = _bases(model, name, lr, weight_decay, options)
    optimizer = made[0] if len(made) == 1 else Shell(made)
    for method, around in AROUND.items():
        if methods is not None and method in methods:
            optimizer = around(model, optimizer, **methods[method])
    return optimizer


def _bases(
    model: nn.Module, name: str, lr: float, weight_decay: float, options: Mapping[str, Any] | None
) -> list[Optimizer]:
    kind = OPTIMIZERS[name]
    if name in REFUSED:
        raise ValueError(f"optimizer is {name!r}, but {REFUSED[name]}. Rule: one step per gradient. Take 'AdamW'.")
    if weight_decay and "weight_decay" not in inspect.signature(kind).parameters:
        raise ValueError(f"{name} has no weight decay, got {weight_decay}. Write weight_decay=0 or take 'AdamW'.")
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(f"{type(model).__name__} has no parameter that requires grad. Unfreeze what shall be trained.")
    options = dict(options or {})
    for option in options:
        if option not in inspect.signature(kind).parameters or option in ("params", "lr", "weight_decay"):
            known = [n for n in inspect.signature(kind).parameters if n not in ("params", "lr", "weight_decay")]
            raise ValueError(f"{name} has no option {option!r}. Known: {', '.join(known)}.")
    if name != "Muon":
        return _split(kind, named.values(), lr, weight_decay, options)
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    tables = {id(p) for key, p in named.items() if TABLES.intersection(key.split("."))} | embeddings
    hidden = [p for p in named.values() if p.ndim == 2 and id(p) not in tables]
    rest = [p for p in named.values() if p.ndim != 2 or id(p) in tables]
    made = _split(torch.optim.AdamW, rest, lr, weight_decay, {}) if rest else []
    if hidden:
        options.setdefault("adjust_lr_fn", "match_rms_adamw")
        made.insert(0, torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, **options))
    return made


def _split(
    kind: Callable[..., Optimizer],
    params: Iterable[nn.Parameter],
    lr: float,
    decay: float,
    options: Mapping[str, Any],
) -> list[Optimizer]:
    """One optimizer, in two groups: what decays and what does not."""
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for p in params:
        parts[p.ndim < 2].append(p)
    groups: list[dict[str, Any]] = [{"params": part} for part in parts]
    if "weight_decay" in inspect.signature(kind).parameters:
        groups[0]["weight_decay"], groups[1]["weight_decay"] = decay, 0.0
    return [kind([group for group in groups if group["params"]], lr=lr, **options)]
