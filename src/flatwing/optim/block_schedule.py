"""Learning rates of blocks over a run: own peaks, one common floor."""

from __future__ import annotations

import math
from typing import final

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from ..core import require_number


def blockwise_factor(
    step: int, ratio: float, steps: int, *, warmup: int = 0, floor: float = 0.05, shape: str = "cosine"
) -> float:
    """Learning rate of step 0 ... steps-1 over the group's own peak: up to 1, then down to a rate all blocks share.

    A straight rise over `warmup` steps; then half a cosine ("cosine"), or a stay until two thirds of the run and a
    straight line ("wsd"). All blocks end at one common rate, floor * lr, as in the code of Wang et al. (2025), so a
    block of ratio r falls to floor / r of its peak; never above the peak.

    >>> [round(blockwise_factor(k, 10.0, 5, warmup=1), 3) for k in range(5)]
    [1.0, 1.0, 0.751, 0.254, 0.005]
    """
    if step < warmup:
        return (step + 1) / warmup
    end = min(1.0, floor / ratio)
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    if shape == "wsd":
        stay = max(0.0, 2 / 3 * steps - warmup) / max(1, steps - 1 - warmup)
        high = 1.0 if done <= stay else (1 - done) / (1 - stay)
    else:
        high = (1 + math.cos(math.pi * done)) / 2
    return end + (1 - end) * high


@final
class BlockwiseSchedule(LRScheduler):
    """`blockwise_factor` as a scheduler: it sets "lr" of each group, and "row_scales" where a group has them."""

    def __init__(
        self, optimizer: Optimizer, steps: int, warmup: int = 0, floor: float = 0.05, shape: str = "cosine"
    ) -> None:
        if not 0 <= warmup < steps:
            raise ValueError(f"warmup is {warmup} of {steps} steps. Rule: 0 <= warmup < steps. Common: 2 % of them.")
        require_number("floor", floor, 0, 1, good=0.05, advice="It is a fraction of lr.")
        if shape not in ("cosine", "wsd"):
            raise ValueError(f"shape is {shape!r}. Known: 'cosine', 'wsd'.")
        self.steps, self.warmup, self.floor, self.shape = steps, warmup, floor, shape
        super().__init__(optimizer)

    @override
    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rates of the groups at this step; also sets "row_scales"."""
        rates: list[float | torch.Tensor] = []
        for group, peak in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            ratio = group.get("ratio", 1.0)
            own = self.factor(ratio)
            rates.append(peak * own)
            if group.get("row_ratios"):
                group["row_scales"] = tuple(r * self.factor(r) / (ratio * own) for r in group["row_ratios"])
        return rates

    def factor(self, ratio: float) -> float:
        """`blockwise_factor` at this step."""
        return blockwise_factor(
            self.last_epoch, ratio, self.steps, warmup=self.warmup, floor=self.floor, shape=self.shape
        )


def blockwise_schedule(
    optimizer: Optimizer, steps: int, *, warmup: int = 0, floor: float = 0.05, shape: str = "cosine"
) -> BlockwiseSchedule:
    """A scheduler for groups of `blockwise_lr`: call its `step()` after each step of the optimizer.

    Every group rises to its own peak over `warmup` steps and falls, along a cosine or after a stay ("wsd"), to one
    common rate, `floor` times the rate of ratio 1, at the last of `steps`. Groups without "ratio" count as ratio 1.
    Raises `ValueError` for a warm-up that does not fit, a floor outside [0, 1], or another shape.

    >>> optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 1.0, "ratio": 10.0}])
    >>> scheduler = blockwise_schedule(optimizer, 100)
    >>> scheduler.get_last_lr()
    [1.0]
    """
    return BlockwiseSchedule(optimizer, steps, warmup, floor, shape)
