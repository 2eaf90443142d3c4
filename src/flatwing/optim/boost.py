"""A step of any optimizer, after which chosen weights have moved further than it moved them.

Pieces: where an optimizer treats each parameter on its own, it steps some of them at a time. On a CPU what was just
written is then still in the cache, and the copy of the weights from which a move is known is never large.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import optim
from torch.optim import Optimizer

from .memory import compiled
from .sharded import local
from .shell import Shell

hooks = importlib.import_module("torch.optim.optimizer")

PIECE = {"cpu": 1 << 19}
"""Entries that step together, at least; a large part of an accelerator's work, as its launches cost time."""
ELSEWHERE = 1 << 25

CHUNK = 1 << 16
SEPARATE = {
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.Rprop, optim.ASGD, optim.Muon,
}  # fmt: skip
"""Optimizers, themselves and not their subclasses, that treat each parameter on its own."""

Group = dict[str, Any]


@dataclass(frozen=True)
class Boost:
    """Where `flat` (bool, of the local shape) a parameter moves 1 + `kappa` times as far, with or without its decay."""

    flat: torch.Tensor
    kappa: float
    decay: bool = True


def boosted_step(base: Optimizer, boosts: Mapping[torch.Tensor, Boost]) -> None:
    """`base.step()`, and p += kappa flat (p - old p) for the parameters of `boosts` that have a gradient.

    What the base itself does is what it does alone, bit for bit. Moves of torch's Adam and AdamW are computed from
    their state, those of other optimizers from a copy of the weights. Raises `ValueError` where a decay is to be left
    out that is not known apart from the rest.
    Cost: one pass over the parameters. Memory: none for Adam, else that of the parameters that step at a time.
    """
    for optimizer, groups in pieces(base):
        old: dict[torch.Tensor, torch.Tensor] = {}
        moving = [
            (group, p, boosts[p]) for group in groups for p in group["params"] if p.grad is not None and p in boosts
        ]
        rates = [0.0 if boost.decay else decay_rate(optimizer, group) for group, _, boost in moving]
        for group, p, _ in moving:
            if not keeps_its_move(optimizer, group):
                old[p] = local(p).detach().clone()
        step_piece(optimizer, groups)
        for (group, p, boost), rate in zip(moving, rates, strict=True):
            if p in old:
                of_move(local(p), old.pop(p), boost.flat, boost.kappa, rate)
            else:
                _of_adam_state(p, optimizer.state[p], group, boost)


def pieces(optimizer: Optimizer) -> Iterator[tuple[Optimizer, list[Group]]]:
    """Optimizers, and the groups with which to step each, so that together it is one step of `optimizer`."""
    if type(optimizer) is Shell and not _watched(optimizer):
        for member in optimizer.members:
            yield from pieces(member)
    elif type(optimizer) in SEPARATE and not _watched(optimizer):
        for group in optimizer.param_groups:
            for some in _batches(group["params"]):
                yield optimizer, [{**group, "params": some}]
    else:
        yield optimizer, optimizer.param_groups


def step_piece(optimizer: Optimizer, groups: list[Group]) -> None:
    """One step of an optimizer that has only these groups meanwhile."""
    whole = optimizer.param_groups
    optimizer.param_groups = groups
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = whole


def _batches(params: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    batch: list[torch.Tensor] = []
    size = 0
    for p in params:
        batch.append(p)
        size += p.numel()
        if size >= PIECE.get(p.device.type, ELSEWHERE):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _watched(optimizer: Optimizer) -> bool:
    """Whether somebody would notice that one step is made of several calls; schedulers do not mind."""
    step = optimizer.__dict__.get("step")
    return (
        (step is not None and not hasattr(step, "_wrapped_by_lr_sched"))
        or bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
        or bool(hooks._global_optimizer_pre_hooks or hooks._global_optimizer_post_hooks)
    )


def decay_rate(optimizer: Optimizer, group: Group) -> float:
    """lr * weight decay, the share of its weights that a step takes away; raises `ValueError` where none is apart."""
    if not group.get("weight_decay"):
        return 0.0
    if type(optimizer) not in SEPARATE or not group.get("decoupled_weight_decay", type(optimizer) is optim.Muon):
        raise ValueError(
            f"boost_weight_decay is False for {type(optimizer).__name__} with weight_decay {group['weight_decay']}. "
            "Rule: only a decoupled decay of torch.optim is known apart from the rest of a move. Set it True, "
            "weight_decay=0, or take AdamW."
        )
    return float(group["lr"] * group["weight_decay"])


def keeps_its_move(optimizer: Optimizer, group: Group) -> bool:
    """Whether the move of a step can be told from the state after it: torch's Adam or AdamW with numbers in Python."""
    return (
        type(optimizer) in (optim.Adam, optim.AdamW)
        and not _watched(optimizer)
        and not any(isinstance(value, torch.Tensor) for value in (group["lr"], *group["betas"]))
        and not group["capturable"]
        and not group["differentiable"]
        and not (group["fused"] and any(p.device.type != "cpu" for p in group["params"]))
        and group["lr"] * group["weight_decay"] != 1
    )


def of_move(p: torch.Tensor, old: torch.Tensor, flat: torch.Tensor, kappa: float, shrink: float) -> None:
    """p += kappa flat (p - old + shrink old), in place."""
    if fast := compiled(p, old, flat):
        return fast.of_move(p, old, flat, kappa, shrink)
    wide = torch.promote_types(p.dtype, torch.float32)  # a difference of neighbours in half precision is noise
    move = p.to(wide) - old
    if shrink:
        move.add_(old, alpha=shrink)
    p.add_(move.mul_(flat), alpha=kappa)
    return None


def of_adam(
    p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, flat: torch.Tensor, a: float, b: float, eps: float
) -> None:
    """p += flat (a m / (sqrt(v) + eps) + b p), in place."""
    if fast := compiled(p, m, v, flat):
        return fast.of_adam(p, m, v, flat, a, b, eps)
    wide = torch.promote_types(p.dtype, torch.float32)
    move = v.to(wide).sqrt()
    torch.div(m, move.add_(eps), out=move)
    p.add_(move.mul_(a).add_(p, alpha=b).mul_(flat))
    return None


def _of_adam_state(p: torch.Tensor, state: dict[str, Any], group: Group, boost: Boost) -> None:
    """The boost from Adam's state after the step that made it (Kingma and Ba 2015, Algorithm 1).

    The step was p = (1 - d) old - s m / (sqrt(v) + eps'), where s and eps' have the corrections of both biases and
    d = lr * weight decay if decoupled. So old = (p + s m / ...) / (1 - d), and the decay's part of the move is -d old.
    """
    step = float(state["step"])
    first, second = 1 - group["betas"][0] ** step, (1 - group["betas"][1] ** step) ** 0.5
    speed = group["lr"] / first * second
    decay = group["lr"] * group["weight_decay"] if group["decoupled_weight_decay"] and boost.decay else 0.0
    ratio = decay / (1 - decay)
    a, b, eps = -boost.kappa * (1 + ratio) * speed, -boost.kappa * ratio, group["eps"] * second
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    parts = local(p).detach(), local(state["exp_avg"]), local(v), boost.flat
    if compiled(*parts) or not all(part.is_contiguous() for part in parts):
        of_adam(*parts, a, b, eps)
        return
    size = CHUNK if p.device.type == "cpu" else ELSEWHERE
    for weights, m, v, flat in zip(*(part.view(-1).split(size) for part in parts), strict=True):
        of_adam(weights, m, v, flat, a, b, eps)
