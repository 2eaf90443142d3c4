"""Adam-mini: Adam whose second moment is one number per head, per output row or per tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from ..core import require_number
from .blocks import Blocks, Entry, Part, classify_blocks
from .check import parameters_of
from .groups import make_group
from .partition import mean_squares, partition_of, spread
from .registry import Method, add
from .sharded import all_finite, local


def adam_mini_direction(
    average: Float[torch.Tensor, "*shape"],
    second: Float[torch.Tensor, "..."],
    step: int,
    betas: tuple[float, float],
    eps: float,
) -> Float[torch.Tensor, "*shape"]:
    """m^ / (sqrt(v^) + eps): Adam's direction, where `second` is broadcast to the shape of `average`.

    `average` and `second` are the running means after `step` steps, without the correction for their start at 0.

    >>> adam_mini_direction(torch.tensor([0.1, 0.2]), torch.tensor(0.01), 1, (0.9, 0.99), 0.0)
    tensor([1., 2.])
    """
    root = (second / (1 - betas[1] ** step)).sqrt().add_(eps)
    return average / (root * (1 - betas[0] ** step))


class AdamMini(Optimizer):
    """Adam with decoupled weight decay and far fewer second moments: one per part of each tensor, not one per weight.

    Args:
        params: the model, or parameter groups of it, for instance of `blockwise_lr`; or `model.named_parameters()`,
            where heads are not known, so that each row of a matrix has a number.
        lr: learning rate: the change of a weight per step where the gradient is steady, as in AdamW.
        betas: decay per step of the running means of the gradient and of the mean square of the part's gradients.
        eps: added to the root of the second moment; unit of a gradient.
        weight_decay: fraction of a weight that one unit of lr removes.
        blocks: where `params` are groups, `classify_blocks(model)`; it says what is a head and what a row.

    State per parameter: "exp_avg" of its shape and dtype, "exp_avg_sq" in float32 of shape (heads, 1), (rows, 1) or (),
    "step". Where every part is a single weight it is AdamW. Tensors that are DTensors stay so; the second moment of
    a part that is spread over ranks is reduced, one all-reduce per step for all of them.
    A gradient that is not finite, on any rank, skips the step: nothing changes but `skipped`, and the first warns.

    Raises `ValueError` for hyper-parameters out of range, groups without `blocks`, a parameter that is not in them,
    complex parameters, sparse gradients, and placements whose rows are not together.
    Cost: no pass of its own; memory 4 bytes per weight instead of Adam's 8. Source: Zhang et al. 2024, "Adam-mini: Use
    Fewer Learning Rates To Gain More" (arXiv:2406.16793), Algorithms 1 to 3.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
    >>> optimizer = AdamMini(layer, lr=1e-3)
    >>> layer(torch.ones(1, 3, 8)).square().mean().backward()
    >>> optimizer.step()
    >>> tuple(optimizer.state[layer.linear1.weight]["exp_avg_sq"].shape)
    (16, 1)
    >>> tuple(optimizer.state[layer.self_attn.in_proj_weight]["exp_avg_sq"].shape)  # 2 + 2 heads, 8 rows of values
    (12, 1)
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        blocks: Blocks | None = None,
    ) -> None:
        if isinstance(params, nn.Module):
            for name, p in params.named_parameters():
                if p.is_complex() and p.requires_grad:
                    raise ValueError(f"{name} is complex. Rule: real. Take torch.view_as_real, or AdamW for it.")
            blocks = classify_blocks(params) if blocks is None else blocks
            params = [make_group((entry.name, entry.parameter) for entry in blocks)]
        if not (blocks is None or isinstance(blocks, Blocks)):
            raise ValueError(f"blocks is {blocks!r}. Rule: what classify_blocks returns. Write classify_blocks(model).")
        params = parameters_of(params)
        if blocks is None and all(isinstance(one, tuple) and len(one) == 2 for one in params):
            blocks = _by_shape(params)
        if blocks is None:
            raise ValueError(
                "blocks is None. Rule: heads and rows must be known. Pass the model instead of its parameters, "
                "or blocks=classify_blocks(model)."
            )
        self.partitions = {entry.parameter: partition_of(entry) for entry in blocks}
        self.skipped = 0
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters are in `blocks`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
            for p in group["params"]:
                if p not in self.partitions:
                    raise ValueError(
                        f"a parameter of shape {tuple(p.shape)} is in no block. Rule: those of blocks, which require "
                        "grad. Pass blocks=classify_blocks(model) of the model with that parameter."
                    )
                if p.is_complex():
                    raise ValueError(f"{self.partitions[p].name} is complex. Rule: real. Leave it to AdamW.")
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step, or none where a gradient is not finite; `closure`, if given, is called once before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, gradient, _ in found:
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"the gradient of {self.partitions[p].name} has layout {gradient.layout}. Rule: dense gradients. "
                    "Write nn.Embedding(sparse=False)."
                )
        if not all_finite([gradient for _, gradient, _ in found]):
            if not self.skipped:
                warnings.warn("a gradient is not finite: the step is skipped, nothing changed", stacklevel=3)
            self.skipped += 1
            return loss
        squares = mean_squares([(gradient, self.partitions[p]) for p, gradient, _ in found])
        for (p, gradient, group), square in zip(found, squares, strict=True):
            self._move(p, gradient, square, group)
        return loss

    def _move(self, p: nn.Parameter, gradient: torch.Tensor, square: torch.Tensor, group: Mapping[str, Any]) -> None:
        state, (beta1, beta2), lr = self.state[p], group["betas"], float(group["lr"])
        partition = self.partitions[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(square)
        state["step"] += 1
        average, second = local(state["exp_avg"]), local(state["exp_avg_sq"])
        average.lerp_(local(gradient).to(average.dtype), 1 - beta1)
        second.lerp_(local(square), 1 - beta2)
        direction = adam_mini_direction(
            average, spread(second, partition, p), int(state["step"]), (beta1, beta2), group["eps"]
        )
        local(p).mul_(1 - lr * group["weight_decay"]).sub_(direction, alpha=lr)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; raises `ValueError` if second moments have other shapes than here."""
        numbers = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        seconds = {
            p: state_dict["state"][index]["exp_avg_sq"]
            for index, p in zip(numbers, params, strict=False)
            if "exp_avg_sq" in state_dict["state"].get(index, {})
        }
        for p, second in seconds.items():
            partition = self.partitions[p]
            if tuple(second.shape) != partition.state_shape:
                raise ValueError(
                    f"the second moment of {partition.name} has shape {tuple(second.shape)} in the state and "
                    f"{partition.state_shape} here. Rule: equal. Build the model and blocks as when it was saved."
                )
        super().load_state_dict(dict(state_dict))
        for p, second in seconds.items():  # torch has cast it to the dtype of the parameter
            self.state[p]["exp_avg_sq"] = second.detach().to(p.device).clone()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "partitions": self.partitions, "skipped": self.skipped}


def _by_shape(named: Iterable[tuple[str, nn.Parameter]]) -> Blocks:
    """What can be told without the model: matrices have rows, and no heads; all else is whole."""
    return Blocks(
        tuple(
            Entry(name, (), p, 0, (Part("ffn" if p.ndim == 2 else "other", 0, p.shape[0] if p.ndim else 1),), "shape")
            for name, p in named
        )
    )


def _check(group: Mapping[str, Any]) -> None:
    lr, eps, decay = group["lr"], group["eps"], group["weight_decay"]
    lr = float(lr) if isinstance(lr, torch.Tensor) else lr
    for name, value, good in (("lr", lr, 1e-3), ("eps", eps, 1e-8), ("weight_decay", decay, 1e-2)):
        require_number(name, value, 0.0, good=good)
    betas = group["betas"]
    pair = isinstance(betas, Sequence) and len(betas) == 2
    if not (pair and all(issubclass(type(beta), Real) and 0 <= beta < 1 for beta in betas)):
        raise ValueError(f"betas is {betas!r}. Rule: two numbers in [0, 1). Common: (0.9, 0.999).")


add(
    Method(
        name="AdamMini",
        summary="Adam with one second moment per head, per output row or per vector",
        paper="Zhang et al. 2024, Adam-mini: Use Fewer Learning Rates To Gain More, arXiv:2406.16793",
        lr_unit="change of a weight per step where the gradient is steady, as in AdamW",
        passes=1.0,
        bytes=4.0,
        memory="the first moment in float32 and one number per row; AdamW keeps 8 bytes",
        make=lambda model, base, **settings: AdamMini(model, lr=1e-2, **settings),
        wraps=False,
    )
)
