"""Small batches for long, a large one late: by gradient accumulation, and when to switch by theory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch.optim import Optimizer

from ..core import require_number, require_whole

Stage = tuple[int, int]  # from this many samples on, this batch size
POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@final
@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass: samples number `first` ... first + size - 1, of this rank.

    The sum of `weight` times the mean loss of each micro-batch of a step is the mean loss of the step's batch.
    `last`: the optimizer steps after this one. `lr_factor`: of this step's learning rate, 1 in the first stage.
    """

    first: int
    size: int
    weight: float
    last: bool
    lr_factor: float

    @contextmanager
    def scaled(self, optimizer: Optimizer) -> Iterator[None]:
        """Inside, learning rates are `lr_factor` times as high; on exit they are as before, so schedulers go on.

        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> with MicroBatch(0, 8, 1.0, True, 2.0).scaled(sgd): sgd.param_groups[0]["lr"]
        1.0
        >>> sgd.param_groups[0]["lr"]
        0.5
        """
        rates = [(group, group["lr"]) for group in optimizer.param_groups]
        try:
            for group, rate in rates:
                group["lr"] = rate * self.lr_factor
            yield
        finally:
            for group, rate in rates:
                group["lr"] = rate


class BatchSizeSchedule:
    """The micro-batches of a training run whose batch size grows: iterate over it.

    `stages` are (samples seen, batch size): [(0, 64), (75_000, 256)] takes batches of 64 until 75 000 samples are seen,
    and of 256 from then on. A step takes the size that holds where it begins, so a stage may end within a step.
    Batches are cut into micro-batches of `micro` samples and what is left over; the last step is cut so that `total`
    samples are seen, to the sample (None: no end). Samples may as well be tokens, in all four places.

    `lr_scale`: what a batch B changes the learning rate by, for those who use `scaled`: "none" (the theory), "sqrt" or
    "linear" in B over the first stage's. On several ranks each gets its share of every micro-batch, by `rank` and
    `world`; weights are then right for DDP, which averages over ranks.

    A state dict taken after a step resumes there; taken within one, at the beginning of that step.
    Raises `ValueError` for stages that are not ascending from 0, and sizes below 1 or not divisible by `world`.
    Source: Late switching, arXiv:2602.14208.

    >>> for part in BatchSizeSchedule([(0, 2), (4, 5)], micro=2, total=12):
    ...     print(part.first, part.size, round(part.weight, 2), "step" if part.last else "")
    0 2 1.0 step
    2 2 1.0 step
    4 2 0.4
    6 2 0.4
    8 1 0.2 step
    9 2 0.67
    11 1 0.33 step

    In a loop of one's own, with the learning rate following the samples:

    >>> import torch
    >>> data, net = torch.randn(12, 3), torch.nn.Linear(3, 1)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> schedule = BatchSizeSchedule([(0, 2), (4, 5)], micro=2, total=12, lr_scale="sqrt")
    >>> for part in schedule:
    ...     rows = data[part.first : part.first + part.size]
    ...     (part.weight * net(rows).square().mean()).backward()
    ...     if part.last:
    ...         sgd.param_groups[0]["lr"] = 0.1 * (1 - schedule.progress)
    ...         with part.scaled(sgd):
    ...             sgd.step()
    ...         sgd.zero_grad()
    >>> schedule.steps, schedule.seen
    (4, 12)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        micro: int,
        total: int | None = None,
        *,
        lr_scale: str = "none",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if isinstance(stages, str | Mapping) or not isinstance(stages, Iterable):
            raise ValueError(f"stages is {stages!r}. Rule: pairs (samples seen, batch size). Write [(0, 64), ...].")
        stages = list(stages)
        for stage in stages:
            if not (isinstance(stage, Sequence) and len(stage) == 2):
                raise ValueError(f"a stage is {stage!r}. Rule: (samples seen, batch size). Write [(0, 64), ...].")
            for name, number in zip(("the start of a stage", "a batch size"), stage, strict=True):
                require_whole(name, number, -np.inf, good=64)
        for name, number in {"micro": micro, "total": micro if total is None else total}.items():
            require_whole(name, number, -np.inf, good=64)
        self.stages = tuple((int(start), int(batch)) for start, batch in stages)
        starts = [start for start, _ in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"stages begin at {starts} samples. Rule: at 0, then ascending. Write [(0, 64), ...].")
        require_whole("world", world)
        require_whole("rank", rank, -np.inf)
        if lr_scale not in tuple(POWERS):
            raise ValueError(f"unknown lr_scale {lr_scale!r}. Known: {', '.join(POWERS)}.")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of {world}. Rule: 0 to world - 1.")
        sizes = {"micro": micro, **{f"the batch size from {start} samples on": batch for start, batch in self.stages}}
        for name, size in (sizes if total is None else sizes | {"total": total}).items():
            if size < 1 or size % world:
                good = max(1, round(size / world)) * world
                raise ValueError(
                    f"{name} is {size}. Rule: at least 1, divisible by {world} ranks. Nearest good value: {good}."
                )
        self.micro, self.total, self.lr_scale, self.rank, self.world = micro, total, lr_scale, rank, world
        self.seen, self.steps = 0, 0

    def batch_size(self, seen: int) -> int:
        """The size of the batch that begins after `seen` samples of all ranks; 0 at the end.

        >>> BatchSizeSchedule([(0, 4), (10, 16)], micro=4, total=30).batch_size(20)
        10
        """
        require_whole("seen", seen, 0)
        size = self._stage_size(seen)
        return size if self.total is None else min(size, self.total - seen)

    def _stage_size(self, seen: int) -> int:
        return [size for start, size in self.stages if start <= seen][-1]

    def lr_factor(self, seen: int) -> float:
        """What `lr_scale` multiplies the learning rate by in the step that begins after `seen` samples.

        >>> BatchSizeSchedule([(0, 4), (10, 16)], micro=4, lr_scale="sqrt").lr_factor(20)
        2.0
        """
        return (self._stage_size(seen) / self.stages[0][1]) ** POWERS[self.lr_scale]

    def step(self, seen: int) -> tuple[MicroBatch, ...]:
        """The micro-batches of the step that begins after `seen` samples: a pure function."""
        batch = self.batch_size(seen)
        factor = self.lr_factor(seen)
        parts: list[MicroBatch] = []
        for first in range(0, batch, self.micro):
            size = min(self.micro, batch - first)
            share = size // self.world
            place = seen + first + self.rank * share
            parts.append(MicroBatch(place, share, size / batch, first + size == batch, factor))
        return tuple(parts)

    def __iter__(self) -> Iterator[MicroBatch]:
        while parts := self.step(self.seen):
            yield from parts[:-1]
            # before the last one is handed out: a state dict taken after the optimizer's step counts that step
            self.seen += self.batch_size(self.seen)
            self.steps += 1
            yield parts[-1]

    @property
    def total_steps(self) -> int | None:
        """The number of steps of the whole run, for learning rate schedulers that count steps; None without an end.

        >>> BatchSizeSchedule([(0, 2), (4, 5)], micro=2, total=12).total_steps
        4
        """
        if self.total is None:
            return None
        ends = [start for start, _ in self.stages[1:]] + [self.total]
        seen = steps = 0
        for (_, size), end in zip(self.stages, ends, strict=True):
            more = max(0, -(-(min(end, self.total) - seen) // size))
            seen, steps = seen + more * size, steps + more
        return steps

    @property
    def progress(self) -> float | None:
        """Samples seen over `total`, for learning rate schedules by samples; None without an end."""
        return None if self.total is None else self.seen / self.total

    def state_dict(self) -> dict[str, int]:
        """Samples seen by all ranks, and steps taken."""
        return {"seen": self.seen, "steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from there; the stages are the constructor's and may have been changed.

        Raises `ValueError` for counts that are negative or beyond `total`.
        """
        if not (isinstance(state_dict, Mapping) and {"seen", "steps"} <= set(state_dict)):
            raise ValueError(f"the state is {state_dict!r}. Rule: what state_dict() gives, with seen and steps.")
        for name in ("seen", "steps"):
            require_whole(name, state_dict[name], -np.inf)
        seen, steps = int(state_dict["seen"]), int(state_dict["steps"])
        if seen < 0 or steps < 0 or (self.total is not None and seen > self.total):
            raise ValueError(f"the state has seen {seen} samples in {steps} steps. Rule: 0 to total = {self.total}.")
        self.seen, self.steps = seen, steps


