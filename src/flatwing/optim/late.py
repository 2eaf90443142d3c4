"""Late: a method that is switched on in the last part of training, measured in how far the weights still move."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from math import fsum, inf
from typing import Any, cast, final, overload

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from ..core import require_number, require_whole
from .sam import RECIPE, SharpnessAware
from .shell import Closure, Wrapper

Schedule = Sequence[float] | np.ndarray | torch.Tensor | Callable[[int], float] | LRScheduler


@overload
def late(method: Wrapper, schedule: Schedule, steps: int | None = None, *, share: float = 0.25) -> Late: ...
@overload
def late(method: Schedule, schedule: int | None = None, *, share: float = 0.25) -> int: ...
def late(
    method: Optimizer | Schedule,
    schedule: Schedule | int | None = None,
    steps: int | None = None,
    *,
    share: float = 0.25,
) -> Late | int:
    """The step at which the last `share` of the summed learning rate begins; with a method, the method from there on.

    late(schedule, steps) is a number, for `if step >= start: with perturbed(...)` in a loop, or the `start` of IRE.
    late(SAM(base), schedule, steps) is an optimizer: the base alone until then, with one gradient per step, and the
    method after; see `Late`. The schedule is a list or vector of learning rates, one per step of the optimizer; or a
    function of the step, up to any factor, with the number of `steps`; or a scheduler of torch before its first step,
    with `steps`. Of several groups the first that learns counts. A schedule that is stepped once per epoch counts in
    epochs.

    Why not steps: late SAM leaves the sharp place that the base found only by moving, and after a decay there is too
    little left to move. The sum is a budget and not a law: at equal sums a higher rate does more. On digits at a
    constant rate, share=0.25 comes near full SAM's sharpness at 62 % of its gradients; 0.05 is sharper than no SAM at
    all, because the weights first climb out of where they were (benchmarks/late_sam.py).
    Raises `ValueError` for a share outside 0...1, rates that are negative, not finite or all 0, or a schedule that
    does not say how long it is or depends on the course of training. Cost: one run of the schedule, no gradients.
    Source of the idea: Zhou et al. 2024 (arXiv:2410.10373), who count epochs.

    >>> late([0.1] * 100)
    75
    >>> late([0.1] * 50 + [0.01] * 50)  # the last quarter of the way begins before the decay
    42
    >>> late(lambda step: 1 - step / 100, 100)  # a straight line to 0
    51
    """
    if isinstance(method, Optimizer):
        if not isinstance(method, Wrapper):
            raise ValueError(
                f"got a {type(method).__name__}. Rule: a method around an optimizer. Write late(SAM(optimizer), ...)."
            )
        if schedule is None or isinstance(schedule, int):
            raise ValueError("there is no schedule. Rule: late(method, schedule, steps). Pass the learning rates.")
        return Late(method, late(schedule, steps, share=share))
    require_number("share", share, 0.0, 1.0, good=0.25)  # from never on to always on
    lrs = learning_rates(method, cast("int | None", schedule))
    total = fsum(lrs)
    if not (all(0 <= lr < inf for lr in lrs) and total > 0):
        raise ValueError(f"the learning rates sum to {total}. Rule: each finite and at least 0, not all 0.")
    rest = 0.0
    for step in range(len(lrs), 0, -1):
        rest += lrs[step - 1]
        if rest > share * total * (1 + 1e-9):  # rounding must not cost a step
            return step
    return 0


@final
class Late(Wrapper):
    """A method that is not there before step `start`: until then each step is one of the base alone.

    Steps are counted in the groups, with `start`, so a resumed run switches where it would have. What the base has
    gathered, such as momentum, goes on through the switch. A closure is needed from the first step on if the method
    needs one, so that nothing is missing in the last quarter of a long run. Skipped steps do not count.
    `lr` has the unit of the base's. Raises `ValueError` for a negative start. Cost: before the switch that of the base.

    >>> from flatwing.optim import SAM
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = late(SAM(torch.optim.SGD([w], lr=0.1)), [0.1] * 4, share=0.5)
    >>> for _ in range(4):
    ...     print(optimizer.on, end=" ")
    ...     _ = optimizer.step(lambda: (w**2).sum().backward())
    False False True True
    """

    name = "late"
    passes_closure = True

    def __init__(self, method: Wrapper, start: int) -> None:
        super().__init__(method, {"late_start": start, "late_step": 0})

    @override
    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        require_whole("start", group["late_start"], 0)

    @property
    def method(self) -> Wrapper:
        """The method that is switched on."""
        return cast(Wrapper, self.base)

    @property
    def on(self) -> bool:
        """Whether the next step is one of the method."""
        return all(group["late_step"] >= group["late_start"] for group in self.param_groups)

    @torch.no_grad()
    @override
    def step(self, closure: Closure | None = None) -> Any:
        """One step, of the method where it is on, else of its base; returns the loss, if there is a closure."""
        if closure is None and isinstance(self.method, SharpnessAware):
            raise ValueError(f"{type(self.method).__name__} will need a closure when it is switched on. {RECIPE}")
        self._check()
        return self.method.step(closure) if self.on else super().step(closure)

    @override
    def update(self) -> None:
        """Step the base alone, and count."""
        self.method.base.step()
        for group in self.param_groups:
            group["late_step"] += 1


def learning_rates(schedule: Schedule, steps: int | None = None) -> list[float]:
    """The learning rate of each step, from any form of schedule that `late` takes; nothing is changed.

    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=2)
    >>> learning_rates(scheduler, 4), scheduler.last_epoch
    ([1.0, 0.75, 0.5, 0.5], 0)
    """
    if steps is not None:
        require_whole("steps", steps, good=1000)
    if isinstance(schedule, np.ndarray | torch.Tensor):
        if schedule.ndim != 1:
            raise ValueError(f"the rates have shape {tuple(schedule.shape)}. Rule: one per step, 1 dimension.")
        schedule = cast("list[float]", schedule.tolist())
    if isinstance(schedule, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau depends on the course of training. Rule: rates known before. Pass a list.")
    if isinstance(schedule, Sequence):
        if steps not in (None, len(schedule)):
            raise ValueError(f"there are {len(schedule)} rates for {steps} steps. Rule: one each. Leave steps out.")
        return [float(lr) for lr in schedule]
    if steps is None:
        raise ValueError("steps is missing. Rule: a schedule that is not a list needs a length. Pass steps=...")
    if not isinstance(schedule, LRScheduler):
        if not callable(schedule):
            raise ValueError(f"the schedule is a {type(schedule).__name__}. Rule: rates, or a function of the step.")
        return [float(schedule(step)) for step in range(steps)]
    # a ChainedScheduler counts in its members only
    position = max(getattr(each, "last_epoch", 0) for each in [schedule, *getattr(schedule, "_schedulers", [])])
    if position > 0:
        raise ValueError(
            f"the scheduler is at step {position}. Rule: at 0, or the sum is not of all training. "
            "Ask before load_state_dict; `Late` keeps its start when resumed."
        )
    return _simulate(schedule, steps)


def _simulate(schedule: LRScheduler, steps: int) -> list[float]:
    """Run a copy of a scheduler over a copy of its optimizer's settings, without parameters."""
    settings = [
        {key: copy.copy(value) for key, value in group.items() if key != "params"}
        for group in schedule.optimizer.param_groups
    ]
    stub = torch.optim.SGD([{"params": [torch.zeros(0)]} for _ in settings], lr=0.0)
    for group, values in zip(stub.param_groups, settings, strict=True):
        group.update(values)
    stub.defaults = dict(schedule.optimizer.defaults)
    # the copy meets the stub wherever it would meet the optimizer, nested schedulers included
    twin = copy.deepcopy(schedule, {id(schedule.optimizer): stub})
    counted = next((k for k, group in enumerate(stub.param_groups) if group["lr"] > 0 or group.get("initial_lr")), 0)
    lrs: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer stepped
        for _ in range(steps):
            lrs.append(float(stub.param_groups[counted]["lr"]))
            twin.step()
    return lrs
