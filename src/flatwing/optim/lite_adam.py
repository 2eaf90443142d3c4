"""LITE for what is no matrix: embeddings and norms take longer steps where Adam's second moment is small."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from typing import Any, final

import torch
from jaxtyping import Float
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from .check import require_numbers
from .lite import DECLINE, GROWTH, boost, risen
from .registry import Method, add
from .sharded import SUM, local, over_shards
from .shell import Wrapper

LEVELS = (1e-6, 1e6)
RANGES = {
    "chi": (1, inf, 4.0), "sharp": (1e-6, 0.5, 0.1), "soft": (1e-6, 0.49, 0.1), "warmup": (0, inf, 0),
    "ramp": (0, inf, 1000), "floor": (0, 0.999, 0.1),
}  # fmt: skip


def flatness(
    moment: Float[torch.Tensor, "*shape"], mean: Float[torch.Tensor, ""], levels: Float[torch.Tensor, "2"]
) -> Float[torch.Tensor, "*shape"]:
    """1 where moment is below levels[0] times `mean`, 0 above levels[1] times it, a straight line between.

    >>> flatness(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor(1.0), torch.tensor([1.0, 3.0]))
    tensor([1.0000, 1.0000, 0.5000, 0.0000])
    """
    low, high = levels.to(moment.dtype) * mean
    return ((high - moment) / (high - low).clamp(min=torch.finfo(moment.dtype).tiny)).clamp(0, 1)


@final
class LITEAdam(Wrapper):
    """AdamW, or another base, with steps up to `chi` times as long along the flat coordinates of each tensor.

    The companion of `LITE` for embeddings and norms. `lr` has the unit of the base's. Of each tensor the share `sharp`
    of the entries with the largest second moment keeps its steps, a further share `soft` is in between, all others go
    chi times as far, weight decay included. The two levels are multiples of the tensor's mean second moment, and move
    by 5 % per step towards the shares. The moment is the base's "exp_avg_sq"; without one, the squared gradient.
    `warmup`, `ramp` and `floor` are as in `LITE`, in steps; chi=1 is the base bit for bit.

    Raises `ValueError` for settings out of range or complex parameters. Memory: two numbers per tensor, and a copy of
    the parameters while it steps. Cost: about ten passes over the parameters; on shards, two all-reduces of two numbers
    per tensor. Source: Zhu et al. (2026), arXiv:2602.22681.

    >>> norm = torch.nn.LayerNorm(8)
    >>> optimizer = LITEAdam(torch.optim.AdamW(norm.parameters(), lr=1e-3), warmup=100)
    >>> norm(torch.randn(2, 8)).square().sum().backward(); optimizer.step()
    """

    name = "lite_adam"
    refuses_complex = True

    def __init__(
        self,
        base: Optimizer | Sequence[Optimizer],
        chi: float = 4.0,
        *,
        sharp: float = 0.1,
        soft: float = 0.1,
        warmup: int = 0,
        ramp: int = 1000,
        floor: float = 0.0,
    ) -> None:
        settings = {"chi": chi, "sharp": sharp, "soft": soft, "warmup": warmup, "ramp": ramp, "floor": floor}
        super().__init__(base, {**settings, "lite_step": 0})

    @override
    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        require_numbers(group, RANGES)

    @override
    def update(self) -> None:
        """Step the base, then go on along flat coordinates."""
        longer: dict[torch.Tensor, float] = {}
        for group in self.param_groups:
            rise = risen(group["lite_step"], group["warmup"], group["ramp"])
            lr = float(group["lr"])
            peak = float(group.get("max_lr", group.get("initial_lr", lr)))
            chi = boost(group["chi"], rise, lr / peak if peak else 1.0, group["floor"])
            longer |= {p: chi - 1 for p in group["params"] if chi != 1 and p.grad is not None and p.numel()}
            group["lite_step"] += 1
        before = {p: local(p).clone() for p in longer}
        self.base.step()
        for p, flat in zip(longer, self._masks(list(longer)), strict=True):
            here = local(p)
            here.add_((here - before[p]).mul_(flat), alpha=longer[p])

    def _masks(self, params: list[torch.Tensor]) -> list[torch.Tensor]:
        """How flat each local entry is; the levels then move."""
        if not params:
            return []
        moments = [self._moment(p) for p in params]
        sums = [
            torch.stack([v.sum(dtype=torch.float32), v.new_tensor(v.numel(), dtype=torch.float32)]) for v in moments
        ]
        means = [total / count for total, count in _each(params, sums)]
        groups = {p: group for group in self.param_groups for p in group["params"]}
        masks, above = [], []
        for p, v, mean in zip(params, moments, means, strict=True):
            sharp, soft = groups[p]["sharp"], groups[p]["soft"]
            # the levels of those shares if moments are distributed exponentially
            start = torch.tensor([-log(sharp + soft), -log(sharp)], device=v.device)
            levels = self.kept.setdefault(p, {"levels": start})["levels"]
            masks.append(flatness(v, mean, levels))
            above.append(torch.stack([(v > level * mean).sum(dtype=torch.float32) for level in levels]))
        for p, counts in zip(params, _each(params, above), strict=True):
            wanted = counts.new_tensor([groups[p]["sharp"] + groups[p]["soft"], groups[p]["sharp"]]) * p.numel()
            levels = self.kept[p]["levels"] * torch.where(counts > wanted, GROWTH, DECLINE)
            self.kept[p]["levels"] = levels.clamp(*LEVELS)
        return masks

    def _moment(self, p: torch.Tensor) -> torch.Tensor:
        entries = self.base.state.get(p, {})
        if "exp_avg_sq" in entries:
            moment = local(entries["exp_avg_sq"])
        else:
            assert p.grad is not None  # those without were left out
            moment = local(p.grad).square()
        return moment.to(torch.promote_types(moment.dtype, torch.float32))


def _each(owners: Sequence[torch.Tensor], numbers: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum over shards of the numbers of each owner, row by row, in one all-reduce."""
    rows = torch.eye(len(owners), device=numbers[0].device)
    return over_shards(owners, [rows[:, i : i + 1] * own for i, own in enumerate(numbers)], SUM)


def _make(model: nn.Module, base: Any, **settings: Any) -> Optimizer:
    return LITEAdam(base([p for p in model.parameters() if p.requires_grad]), **settings)


add(
    Method(
        name="LITEAdam",
        summary="longer steps along coordinates with a small second moment; LITE's part for embeddings and norms",
        paper="Zhu et al. (2026), arXiv:2602.22681",
        lr_unit="the base's",
        passes=1.0,
        bytes=0.0,
        memory="two numbers per tensor; a copy of the parameters during the step",
        make=_make,
        off={"chi": 1.0},
    )
)