def excess_loss(
    switch: float | np.ndarray, total: int, small: int, large: int, s: float, beta: float, noise: float = 1.0
) -> float | np.ndarray:
    """What is left to learn after `switch` samples in batches of `small` and the rest of `total` in batches of `large`.

    T^-s + noise * integral of K(T - t) / b(t), K(t) = (t + 1)^-(2 - 1/beta), over T steps at a constant learning rate:
    the functional scaling law of one pass over the data. s is the difficulty of the task (small is hard), beta > 1 the
    decay of the spectrum, and `noise` the learning rate times the label noise, relative to the first term.
    Raises `ValueError` unless 0 < small <= large, s, noise > 0 and beta > 1. Source: arXiv:2602.14208.

    >>> excess_loss(0.0, 10**6, 1, 4, 0.3, 2.0) > excess_loss(6e5, 10**6, 1, 4, 0.3, 2.0)
    True
    """
    _require_law(total, small, large, s, beta, noise)
    power = 1 - 1 / beta
    late = (total - switch) / large
    steps = switch / small + late
    forgotten, old = (1 + late) ** -power, (1 + steps) ** -power
    return steps**-s + noise / power * ((forgotten - old) / small + (1 - forgotten) / large)


def optimal_switch(total: int, small: int, large: int, s: float, beta: float, noise: float = 1.0) -> float:
    """The number of samples after which to go from batches of `small` to `large`, by minimizing `excess_loss`.

    Between 0, where the large batch is best throughout, and `total`. Tasks with s > 1 - 1/beta are easy: `two_stage`.
    Raises `ValueError` as `excess_loss` does. Cost: under a millisecond.

    >>> optimal_switch(10**8, 1, 4, s=1.0, beta=2.0)
    0.0
    >>> round(optimal_switch(10**8, 1, 4, s=0.3, beta=2.0) / 1e8, 2)
    0.73
    """
    _require_law(total, small, large, s, beta, noise)
    # the rest after the switch spans many decades, so it is looked for by its logarithm, closer each time
    low, high = np.log(1e-9), 0.0
    rest = np.ones(1)
    for _ in range(8):
        rest = np.append(np.exp(np.linspace(low, high, 101)), [0.0, 1.0])
        best = int(np.argmin(excess_loss(total * (1 - rest), total, small, large, s, beta, noise)))
        if best > 100 or (best == 100 and high == 0.0):
            return total * (1 - float(rest[best]))
        width = (high - low) / 100
        centre = low + best * width
        low, high = centre - width, min(0.0, centre + width)
        rest = rest[best : best + 1]
    return total * (1 - float(rest[0]))


