"""One training loop, readable in a sitting: same seed, same result; interrupted and resumed, the same bytes."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..core import require_writable
from .optimizers import make_optimizers
from .schedule import SCHEDULES, factor
from .state import Metric, State
from .storage import load_weights

PRECISIONS = ("fp32", "bf16")
KEEPS = ("last", "best")


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    """Mean cross-entropy, in nats, of model(inputs) (..., classes) against targets (...); batch = (inputs, targets).

    >>> cross_entropy(nn.Identity(), (torch.zeros(3, 2), torch.tensor([0, 1, 1])))
    tensor(0.6931)
    """
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2).float(), targets.flatten())


def fit(
    model: nn.Module,
    batches: Callable[[int, torch.Generator], Any],
    *,
    steps: int,
    lr: float,
    loss: Callable[[nn.Module, Any], torch.Tensor] = cross_entropy,
    optimizer: str = "AdamW",
    options: Mapping[str, Any] | None = None,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    warmup: int = 0,
    clip: float | None = 1.0,
    precision: str = "fp32",
    seed: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    every: int = 0,
    keep: str = "last",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[Metric], None] | None = None,
) -> list[Metric]:
    """Train the parameters that require grad, in place, for `steps` steps; returns one metric per step.

    `batches(step, generator)` draws the batch of a step, and `loss(model, batch)` its loss, a scalar. All randomness
    (the generator, dropout) is derived from (seed, step), so a resumed run equals an uninterrupted one; the global
    generators are left as they were. The gradient is cut to norm `clip`; "bf16" computes under autocast.

    `optimizer` and its `options` are those of `make_optimizers`. The model keeps its mode: dropout works in training
    mode only.

    With `evaluate(model) -> score` (lower is better) the model is scored before the first step, every `every` steps
    and after the last; `keep="best"` ends with the weights of the lowest score. With `checkpoint`, a file, the run is
    saved at the same steps and goes on from there when called again. A metric has step, loss, lr, norm (of the
    gradient) and, where scored, score; `progress` is called with each.

    Raises `ValueError` for bad arguments before any work, `FloatingPointError` naming the step where loss, gradient
    or score is not finite.

    >>> model, x = nn.Linear(2, 2), torch.eye(2)
    >>> metrics = fit(model, lambda step, generator: (x, torch.tensor([0, 1])), steps=50, lr=0.1)
    >>> metrics[-1]["step"], metrics[-1]["loss"] < metrics[0]["loss"]
    (50, True)
    """
    settings = {
        "steps": steps, "lr": lr, "optimizer": optimizer, "options": dict(options or {}), "weight_decay": weight_decay,
        "schedule": schedule, "warmup": warmup, "clip": clip, "precision": precision, "seed": seed, "every": every,
        "keep": keep,
    }  # fmt: skip
    _check(settings, evaluate is not None)
    optimizers = make_optimizers(model, optimizer, lr, weight_decay, options)
    if checkpoint is not None:
        require_writable(checkpoint)
        state = State.resume(checkpoint, model, optimizers, settings)
    else:
        state = State()
    params = [p for p in model.parameters() if p.requires_grad]
    device = params[0].device

    def score(metric: Metric) -> None:
        if evaluate is not None:
            metric["score"] = _score(model, evaluate, state.step)
            if keep == "best":
                state.keep_if_best(metric["score"], model)

    def report(metric: Metric) -> None:
        state.metrics.append(metric)
        if progress is not None:
            progress(metric)

    if evaluate is not None and not state.metrics:
        score(metric := {"step": 0})
        report(metric)
    for step in range(state.step, steps):
        with _randomness(seed, step, device) as generator:
            batch = batches(step, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                value = loss(model, batch)
            for each in optimizers:
                each.zero_grad(set_to_none=True)
            value.backward()
        norm = nn.utils.clip_grad_norm_(params, math.inf if clip is None else clip)
        rate = lr * factor(schedule, step, steps, warmup)
        metric: Metric = {"step": step + 1, "loss": value.item(), "lr": rate, "norm": norm.item()}
        _require_finite(metric)
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = rate
            each.step()
        state.step = step + 1
        pause = state.step == steps or (every > 0 and state.step % every == 0)
        if pause:
            score(metric)
        report(metric)
        if pause and checkpoint is not None:
            state.save(checkpoint, model, optimizers, settings)
    for each in optimizers:
        each.zero_grad(set_to_none=True)
    if state.best:
        load_weights(model, state.best)
    return state.metrics


def _check(settings: dict[str, Any], evaluated: bool) -> None:
    for name, least in (("steps", 0), ("lr", 0), ("weight_decay", 0), ("warmup", 0), ("every", 0)):
        if not least <= settings[name] < math.inf:
            raise ValueError(f"{name} is {settings[name]}. Rule: finite and at least {least}.")
    clip = settings["clip"]
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}. Rule: a norm above 0, or None to leave gradients alone. Write clip=1.0.")
    for name, known in (("precision", PRECISIONS), ("keep", KEEPS)):
        if settings[name] not in known:
            raise ValueError(f"unknown {name} {settings[name]!r}. Known: {', '.join(known)}.")
    SCHEDULES[settings["schedule"]]  # raises, with the nearest name
    if settings["keep"] == "best" and not evaluated:
        raise ValueError("keep is 'best', but nothing scores the model. Give evaluate=, or write keep='last'.")


@contextmanager
def _randomness(seed: int, step: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator of this step's own; torch's global ones are seeded alike inside and restored after."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    mixed = int.from_bytes(digest[:8], "big") >> 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(mixed)
        yield torch.Generator().manual_seed(mixed)


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
                "Lower lr, raise warmup or lower clip; a checkpoint holds the last good state."
            )
