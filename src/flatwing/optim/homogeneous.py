"""PRGD: normalized gradient descent whose weights are lengthened step by step, for homogeneous networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log, sqrt
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn
from typing_extensions import override

from ..core import require_number, require_whole
from .check import parameters_of, require_rate
from .degree import degree_of
from .registry import Method, add
from .sharded import SUM, global_norm, local, over_shards
from .shell import Closure, Guarded, called

SHARED = ("degree", "growth", "tol", "cycle", "warmup", "radius_cap", "normalize")
STATE = ("steps", "since", "start", "radius")


def log_margin_loss(scores: Float[torch.Tensor, "n k"], labels: Int[torch.Tensor, " n"]) -> Float[torch.Tensor, ""]:
    """log of the mean of exp(-(s_y - s_j)) over samples and other classes j; its gradient is dL / L.

    Cross-entropy underflows when all margins are large, and its gradient with it; this does not. As a log-sum-exp it
    is not a mean over samples: gradients of parts of a batch do not add up to that of the batch. Raises `ValueError`
    for fewer than two scores, and labels that do not fit. Cost: as cross-entropy.

    >>> log_margin_loss(torch.tensor([[300.0, 0.0], [0.0, 200.0]]), torch.tensor([0, 1])).round()
    tensor(-201.)
    """
    shape = tuple(scores.shape)
    if len(shape) != 2 or len(scores) != len(labels) or not len(labels) or labels.dtype != torch.int64:
        raise ValueError(
            f"scores have shape {shape}, labels {tuple(labels.shape)} of {labels.dtype}. Rule: (n, k) and (n,) of "
            "int64, n >= 1. Write scores.flatten(0, -2), labels.flatten().long()."
        )
    if scores.shape[1] < 2:
        raise ValueError(
            f"there is {scores.shape[1]} score per sample. Rule: at least 2. For two classes, write (-s, s)."
        )
    try:
        own = torch.nn.functional.one_hot(labels, scores.shape[1]).bool()
    except RuntimeError:
        raise ValueError(
            f"labels go from {int(labels.min())} to {int(labels.max())} for {shape[1]} scores. Rule: 0 to "
            f"{shape[1] - 1}. Count from 0."
        ) from None
    others = (scores - scores[own][:, None])[~own]
    return others.logsumexp(0) - log(others.numel())


class PRGD(Guarded):
    """Normalized gradient descent in a ball of growing radius, for networks with f(c theta) = c^L f(theta).

    The margin of such a network is min (f_y - f_j) / |theta|^L, and the direction of theta is what it depends on. The
    gradient that turns theta fades as theta grows by itself; here the norm of all parameters together, the radius, is
    set. The first `warmup` steps are plain: theta <- theta - lr g / |g|. Then theta stays in the ball of the radius it
    has. Where the part of the gradient along the sphere is less than `tol` of it, the direction is solved at this
    radius, and theta is multiplied by growth^(1/L), so that scores grow by `growth`; after `cycle` steps it is in any
    case, because steps of one length do not come to rest. The radius ends at `radius_cap` times that after warm-up.
    The length of a step is lr (R / R_0)^(1-L), because the loss is the more curved the larger the radius: with it, what
    lr is right at the beginning stays right.

    `params` is a model, whose degree L is then found, or refused by naming the layer (see `degree_of`); or parameters
    or groups, with `degree` (measure it by `homogeneity`). lr is the length of a step, in the norm of all parameters
    together, at the radius R_0. normalize="norm" takes g / |g|, so that any loss of the margins, scaled or not, may be
    differentiated; "log" takes the gradient as it is, for `log_margin_loss(...).backward()`, whose gradient is dL / L,
    and the length is then lr (R / R_0)^(2-2L) |g|. Use the whole data, or large batches: noise hides that the
    direction is solved. On cross-entropy in float32 stop when the loss underflows; `log_margin_loss` does not.

    Groups have their own lr; the other settings and the radius, "radius" in every group, are one for all. Parameters
    with lr = 0 or without gradient stand still and are not counted. A step is skipped where a gradient is not finite.
    Raises `ValueError` for networks that are not homogeneous, complex parameters, sparse gradients and settings out of
    range. Memory: none beyond the gradients. Cost: three passes over parameters and a wait for the device per step.
    Sharded parameters: three all-reduces of a number. Source: Wang, Min and Wu (2023), arXiv:2311.14387; the test of
    the gradient and the power of the radius are ours.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
    >>> optimizer = PRGD(net, lr=0.1)
    >>> loss = log_margin_loss(net(torch.randn(6, 4)), torch.randint(2, (6,)))
    >>> loss.backward(); optimizer.step(); optimizer.param_groups[0]["degree"]
    2
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | torch.Tensor = 0.1,
        *,
        degree: int | None = None,
        growth: float = 1.2,
        tol: float = 0.05,
        cycle: int = 200,
        warmup: int = 100,
        radius_cap: float = 1e6,
        normalize: str = "norm",
    ) -> None:
        given: Any = params
        if isinstance(params, nn.Module):
            given = [p for p in params.parameters() if p.requires_grad]
        given = parameters_of(given)
        if isinstance(params, nn.Module) and degree is None and not any(p.is_complex() for p in given):
            degree = degree_of(params)
        settings = {
            "degree": degree,
            "growth": growth,
            "tol": tol,
            "cycle": cycle,
            "warmup": warmup,
            "radius_cap": radius_cap,
        }
        state = {"steps": 0, "since": 0, "start": 0.0, "radius": 0.0}
        super().__init__(given, {"lr": lr, **settings, "normalize": normalize, **state})

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its settings but lr must be those of the others."""
        super().add_param_group(param_group)
        first, group = self.param_groups[0], self.param_groups[-1]
        try:
            _check(group)
            for key in SHARED:
                if group[key] != first[key]:
                    raise ValueError(f"{key} is {group[key]} in one group, {first[key]} in another. Rule: one for all.")
        except ValueError:
            self.param_groups.pop()
            raise
        group.update({key: first[key] for key in STATE})

    @torch.no_grad()
    @override
    def step(self, closure: Closure | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step, or none where a gradient is not finite; `closure`, if given, is called once before."""
        loss = called(closure)
        if self._usable():
            self._update()
        return loss

    def _update(self) -> None:
        moving = [
            (p, p.grad, float(group["lr"]))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and float(group["lr"]) > 0
        ]
        if not moving:
            return
        weights = [p for p, _, _ in moving]
        norm, size, along = _lengths(weights, [gradient for _, gradient, _ in moving])
        if not (norm > 0 and size > 0):
            return  # no direction, or nothing to learn
        shared = self.param_groups[0]
        warm, degree = shared["steps"] >= shared["warmup"], shared["degree"]
        start, radius = (shared["start"] or norm, shared["radius"] or norm) if warm else (0.0, 0.0)
        turned = sqrt(max(0.0, 1.0 - (along / (norm * size)) ** 2)) if along < 0 else 1.0
        since, solved = shared["since"] + 1 if warm else 0, turned < shared["tol"]
        if warm and (solved or since >= shared["cycle"]) and radius < shared["radius_cap"] * start:
            radius = min(radius * shared["growth"] ** (1 / degree), shared["radius_cap"] * start)
            since = 0
            _scale(weights, radius / norm)
        else:
            relative = norm / start if warm else 1.0
            power, unit = (1 - degree, size) if shared["normalize"] == "norm" else (2 - 2 * degree, 1.0)
            for p, gradient, lr in moving:
                local(p).add_(local(gradient).to(p.dtype), alpha=-lr * relative**power / unit)
            if warm and (longer := float(global_norm(weights))) > radius:
                _scale(weights, radius / longer)
        for group in self.param_groups:
            group.update(steps=group["steps"] + 1, since=since, start=start, radius=radius)


