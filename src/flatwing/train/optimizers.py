"""Optimizers by name over the parameters of a model that can be trained, and the methods that go around them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from ..core import Registry, require_number
from ..optim import (
    IRE,
    LITE,
    PRGD,
    AdamMini,
    BlockRows,
    GradPower,
    Groups,
    Shell,
    Wrapper,
    blockwise_lr,
    classify_blocks,
    muon_groups,
    weight_decay_groups,
)
from ..optim.check import require_model, require_rate
from .check import check_table

REFUSED = {
    "LBFGS": "it evaluates the loss several times per step",
    "SparseAdam": "it needs sparse gradients",
}
MATRIX = ("Muon", "LITE")  # optimizers of hidden matrices, beside which AdamW takes everything else
WHOLE = ("AdamMini", "PRGD")  # optimizers that look at the model, and have groups of their own
BLOCKWISE = ("ratios", "decouple_wd", "fused")
GIVEN = ("params", "lr", "weight_decay", "blocks")  # arguments that are no options

OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")
for _name, _kind in sorted(vars(torch.optim).items()):
    if isinstance(_kind, type) and issubclass(_kind, Optimizer) and _kind is not Optimizer:
        OPTIMIZERS.register(_name)(_kind)
OPTIMIZERS.register("AdamMini")(AdamMini)
OPTIMIZERS.register("LITE")(LITE)
OPTIMIZERS.register("PRGD")(PRGD)

AROUND: Registry[type[Wrapper]] = Registry("method")
"""Methods that go around an optimizer, from the innermost to the outermost."""
for _name, _method in (("gradpower", GradPower), ("ire", IRE)):  # what changes gradients inside what changes steps
    AROUND.register(_name)(_method)


def make_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
    *,
    blockwise: Mapping[str, Any] | None = None,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
) -> Optimizer:
    """The optimizer called `name`, of `torch.optim` or ours, over the trainable parameters of a model.

    `options` are further arguments of that optimizer. Weight decay falls on matrices only, not on biases, norms and
    other vectors. "Muon" and "LITE" take the hidden matrices and leave the rest to AdamW (`muon_groups`); their steps
    are scaled to the size of AdamW's, so both take one `lr`, unless options say otherwise. `lr` is in the unit of the
    optimizer.

    "PRGD" takes models that are homogeneous in their parameters, such as "relu-mlp" or "linear", with or without
    structured layers; its `lr` is the length of a step.

    `blockwise`: settings of `blockwise_lr`, for learning rates by block; weight decay then falls on all blocks, as in
    its source. Beside Muon it is for what AdamW takes. `methods` go around the optimizer, by name in small letters with
    their settings, {"ire": {"kappa": 3.0}}; see `AROUND`.

    Raises `ValueError` for an unknown name, one that `fit` cannot drive, settings that do not exist, options with which
    it cannot make a step, a model without trainable parameters, or, for PRGD, one that is not homogeneous.

    >>> optimizer = make_optimizer(nn.Linear(2, 2), "Muon", 1e-3)
    >>> [type(member).__name__ for member in optimizer.members]
    ['Muon', 'AdamW']
    >>> make_optimizer(nn.Linear(2, 2), "AdamWW", 1e-3)
    Traceback (most recent call last):
    ValueError: unknown optimizer 'AdamWW', did you mean 'AdamW'? Known: ...
    """
    _require_kinds(model, name, lr, weight_decay, {"options": options, "blockwise": blockwise, "methods": methods})
    kind, options = OPTIMIZERS[name], dict(options or {})
    make = cast(Callable[..., Optimizer], kind)
    _check(kind, name, weight_decay, options, methods or {})
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError(f"{type(model).__name__} has no parameter that requires grad. Unfreeze what shall be trained.")
    if options:
        _rehearse(kind, name, lr, options, params[0])
    if name in WHOLE:
        if blockwise is not None:
            raise ValueError(f"{name} has no learning rates by block here. Take AdamW, or leave out blockwise.")
        decay = {"weight_decay": weight_decay} if "weight_decay" in inspect.signature(kind).parameters else {}
        optimizer = make(model, lr=lr, **decay, **options)
    elif name in MATRIX and (split := _split(model, weight_decay)) is not None:
        matrices, rest = split
        options.setdefault("adjust_lr_fn", "match_rms_adamw")
        members = [make(matrices, lr=lr, **options)]
        if rest:
            only = [p for group in rest for p in group["params"]]
            groups = rest if blockwise is None else _blockwise(model, lr, weight_decay, blockwise, only)
            members.append(torch.optim.AdamW(groups, lr=lr))
        optimizer = Shell(members) if rest else members[0]
    else:
        make, options = (torch.optim.AdamW, {}) if name in MATRIX else (make, options)
        groups = weight_decay_groups(model, weight_decay)
        if blockwise is not None:
            groups = _blockwise(model, lr, weight_decay, blockwise)
        if "weight_decay" not in inspect.signature(make).parameters:
            groups = [{key: value for key, value in group.items() if key != "weight_decay"} for group in groups]
        optimizer = make([group for group in groups if group["params"]], lr=lr, **options)
    if blockwise is not None and blockwise.get("fused") == "rows":
        optimizer = BlockRows(optimizer, model)
    for method, wrapper in AROUND.items():
        if methods is not None and method in methods:
            try:
                optimizer = cast(Any, wrapper)(optimizer, **methods[method])
            except (TypeError, AttributeError) as error:
                raise ValueError(
                    f"{method} cannot work with {dict(methods[method])}: {error}. Correct them."
                ) from error
    return optimizer


def _require_kinds(model: Any, name: Any, lr: Any, weight_decay: Any, tables: Mapping[str, Any]) -> None:
    require_model(model)
    if not isinstance(name, str):
        raise ValueError(f"name is {name!r}. Rule: the name of an optimizer, a string. Write 'AdamW'.")
    require_rate(lr)
    require_number("weight_decay", weight_decay, 0, good=0.01)
    for table, entries in tables.items():
        check_table(table, entries)
    for method, settings in (tables["methods"] or {}).items():
        check_table(method, settings if isinstance(settings, Mapping) else [settings])


def _check(
    kind: type[Optimizer],
    name: str,
    weight_decay: float,
    options: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
) -> None:
    if name in REFUSED:
        raise ValueError(f"optimizer is {name!r}, but {REFUSED[name]}. Rule: one step per gradient. Take 'AdamW'.")
    known = inspect.signature(kind).parameters
    if weight_decay and "weight_decay" not in known:
        raise ValueError(f"{name} has no weight decay, got {weight_decay}. Write weight_decay=0 or take 'AdamW'.")
    for option in options:
        if option not in known or option in GIVEN:
            names = ", ".join(key for key in known if key not in GIVEN)
            raise ValueError(f"{name} has no option {option!r}. Known: {names}.")
    for method, settings in methods.items():
        _require_settings(method, list(inspect.signature(AROUND[method]).parameters)[1:], settings)


def _rehearse(kind: type[Optimizer], name: str, lr: float, options: Mapping[str, Any], like: torch.Tensor) -> None:
    """Make one step of a matrix of 16 numbers: torch looks at some options then only, and its words are of no help."""
    layer = nn.utils.skip_init(nn.Linear, 4, 4, bias=False)  # which draws no random number
    layer.weight = weight = nn.Parameter(torch.eye(4, device=like.device, dtype=like.dtype))
    weight.grad = weight.detach().clone()
    try:
        optimizer = cast(Any, kind)(layer if name in WHOLE else [weight], lr=lr, **options)
        optimizer.step()
    except Exception as error:  # of any class: it was written for those who read the source
        told = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ValueError(f"{name} cannot work with {told}: {error}. Correct them, or leave them out.") from error


def _split(model: nn.Module, weight_decay: float) -> tuple[Groups, Groups] | None:
    """The groups for Muon and for AdamW; None where there is no hidden matrix."""
    blocks = {entry.name: entry for entry in classify_blocks(model)}
    # patches are mapped, not looked up: the matrix that embeds them mixes pixels as any other mixes features
    maps = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    patches = [name for name in maps if name in blocks and blocks[name].blocks == ("emb",)]
    hidden = {"ffn", "qk", "vo"}
    if not patches and not any(e.parameter.ndim == 2 and hidden.issuperset(e.blocks) for e in blocks.values()):
        return None
    rules = [(f"^{re.escape(name)}$", "ffn") for name in patches]
    return muon_groups(model, weight_decay=weight_decay, rules=rules or None)


def _blockwise(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    settings: Mapping[str, Any],
    params: Iterable[nn.Parameter] | None = None,
) -> Groups:
    _require_settings("blockwise", BLOCKWISE, settings)
    try:
        return blockwise_lr(model, lr, weight_decay=weight_decay, params=params, **settings)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"blockwise cannot work with {dict(settings)}: {error}. Correct them.") from error


def _require_settings(what: str, known: Iterable[str], settings: Iterable[str]) -> None:
    names: Registry[str] = Registry(f"setting of {what}")
    for name in known:
        names.register(name)(name)
    for name in settings:
        names[name]  # raises, with the nearest name
