"""Methods that need more than one gradient per step, as callbacks of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, final

import torch
from torch.optim import Optimizer
from typing_extensions import override

from ..core import require_number
from ..optim import IRE, BatchSizeSchedule, Shell, late, perturbed
from .callbacks import Callback, Training


@final
class MaskRefresh(Callback):
    """Feeds the masks of IRE that are made from sampled labels; IRE calls the model only when its mask is due.

    Batches are pairs, and the model maps the first of a pair to logits (..., classes). Does nothing for optimizers
    without IRE inside, and for other masks. The mask is made at the weights of the step, before any ascent.
    """

    @override
    def on_gradient(self, training: Training) -> None:
        """Offer the forward passes of the micro-batches of the step."""
        method = _inside(training.optimizer, IRE)
        if method is not None:
            forwards = [partial(_logits, training, fetch) for fetch in training.batches]
            method.refresh(forwards, model=training.model)


def _logits(training: Training, fetch: Callable[[], Any]) -> torch.Tensor:
    return training.network(fetch()[0])


def _inside(optimizer: Optimizer, kind: type[IRE]) -> IRE | None:
    if isinstance(optimizer, kind):
        return optimizer
    members = optimizer.members if isinstance(optimizer, Shell) else ()
    return next((found for member in members if (found := _inside(member, kind)) is not None), None)


@final
class BatchStages(Callback):
    """Learning rates of a run whose batch size grows: they follow the samples that were seen, not the steps.

    A step that begins when a share of all samples was seen is at that share of the schedule, whatever its number. The
    rates of later stages are multiplied by `lr_factor` of the schedule. `sizes` are the batch sizes of all steps, and
    with one size nothing changes. Warm-up counts steps of the mean size. Source: Late switching, arXiv:2602.14208.
    """

    def __init__(self, schedule: BatchSizeSchedule, sizes: Sequence[int]) -> None:
        self.schedule, self.sizes = schedule, tuple(sizes)

    @override
    def on_start(self, training: Training) -> None:
        """Place the steps."""
        total, starts = sum(self.sizes), list(accumulate(self.sizes, initial=0))[:-1]
        places = [start * training.steps / total for start in starts]
        training.repace(places, [self.schedule.lr_factor(start) for start in starts])


@final
class SamPhase(Callback):
    """SAM in the last part of a run: the gradient of a step is taken anew at the weights moved by `rho` along it.

    The phase is the last `share` of the summed learning rate, 1 being the whole run; see `flatwing.optim.late`. Both
    gradients are of all micro-batches and ranks, and the second one is clipped. The loss that is reported is that at
    the weights. Cost: twice the passes, while it is on. Raises `ValueError` for a share outside 0 ... 1.
    """

    def __init__(self, rho: float = 0.05, *, adaptive: bool = False, share: float = 1.0) -> None:
        require_number("share", share, 0, 1, good=0.25)
        require_number("rho", rho, above=0, good=0.05)
        self.rho, self.adaptive, self.share = rho, adaptive, share
        self.start = 0

    @override
    def on_start(self, training: Training) -> None:
        """Find the step at which the phase begins."""
        self.start = late(list(training.rates), share=self.share) if any(training.rates) else 0

    @override
    def on_gradient(self, training: Training) -> None:
        """Climb, and take the gradient there."""
        if training.step >= self.start and any(p.grad is not None for p in training.model.parameters()):
            with perturbed(training.model, self.rho, adaptive=self.adaptive):
                training.gradient()
