"""A recipe in, a run folder out: model, data and optimizer are made, trained and measured."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Any, final

import torch

from ..core import using_threads
from ..core.machine import __version__
from ..data import visits
from .callbacks import Callback, StopOnSignal
from .distributed import first_alone, group, launched, rank, whole_weights
from .evaluate import measure
from .folder import BOARD, CHECKPOINT, METRICS, MODEL, RESULT, RunFolder
from .logs import JsonLines, TensorBoard
from .loop import fit
from .models import twin
from .parts import Parts, make_parts, optimizer_of
from .portions import to_device
from .recipe import Recipe
from .state import Metric
from .storage import save_model

# what may differ between a run and its continuation, for it changes no number, or only by rounding
FREE = frozenset(
    f"run.{key}" for key in ("micro_batch", "parallel", "device", "threads", "tensorboard", "checkpoint_every")
)
CHUNK = 256  # samples that are measured at once


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: `result` is the content of result.json, None where the run was interrupted."""

    folder: str
    step: int
    steps: int
    result: dict[str, Any] | None


def run_recipe(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    name: str = "run",
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[Metric, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Train what a recipe describes and leave a run folder with everything that is known about it.

    The folder gets config.toml, environment.json, metrics.jsonl, checkpoint.safetensors, model.safetensors (for
    `load_model`) and result.json. Where it holds the beginning of the same run, that is continued. Ctrl-C and SIGTERM
    save and end it; a kill loses what came after the last checkpoint, see `RunPart.checkpoint_every`. Started by
    torchrun, the ranks share each batch, and rank 0 writes. `progress` is called with each metric, the number of steps
    and the samples (classification) or tokens (lm) per step; `say` with each note, before the training.

    Raises `ValueError` for a recipe that cannot be run or a folder that holds something else, before any work, and
    `FloatingPointError` where training diverges.
    """
    asked = "cuda" if torch.cuda.is_available() else "cpu"
    asked = asked if recipe.run.device == "auto" else recipe.run.device
    if asked not in ("cpu", "cuda") or (asked == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"run.device is {recipe.run.device!r}. Rule: auto, cpu, or cuda where there is a GPU.")
    with using_threads(recipe.run.threads), group(torch.device(asked)) as device:
        parts = make_parts(recipe, device)
        folder, logs = RunFolder(out), list[Callback]()

        def begin() -> None:
            if recipe.run.tensorboard:
                logs.append(TensorBoard(folder / BOARD))
            folder.begin(recipe, FREE, overwrite=overwrite)
            logs.append(JsonLines(folder / METRICS))
            if say is not None:
                for note in parts.notes:
                    say(note)

        first_alone(begin)
        return _run(recipe, parts, folder, name, device, [*callbacks, *parts.methods, *logs], progress)


def _run(
    recipe: Recipe,
    parts: Parts,
    folder: RunFolder,
    name: str,
    device: torch.device,
    hooks: list[Callback],
    progress: Callable[[Metric, int, int], None] | None,
) -> Outcome:
    run, data, model = recipe.run, parts.data, parts.model
    first = rank() == 0
    # FSDP changes the class of the model that it shards
    alone = twin(model) if launched() and run.parallel == "fsdp" else model
    starts = parts.starts
    per_step = round(sum(parts.sizes) / max(1, parts.steps)) * (data.shape[0] if data.task == "lm" else 1)
    stopper = StopOnSignal() if threading.current_thread() is threading.main_thread() else nullcontext()
    started = perf_counter()

    def held_out(split: str) -> dict[str, Any]:
        return measure(model, data.evaluation(split, CHUNK, run.evaluate_samples), device)

    def shown(metric: Metric) -> None:
        if progress is not None and first:
            progress(metric, parts.steps, per_step)

    with stopper as stop:
        if isinstance(stop, StopOnSignal):
            hooks.append(stop)
        metrics = fit(
            model,
            lambda step, generator: visits(starts[step], parts.sizes[step], data.sizes["train"], run.seed),
            fetch=lambda rows: to_device(data.take(rows), device),
            steps=parts.steps,
            lr=recipe.optimizer.lr,
            optimizer=partial(optimizer_of, recipe),
            schedule=recipe.schedule.name,
            warmup=recipe.schedule.warmup,
            floor=recipe.schedule.floor,
            clip=run.clip or None,
            precision=run.precision,
            micro_batch=run.micro_batch,
            parallel=run.parallel if launched() else "none",
            seed=run.seed,
            evaluate=lambda network: held_out("valid")["loss"]["value"],
            every=run.evaluate_every,
            save_every=run.checkpoint_every,
            keep=run.keep,
            checkpoint=folder / CHECKPOINT,
            settings={key: value for key, value in recipe.flat().items() if key not in FREE},
            callbacks=hooks,
            progress=shown,
        )
    step = int(metrics[-1]["step"]) if metrics else 0
    if step < parts.steps:
        return Outcome(str(folder.path), step, parts.steps, None)
    model.eval()
    measured = {split: held_out(split) for split in ("valid", "test")}
    weights = whole_weights(model)
    seconds = perf_counter() - started + sum(hook.earlier for hook in hooks if isinstance(hook, JsonLines))
    result = _result(recipe, parts, name, metrics, measured, seconds, per_step)
    if first:
        alone.load_state_dict(weights)
        save_model(folder / MODEL, alone, recipe.flat())
        folder.write_json(RESULT, result)
    return Outcome(str(folder.path), step, parts.steps, result)


def _result(
    recipe: Recipe,
    parts: Parts,
    name: str,
    metrics: Sequence[Metric],
    measured: dict[str, Any],
    seconds: float,
    per_step: int,
) -> dict[str, Any]:
    """The content of result.json; `seconds` are those of all parts of a run that was continued."""
    count = sum(p.numel() for p in parts.model.parameters())
    unit = "tokens" if parts.data.task == "lm" else "samples"
    start = next((metric["score"] for metric in metrics if "score" in metric), None)
    test, valid = measured["test"], measured["valid"]
    kept = "the weights with the lowest held-out loss" if recipe.run.keep == "best" else "the last weights"
    told = f"loss {test['loss']['value']:.4f} ± {test['loss']['stderr']:.4f} nats"
    if parts.data.task == "classification":
        told += f", accuracy {test['accuracy']['value']:.2%} ± {test['accuracy']['stderr']:.2%}"
    average = "" if len(set(parts.sizes)) < 2 else " on average"
    summary = [
        f"{recipe.model.name} ({count:,} parameters) was trained on {parts.data.name} for {parts.steps:,} steps of "
        f"{per_step:,} {unit}{average} with {recipe.optimizer.name}.",
        f"On {test['samples']:,} test samples: {told}. These are {kept}.",
        *parts.notes,
    ]
    return {
        "format": "flatwing.run",
        "version": 1,
        "command": "train",
        "name": name,
        "task": parts.data.task,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "flatwing": __version__,
        "seed": recipe.run.seed,
        "summary": summary,
        "training": {
            "steps": parts.steps, "unit": unit, "per_step": per_step, "seconds": round(seconds, 3),
            "parameters": count, "start": start, "optimizer": recipe.optimizer.name, "lr": recipe.optimizer.lr,
        },
        "metrics": {"valid": valid, "test": test},
        "files": {"model": MODEL, "checkpoint": CHECKPOINT, "metrics": METRICS},
    }  # fmt: skip
