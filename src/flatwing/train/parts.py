"""What a recipe describes, made and checked as a whole before anything is trained or written."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import final

import torch
from torch import nn

from ..data import Dataset, open_data
from .callbacks import Callback, DivergenceGuard
from .loop import check_plan
from .models import Model, build_model, sizes_for
from .optimizers import make_optimizer
from .phases import MaskRefresh, SamPhase
from .recipe import Recipe


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """What a recipe describes, made: data, the untrained model on its device, the number of steps, and the methods.

    `methods` are those that work between the steps. `notes` are what a user should know before a long run.
    """

    data: Dataset
    model: Model
    steps: int
    methods: tuple[Callback, ...] = ()
    notes: tuple[str, ...] = ()


def make_parts(recipe: Recipe, device: torch.device | None = None) -> Parts:
    """Open the data and make the model of a recipe, and try whether its optimizer and plan can be made.

    Refuses with `ValueError` what does not fit together.
    """
    run = recipe.run
    methods = _methods(recipe)
    data = open_data(recipe.data.name, **recipe.data.options)
    sizes = sizes_for(recipe.model.name, data) | recipe.model.sizes
    with torch.random.fork_rng([]):
        torch.manual_seed(run.seed)
        model = build_model(recipe.model.name, sizes).to(device or "cpu")
    count = data.sizes["train"]
    steps = run.steps if run.steps is not None else ceil((run.epochs or 0) * count / run.batch_size)
    plan = {
        "steps": steps, "lr": recipe.optimizer.lr, "weight_decay": recipe.optimizer.weight_decay,
        "schedule": recipe.schedule.name, "warmup": recipe.schedule.warmup, "floor": recipe.schedule.floor,
        "clip": run.clip or None, "precision": run.precision, "every": run.evaluate_every, "keep": run.keep,
        "save_every": run.checkpoint_every, "micro_batch": run.micro_batch, "parallel": run.parallel,
    }  # fmt: skip
    check_plan(plan, evaluated=True)
    optimizer_of(recipe, model)  # the loop makes its own, after the model was sharded
    return Parts(data, model, steps, methods, (*data.notes, *_notes(recipe, steps, count)))


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a recipe with the methods around it."""
    part = recipe.optimizer
    around = {"gradpower": part.gradpower, "ire": part.ire}
    chosen = {name: settings for name, settings in around.items() if settings is not None}
    return make_optimizer(
        model, part.name, part.lr, part.weight_decay, part.options, blockwise=part.blockwise, methods=chosen
    )


def _methods(recipe: Recipe) -> tuple[Callback, ...]:
    methods: list[Callback] = []
    if recipe.optimizer.ire is not None:
        methods.append(MaskRefresh())
    if (sam := recipe.optimizer.sam) is not None:
        methods.append(SamPhase(sam.rho, adaptive=sam.adaptive, share=sam.share))
    if recipe.guard is not None:
        methods.append(DivergenceGuard(recipe.guard.factor, recipe.guard.after))
    return tuple(methods)


def _notes(recipe: Recipe, steps: int, samples: int) -> list[str]:
    notes: list[str] = []
    if (warmup := recipe.schedule.warmup) > steps > 0:
        notes.append(
            f"schedule.warmup is {warmup:,} for {steps:,} steps: the learning rate never reaches its full height."
        )
    if (batch := recipe.run.batch_size) > samples:
        notes.append(f"run.batch_size is {batch:,} for {samples:,} training samples: steps see some of them twice.")
    return notes
