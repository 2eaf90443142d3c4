"""IRE: the weights along which the loss is flat move further than the base optimizer moves them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn, optim
from torch.optim import Optimizer
from typing_extensions import override

from ..core import require_number, require_whole
from . import registry
from .boost import Boost, boosted_step, decay_rate, pieces
from .check import require_flag
from .control import random_scores
from .curvature import Forward, adam_second_moment, sampled_diagonal, squared_gradient
from .quantile import kth_smallest
from .registry import Method
from .sharded import all_finite, local
from .shell import Shell, Wrapper

MASKS = ("auto", "adam", "gradient", "sampled", "random")
SHARED = ("gamma", "interval", "start", "mask", "ramp", "seed")  # settings that groups may not have of their own
RANGES = {
    "kappa": (0.0, inf, 3.0), "gamma": (0.0, 1.0, 0.6), "interval": (1, inf, 10), "start": (0, inf, 0),
    "ramp": (0, inf, 0), "seed": (-inf, inf, 0),
}  # fmt: skip
ADAMS = (optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam)


class IRE(Wrapper):
    """Implicit regularization enhancement around any optimizer, or around several as if they were one.

    Of all weights together, the share `gamma` with the least curvature counts as flat. Where the base moves the
    weights by D, they move by (1 + kappa flat) D: sharp weights keep the step that is stable for them, flat ones go on
    faster, along the valley. `kappa` has no unit; `lr` is the base's, in its unit. Tune it again: with 0.6 of the
    weights four times as fast, the best one is lower than the base's.

    `mask` says what curvature is. "adam": Adam's second moment, which costs nothing. "sampled": the Gauss-Newton
    diagonal with labels drawn from the model, for which the loop calls `refresh` before each step. "auto": the first
    where every optimizer inside keeps one, else the second. "gradient": the square of the step's own gradient.
    "random": a control that has the same share of flat weights and knows nothing. The mask is made anew every
    `interval` steps. A step without anything to make a mask of yet, as the first of all is for Adam, is the base's.

    The first `start` steps are the base's; the end of the warm-up is a good value. Over the next `ramp` steps kappa
    rises to its full value. With `boost_weight_decay` off, a decoupled weight decay keeps its strength on flat weights.
    All of these are entries of `param_groups`: `kappa` and `boost_weight_decay` per group, the others equal in all.

    Parameters without a gradient stay; weights that the loss does not see count as flat. With `kappa` 0 every step is
    the base's, bit for bit. Masks are the same on every rank and for every way of sharding the same curvature.

    Raises `ValueError` for settings out of range or not equal in all groups, complex parameters, and a weight decay to
    be left out that cannot be. Cost: one pass over the parameters per step and about four per mask; `refresh` a forward
    and backward pass per mask. Memory: one byte per parameter, and for bases other than torch's Adam and AdamW a copy
    of some weights.
    Under `GradScaler`, accumulation, clipping: nothing to do.

    Source: Wang et al. 2024, "Improving Generalization and Convergence by Enhancing Implicit Regularization",
    Algorithm 1; defaults as there for language models. For convolutional networks they have kappa 2, gamma 0.9 and a
    start after a third to a half of all steps.

    >>> model = nn.Linear(4, 2)
    >>> optimizer = IRE(torch.optim.AdamW(model.parameters(), lr=1e-3), kappa=3.0, gamma=0.6)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> int(sum(flat.sum() for flat in optimizer.masks().values()))  # of 10 weights
    6
    """

    name = "IRE"
    refuses_complex = True
    _stale = False  # whether it has warned of an old mask

    def __init__(
        self,
        base: Optimizer | Sequence[Optimizer],
        kappa: float = 3.0,
        gamma: float = 0.6,
        interval: int = 10,
        start: int = 0,
        *,
        mask: Literal["auto", "adam", "gradient", "sampled", "random"] = "auto",
        ramp: int = 0,
        boost_weight_decay: bool = True,
        seed: int = 0,
    ) -> None:
        settings = {
            "kappa": kappa, "gamma": gamma, "interval": interval, "start": start, "mask": mask, "ramp": ramp,
            "boost_weight_decay": boost_weight_decay, "seed": seed, "ire_step": 0, "ire_refreshed": -1,
        }  # fmt: skip
        super().__init__(base, settings)
        for optimizer, groups in pieces(self.base):
            for group in groups:
                if not group["boost_weight_decay"]:
                    decay_rate(optimizer, group)

    @override
    def _complete(self, group: dict[str, Any]) -> None:
        first = self.param_groups[0]
        for name in SHARED:
            if name in first:
                group.setdefault(name, first[name])
        super()._complete(group)
        for name, (least, most, good) in RANGES.items():
            check = require_whole if isinstance(good, int) else require_number
            check(name, group[name], least, most, good=good)
        require_flag("boost_weight_decay", group["boost_weight_decay"])
        if group["mask"] not in MASKS:
            raise ValueError(f"mask is {group['mask']!r}. Rule: one of {', '.join(MASKS)}. Leave it out for 'auto'.")
        for name in SHARED:
            if group[name] != first[name]:
                raise ValueError(
                    f"{name} is {first[name]!r} in the first group and {group[name]!r} in another. Rule: equal in all, "
                    "as there is one mask for all weights. Set it in every group, or make one IRE per group."
                )

    @override
    def update(self) -> None:
        """Step the base and boost it; before, make the mask anew if it is due."""
        first = self.param_groups[0]
        if not self._on():
            self.base.step()
        else:
            self._renew()
            height = min(1.0, (first["ire_step"] - first["start"] + 1) / max(first["ramp"], 1))
            boosts = {
                p: Boost(local(self.kept[p]["flat"]), group["kappa"] * height, group["boost_weight_decay"])
                for group in self.param_groups
                for p in group["params"]
                if p in self.kept and group["kappa"]
            }
            boosted_step(self.base, boosts)
        self._count("ire_step", first["ire_step"] + 1)

    def refresh(
        self,
        forward: Forward | Sequence[Forward],
        *,
        model: nn.Module | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> bool:
        """Make the mask from labels drawn from the model, if it is due; returns whether a pass was made.

        Call it before each step, with functions without arguments that return logits (..., classes) of the batch or
        of its micro-batches; when nothing is due they are not called: with another mask, with kappa 0, before `start`.
        The arguments and errors are those of `sampled_diagonal`. Call it with unperturbed weights, outside of SAM's
        ascent. Where the curvature is not finite, as it happens in float16, the mask stays, with a warning.
        """
        if not (self._on() and self._due() and self._source() in ("sampled", "unknown")):
            return False
        params = [p for p in self.parameters() if p.requires_grad]
        first = self.param_groups[0]
        scores = sampled_diagonal(forward, params, seed=first["seed"], step=first["ire_step"], model=model, group=group)
        if all_finite(scores):
            self._set(params, scores)
        else:
            warnings.warn("the sampled curvature is not finite: the mask stays as it was", stacklevel=2)
        self._count("ire_refreshed", first["ire_step"])
        return True

    def masks(self) -> dict[torch.Tensor, torch.Tensor]:
        """The mask of each parameter: bool, of its shape, True where it is flat; none before there is a mask."""
        return {p: kept["flat"] for p, kept in self.kept.items()}

    def _on(self) -> bool:
        first = self.param_groups[0]
        return first["ire_step"] >= first["start"] and any(group["kappa"] for group in self.param_groups)

    def _due(self) -> bool:
        """Whether the mask is older than the last step of the grid start, start + interval, ..."""
        first = self.param_groups[0]
        age = (first["ire_step"] - first["start"]) % first["interval"]
        return first["ire_refreshed"] < first["ire_step"] - age

    def _source(self) -> str:
        """What the mask is made of: "unknown" while nobody can tell whether the base will keep a second moment."""
        mask = self.param_groups[0]["mask"]
        if mask != "auto":
            return mask
        # by what the state holds, never by gradients: in the usual loop there are none when `refresh` is called
        members = [member for member in leaves(self.base) if any(p.requires_grad for p in _params(member))]
        kept = [[member.state[p] for p in _params(member) if member.state.get(p)] for member in members]
        seconds = [
            all("exp_avg_sq" in state for state in states) if states else isinstance(member, ADAMS)
            for member, states in zip(members, kept, strict=True)
        ]
        if self.param_groups[0]["ire_step"] == 0 and not any(kept) and not all(seconds):
            return "unknown"
        return "adam" if all(seconds) else "sampled"

    def _renew(self) -> None:
        if not self._due() or (source := self._source()) == "unknown":
            return
        first = self.param_groups[0]
        if source == "sampled":
            if first["ire_refreshed"] < 0:
                raise ValueError(
                    "the mask of IRE is due and was never made. Rule: with labels drawn from the model, refresh comes "
                    "before step. Add optimizer.refresh(lambda: model(x)), or take mask='gradient'."
                )
            if not self._stale and first["ire_step"] - first["ire_refreshed"] > first["interval"]:
                self._stale = True
                warnings.warn(
                    f"the mask of IRE is of step {first['ire_refreshed']}, now is step {first['ire_step']}, and it is "
                    f"due every {first['interval']} steps. Call optimizer.refresh before each step.",
                    stacklevel=5,
                )
            return
        params = [p for p in self.parameters() if p.grad is not None]
        if source == "adam":
            states = self.state
            params = [p for p in params if states.get(p)]
            scores = adam_second_moment(self, params)
        elif source == "gradient":
            scores = squared_gradient(params)
        else:
            keys = {p: (first["seed"], first["ire_step"], number) for number, p in enumerate(self.parameters())}
            scores = [random_scores(p, keys[p]) for p in params]
        if params:
            self._set(params, scores)
            self._count("ire_refreshed", first["ire_step"])

    def _set(self, params: list[torch.Tensor], scores: list[torch.Tensor]) -> None:
        count = int(self.param_groups[0]["gamma"] * sum(score.numel() for score in scores))
        threshold = kth_smallest(scores, count) if count else None
        for p, score in zip(params, scores, strict=True):
            kept = self.kept.setdefault(p, {})
            if "flat" not in kept:
                kept["flat"] = torch.zeros_like(p, dtype=torch.bool, requires_grad=False)
            flat = local(kept["flat"])
            if threshold is None:
                flat.zero_()
            else:
                torch.le(local(score).float(), threshold.to(flat.device), out=flat)

    def _count(self, name: str, value: int) -> None:
        for group in self.param_groups:
            group[name] = value


def leaves(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizers inside that are no shells themselves.

    >>> sgd = optim.SGD([torch.zeros(1)], lr=0.1)
    >>> list(leaves(Shell([sgd]))) == [sgd]
    True
    """
    if isinstance(optimizer, Shell):
        for member in optimizer.members:
            yield from leaves(member)
    else:
        yield optimizer


def _params(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


registry.add(
    Method(
        name="IRE",
        summary="flat weights move 1 + kappa times as far as the base moves them",
        paper="Wang et al. 2024, Improving Generalization and Convergence by Enhancing Implicit Regularization",
        lr_unit="the base's; retune, as flat weights run at (1 + kappa) lr",
        passes=1.0,
        bytes=1.0,
        memory="a mask of one byte per parameter",
        make=lambda model, base, **settings: IRE(base(model.parameters()), **settings),
        off={"kappa": 0.0},
    )
)
