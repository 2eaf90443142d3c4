"""One training loop, readable in a sitting: same seed, same result; interrupted and resumed, the same bytes."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..core import require_writable
from ..optim.check import require_model
from .callbacks import Callback, Training, running
from .check import PRECISIONS, check_hooks, check_places, check_plan, check_stepper
from .distributed import anywhere, distribute, parted_weights, rank, ranks, reducing, total, whole
from .optimizers import make_optimizer
from .portions import Portion, portions
from .schedule import factor
from .state import Metric, State
from .storage import load_weights

SAVES = 20  # checkpoints of a run at least: what a kill can cost is a twentieth of it


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    """Mean cross-entropy, in nats, of model(inputs) (..., classes) against targets (...); batch = (inputs, targets).

    Raises `ValueError` for batches that are no such pair.

    >>> cross_entropy(nn.Identity(), (torch.zeros(3, 2), torch.tensor([0, 1, 1])))
    tensor(0.6931)
    """
    if not (isinstance(batch, Sequence) and len(batch) == 2):
        told = f"{len(batch)} parts" if isinstance(batch, Sequence) else f"a {type(batch).__name__}"
        raise ValueError(f"a batch is {told}. Rule: a pair (inputs, targets). Draw a pair, or give fit loss=.")
    inputs, targets = batch
    scores, labels = model(inputs).flatten(0, -2).float(), targets.flatten()
    if len(scores) != len(labels) or len(labels) == 0 or labels.is_floating_point():
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)} for {len(scores)} rows of scores. Rule: a "
            "whole number for each row, at least one row. Draw such a batch, or give fit loss=."
        )
    try:
        return F.cross_entropy(scores, labels)
    except IndexError:
        worst, classes = int(labels[(labels < 0) | (labels >= scores.shape[1])][0]), scores.shape[1]
        raise ValueError(
            f"a target is {worst}, the model has {classes} classes. Rule: 0 to {classes - 1}. Count from 0, or make "
            "the model with more classes."
        ) from None


def fit(
    model: nn.Module,
    batches: Callable[[int, torch.Generator], Any],
    *,
    steps: int,
    lr: float,
    loss: Callable[[nn.Module, Any], torch.Tensor] = cross_entropy,
    optimizer: str | Callable[[nn.Module], Optimizer] = "AdamW",
    options: Mapping[str, Any] | None = None,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    warmup: int = 0,
    floor: float = 0.0,
    clip: float | None = 1.0,
    precision: str = "fp32",
    micro_batch: int | None = None,
    fetch: Callable[[Any], Any] | None = None,
    parallel: str = "none",
    seed: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    every: int = 0,
    save_every: int | None = None,
    keep: str = "last",
    checkpoint: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[Metric], None] | None = None,
) -> list[Metric]:
    """Train the parameters that require grad, in place, for `steps` steps; returns one metric per step.

    `batches(step, generator)` draws the batch of a step, and `loss(model, batch)` its mean loss, a scalar. All
    randomness (the generator, dropout) is derived from (seed, step), so a resumed run equals an uninterrupted one; the
    global generators are left as they were. With `micro_batch`, at most that many rows are computed at once, and with
    `fetch` what is drawn are numbers of samples, and `fetch(numbers)` is the batch of some of them. The order of a
    step: gradients of all micro-batches, mean over ranks, unscale, cut to norm `clip`, optimizer.

    `optimizer` and its `options` are those of `make_optimizer`, or a function that makes one for the model; it may be
    in groups with learning rates of their own. Each follows `schedule` from its own rate down to `floor` * lr, a common
    end. The model keeps its mode: dropout works in training mode only. "bf16" and "fp16" compute under autocast; in
    fp16 the loss is scaled, and a step whose gradients overflow is skipped, with "skipped": 1 in its metric.

    With `parallel` = "ddp" or "fsdp" every rank of the process group calls this alike, also `evaluate`, which must
    return the same on all; each takes its part of the rows of the batch, so that the result is that of one process up
    to rounding (BatchNorm's statistics are those of rank 0). After "fsdp" the model is sharded.

    With `evaluate(model) -> score` (lower is better) the model is scored before the first step, every `every` steps
    and after the last; `keep="best"` ends with the weights of the lowest score. With `checkpoint`, a file, the run is
    saved every `save_every` steps (by default `every`, and not less often than each twentieth of the run; 0: only at
    the end) and at the end, and goes on from there when called again with the same arguments, on any number of ranks;
    `settings` are what else shall be the same. A metric has step, loss, lr, norm (of the gradient) and, where scored,
    score; `progress` is called with each. See `Callback` for `callbacks`.

    Raises `ValueError` for bad arguments before any work, `FloatingPointError` naming the step where loss, gradient
    or score is not finite.

    >>> model, x = nn.Linear(2, 2), torch.eye(2)
    >>> metrics = fit(model, lambda step, generator: (x, torch.tensor([0, 1])), steps=50, lr=0.1)
    >>> metrics[-1]["step"], metrics[-1]["loss"] < metrics[0]["loss"]
    (50, True)
    """
    require_model(model)
    calls = {"batches": batches, "loss": loss, "fetch": fetch, "evaluate": evaluate, "progress": progress}
    check_hooks(calls, optimizer, callbacks)
    check_places({"options": options, "settings": settings}, checkpoint)
    name = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", type(optimizer).__name__)
    plan = {
        "steps": steps, "lr": lr, "optimizer": name, "options": dict(options or {}), "weight_decay": weight_decay,
        "schedule": schedule, "warmup": warmup, "floor": floor, "clip": clip, "precision": precision, "seed": seed,
        "every": every, "keep": keep,
    }  # fmt: skip
    more = {"save_every": save_every, "micro_batch": micro_batch, "parallel": parallel}
    check_plan(plan | more, evaluate is not None)
    plan |= dict(settings or {})
    if checkpoint is not None:
        require_writable(checkpoint)
    network = distribute(model, parallel)
    named = partial(make_optimizer, name=name, lr=lr, weight_decay=weight_decay, options=options)
    stepper = check_stepper((named if isinstance(optimizer, str) else optimizer)(model))
    peaks = [float(group["lr"]) for group in stepper.param_groups]
    params = [p for p in model.parameters() if p.requires_grad]
    device = params[0].device
    here, count = (rank(), ranks()) if parallel != "none" else (0, 1)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    state = State() if checkpoint is None else State.resume(checkpoint, model, stepper, plan, scaler)
    often = min(every or steps, max(1, steps // SAVES)) if save_every is None else save_every
    training = Training(model, network, stepper, [], state.metrics, state.step)
    training.curve = lambda place: lr * _factor(schedule, place, steps, warmup, floor)
    training.repace([float(step) for step in range(steps)], [1.0] * steps)

    def gradient(parts: Sequence[Portion]) -> torch.Tensor:
        """The gradient of the mean loss over all rows of all ranks, times the loss scale, and that loss."""
        stepper.zero_grad(set_to_none=True)
        losses: list[torch.Tensor] = []
        for number, (part, weight) in enumerate(parts, start=1):
            batch = part if fetch is None else fetch(part)
            with reducing(network, number == len(parts)):
                with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
                    value = loss(network, batch)
                scaler.scale(value * (weight * count)).backward()  # the mean over ranks divides by their count
            losses.append(value.detach() * weight)
        mean = torch.stack(losses).sum()
        return total(mean) if count > 1 else mean

    def score(metric: Metric) -> None:
        if evaluate is not None:
            metric["score"] = _score(model, evaluate, state.step)
            if keep == "best":
                state.keep_if_best(metric["score"], model)

    def report(metric: Metric) -> None:
        state.metrics.append(metric)
        for callback in callbacks:
            callback.on_metric(training, metric)
        if progress is not None:
            progress(metric)

    with running(callbacks, training):
        if evaluate is not None and not state.metrics:
            score(metric := {"step": 0})
            report(metric)
        for step in range(state.step, steps):
            with _randomness(seed, step, device, here) as generator:
                parts = portions(batches(step, generator), micro_batch, here, count)
                training.gradient = partial(gradient, parts)
                training.batches = [partial(fetch or _same, part) for part, _ in parts]
                value = training.gradient()
                for callback in callbacks:
                    callback.on_gradient(training)
            scaler.unscale_(stepper)
            norm = whole(nn.utils.clip_grad_norm_(params, math.inf if clip is None else clip))
            metric = {"step": step + 1, "loss": value.item(), "lr": training.rates[step], "norm": norm.item()}
            if precision == "fp16" and not math.isfinite(metric["norm"]) and scaler.get_scale() > 1:
                del metric["norm"]
                metric["skipped"] = 1
            _require_finite(metric)
            for group, peak in zip(stepper.param_groups, peaks, strict=True):
                end = min(1.0, floor * lr / peak) if peak else 0.0
                share = _factor(schedule, training.places[step], steps, warmup, end)
                group["lr"] = peak * share * training.scales[step]
            scaler.step(stepper)
            scaler.update()
            training.step = state.step = step + 1
            last = state.step == steps
            if last or _due(state.step, every):
                score(metric)
            report(metric)
            ends = last or anywhere(training.stop, device) if count > 1 else last or training.stop
            due = _due(state.step, often)
            if checkpoint is not None and (ends or due):
                state.save(checkpoint, model, stepper, plan, scaler.state_dict())
            if ends:
                break
        stepper.zero_grad(set_to_none=True)
        if state.best:
            load_weights(model, parted_weights(model, state.best))
    return state.metrics


def _same(part: Any) -> Any:
    return part


def _factor(schedule: str, place: float, steps: int, warmup: int, floor: float) -> float:
    """The factor of the schedule at a place in steps; between two steps a straight line."""
    step, part = int(place), place % 1
    here = factor(schedule, step, steps, warmup, floor)
    return here if part == 0 else (1 - part) * here + part * factor(schedule, step + 1, steps, warmup, floor)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _randomness(seed: int, step: int, device: torch.device, rank: int) -> Iterator[torch.Generator]:
    """A generator of this step's own, the same on all ranks; torch's global ones are seeded inside and restored after.

    Ranks draw different dropout masks.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_mixed(f"{seed}/{step}/{rank}" if rank else f"{seed}/{step}"))
        yield torch.Generator().manual_seed(_mixed(f"{seed}/{step}"))


def _mixed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _score(model: nn.Module, evaluate: Callable[[nn.Module], float], step: int) -> float:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            score = float(evaluate(model))
    finally:
        model.train(training)
    _require_finite({"step": step, "score": score})
    return score


def _require_finite(metric: Metric) -> None:
    for name, value in metric.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {metric['step']}. Rule: finite. "
                "Lower lr, raise warmup or lower clip; a checkpoint, if there is one, holds the last good state."
            )