def _lengths(weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> tuple[float, float, float]:
    """|theta|, |g| and their inner product, over all shards; one wait for the device."""
    products = [(local(p).double() * local(g).double()).sum() for p, g in zip(weights, gradients, strict=True)]
    values = (global_norm(weights), global_norm(gradients), over_shards(weights, products, SUM))
    norm, size, along = torch.stack([value.to(values[0].device) for value in values]).tolist()
    return norm, size, along


def _scale(weights: list[torch.Tensor], factor: float) -> None:
    for p in weights:
        local(p).mul_(factor)


def _check(group: Mapping[str, Any]) -> None:
    require_rate(group["lr"], 0.1)
    if any(p.is_complex() for p in group["params"]):
        raise ValueError("a parameter is complex. Rule: real ones. Leave complex parameters to another optimizer.")
    degree = group["degree"]
    if degree is None:
        raise ValueError(
            "degree is None. Rule: the whole number L >= 1 with f(c theta) = c^L f(theta). "
            "Pass the model in place of its parameters, or measure homogeneity(model, batch)."
        )
    for name, least, good in (("degree", 1, 2), ("cycle", 2, 200), ("warmup", 0, 100)):
        require_whole(name, group[name], least, good=good)
    require_number("growth", group["growth"], above=1, good=1.2)
    require_number("tol", group["tol"], above=0, below=1, good=0.05)
    require_number("radius_cap", group["radius_cap"], 1, good=1e6)
    if group["normalize"] not in ("norm", "log"):
        raise ValueError(f"normalize is {group['normalize']!r}. Rule: 'norm' or 'log'. Common: 'norm'.")


add(
    Method(
        name="PRGD",
        summary="normalized gradient descent for homogeneous networks, whose norm is set to widen the margin",
        paper="Wang, Min and Wu 2023, Achieving Margin Maximization Exponentially Fast via Progressive Norm Rescaling, "
        "arXiv:2311.14387",
        lr_unit="length of a step, in the norm of all parameters together, at the end of warm-up",
        passes=1.0,
        bytes=0.0,
        memory="none",
        make=lambda model, base, **settings: PRGD(model, **settings),
        wraps=False,
        refuses=frozenset({"complex", "nonlinear-model"}),
    )
)
