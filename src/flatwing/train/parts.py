"""What a recipe describes, made and checked as a whole before anything is trained or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf
from typing import final

import torch
from torch import nn

from ..data import Dataset, open_data
from ..optim import BatchSizeSchedule
from .callbacks import Callback, DivergenceGuard
from .check import check_plan
from .models import Model, build_model, sizes_for
from .optimizers import make_optimizer
from .phases import BatchStages, MaskRefresh, SamPhase
from .recipe import Recipe

STEPS = 100_000_000  # of a run: the size of each one is kept


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """What a recipe describes, made: data, the untrained model on its device, sizes of the steps, and the methods.

    `methods` are those that work between the steps. `notes` are what a user should know before a long run.
    """

    data: Dataset
    model: Model
    sizes: tuple[int, ...]
    """The batch size of each step."""
    methods: tuple[Callback, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """The number of samples that were seen before each step."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]


def make_parts(recipe: Recipe, device: torch.device | None = None) -> Parts:
    """Open the data and make the model of a recipe, and try whether its optimizer and plan can be made.

    Refuses with `ValueError` what does not fit together.
    """
    run = recipe.run
    methods = _methods(recipe)
    stages = _stages(recipe)
    data = open_data(recipe.data.name, **recipe.data.options)
    sizes = sizes_for(recipe.model.name, data) | recipe.model.sizes
    with torch.random.fork_rng([]):
        torch.manual_seed(run.seed)
        model = build_model(recipe.model.name, sizes).to(device or "cpu")
    count = data.sizes["train"]
    batches = _batch_sizes(recipe, stages, count)
    if stages is not None:
        methods = (BatchStages(stages, batches), *methods)  # first: others look at the rates
    steps = len(batches)
    plan = {
        "steps": steps, "lr": recipe.optimizer.lr, "weight_decay": recipe.optimizer.weight_decay,
        "schedule": recipe.schedule.name, "warmup": recipe.schedule.warmup, "floor": recipe.schedule.floor,
        "clip": run.clip or None, "precision": run.precision, "every": run.evaluate_every, "keep": run.keep,
        "save_every": run.checkpoint_every, "micro_batch": run.micro_batch, "parallel": run.parallel,
    }  # fmt: skip
    check_plan(plan, evaluated=True)
    optimizer_of(recipe, model)  # the loop makes its own, after the model was sharded
    return Parts(data, model, batches, methods, (*data.notes, *_notes(recipe, batches, count)))


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a recipe with the methods around it."""
    part = recipe.optimizer
    around = {"gradpower": part.gradpower, "ire": part.ire}
    chosen = {name: settings for name, settings in around.items() if settings is not None}
    return make_optimizer(
        model, part.name, part.lr, part.weight_decay, part.options, blockwise=part.blockwise, methods=chosen
    )


def _stages(recipe: Recipe) -> BatchSizeSchedule | None:
    run = recipe.run
    if run.batch_stages is not None:
        pairs = [(start, size) for start, size in run.batch_stages]
        return BatchSizeSchedule(pairs, micro=1, lr_scale=run.batch_lr_scale or "none")
    if run.batch_lr_scale is not None:
        raise ValueError(
            f"run.batch_lr_scale is {run.batch_lr_scale!r} without stages. Rule: it is for batches that grow. "
            "Write run.batch_stages=[[0, 64], [10000, 256]], or leave it out."
        )
    return None


def _batch_sizes(recipe: Recipe, stages: BatchSizeSchedule | None, samples: int) -> tuple[int, ...]:
    """The batch size of each step; of a run in stages the last one is cut where its epochs end."""
    run = recipe.run
    least = run.batch_size if stages is None else min(size for _, size in stages.stages)
    length = run.steps if run.steps is not None else (run.epochs or 0) * samples / least
    if length > STEPS:
        name = "steps" if run.steps is not None else "epochs"
        raise ValueError(f"run.{name} asks for {length:.3g} steps. Rule: at most {STEPS:,}. Write run.steps={STEPS}.")
    if stages is None:
        return (run.batch_size,) * ceil(length)
    total = inf if run.epochs is None else max(1, round(run.epochs * samples))
    sizes: list[int] = []
    seen = 0
    while (run.steps is None or len(sizes) < run.steps) and seen < total:
        sizes.append(int(min(stages.batch_size(seen), total - seen)))
        seen += sizes[-1]
    return tuple(sizes)


def _methods(recipe: Recipe) -> tuple[Callback, ...]:
    methods: list[Callback] = []
    if recipe.optimizer.ire is not None:
        methods.append(MaskRefresh())
    if (sam := recipe.optimizer.sam) is not None:
        methods.append(SamPhase(sam.rho, adaptive=sam.adaptive, share=sam.share))
    if recipe.guard is not None:
        methods.append(DivergenceGuard(recipe.guard.factor, recipe.guard.after))
    return tuple(methods)


def _notes(recipe: Recipe, batches: Sequence[int], samples: int) -> list[str]:
    notes: list[str] = []
    warmup, steps, largest = recipe.schedule.warmup, len(batches), max(batches, default=0)
    if warmup > steps > 0:
        notes.append(f"schedule.warmup is {warmup:,} for {steps:,} steps: lr never reaches its full height.")
    if largest > samples:
        notes.append(f"batches are of {largest:,} for {samples:,} training samples: steps see some of them twice.")
    for start, size in recipe.run.batch_stages or ():
        if start >= sum(batches):
            notes.append(f"run.batch_stages go to {size:,} at {start:,} samples: this run ends at {sum(batches):,}.")
    return notes