def two_stage(total: int, small: int, large: int, s: float, beta: float, noise: float = 1.0) -> tuple[Stage, ...]:
    """Stages for `BatchSizeSchedule`, switching where one more small batch gains what its noise costs, to first order.

    Hard tasks, s < 1 - 1/beta: late, (total - switch) / total ~ total^-((1 - 1/beta - s) / (2 - 1/beta)). Easy ones:
    the earlier the larger `total`, in the end the large batch throughout; with little noise that end is far away.
    Raises `ValueError` as `excess_loss` does. Source: arXiv:2602.14208; the balance is
    s T^(-s-1) = noise (T_late + 1)^-(2 - 1/beta) / large with T = total / small, the derivative of `excess_loss`
    without its smaller terms; `optimal_switch` has them, and is somewhat later.

    >>> two_stage(100_000_000, 64, 256, s=0.3, beta=2.0)
    ((0, 64), (96694203, 256))
    >>> two_stage(100_000_000, 64, 256, s=1.0, beta=2.0)
    ((0, 256),)
    """
    _require_law(total, small, large, s, beta, noise)
    late = (noise * (total / small) ** (s + 1) / (s * large)) ** (1 / (2 - 1 / beta)) - 1
    switch = round(total - large * max(0.0, late))
    return ((0, small), (switch, large)) if switch > 0 else ((0, large),)


def _require_law(total: Any, small: Any, large: Any, s: Any, beta: Any, noise: Any) -> None:
    for name, size, good in (("total", total, 10**6), ("small", small, 64), ("large", large, 256)):
        require_number(name, size, above=0, good=good)
    if not small <= large <= total:
        raise ValueError(f"small {small}, large {large}, total {total}. Rule: 0 < small <= large <= total, finite.")
    for name, value, least, good in (("s", s, 0, 0.3), ("beta", beta, 1, 2.0), ("noise", noise, 0, 1.0)):
        require_number(name, value, above=least, good=good, advice="Fit it to your own loss curves.")
