"""Evaluate: loss, perplexity, accuracy and agreement with the original network, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional as F

from .batch import Batch
from .divergence import TASKS
from .trace import evaluating

IGNORED = -100  # a target that counts for nothing, as in torch's cross_entropy
CHUNK = 1 << 24  # logits that are worked on at a time in single precision


@final
@dataclass(frozen=True)
class Estimate:
    """A measured number and its standard error; the error is None where one unit was measured and none is known."""

    value: float
    stderr: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain data for JSON, which knows no infinity: such a number becomes None."""
        return {"value": _finite(self.value), "stderr": _finite(self.stderr)}


@final
@dataclass(frozen=True)
class Metrics:
    """What was measured on one set of batches; None where a task has no such number.

    `loss` is in nats per position for "lm", per row for "classification", and the relative error |y - y'| / |y| of the
    outputs against the reference for "other". `kl`, `top1` and `cosine` compare with the reference: KL(reference ||
    model) in nats, the share of equal first choices, the mean cosine of the outputs (logits without their mean).
    """

    loss: Estimate | None = None
    perplexity: Estimate | None = None
    accuracy: Estimate | None = None
    kl: Estimate | None = None
    top1: Estimate | None = None
    cosine: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: "loss", "perplexity", "accuracy" and "agreement" with "kl", "top1", "cosine".

        >>> Metrics(loss=Estimate(1.5, 0.1)).to_dict()
        {'loss': {'value': 1.5, 'stderr': 0.1}, 'perplexity': None, 'accuracy': None, 'agreement': None}
        """
        plain = {name: own.to_dict() if own else None for name, own in vars(self).items()}
        agreement = {name: plain.pop(name) for name in ("kl", "top1", "cosine")}
        return {**plain, "agreement": agreement if any(agreement.values()) else None}


def evaluate(model: nn.Module, batches: Iterable[Batch], task: str, reference: nn.Module | None = None) -> Metrics:
    """Measure a model on batches, and its agreement with `reference` if there is one.

    Standard errors are over rows: the tokens of one text depend on each other, so a text counts as one unit (ratio
    estimator, clustered by row). Targets of -100 and, without targets, positions of padding are left out. Batches
    without targets give no loss and no accuracy. Modes, gradients, random state and buffers are as before.

    Raises `ValueError` for an unknown task, no batches, targets that do not fit, and outputs that are not a number.
    Cost: one forward pass, two with a reference; one batch of outputs is held at a time.

    >>> model, x = nn.Linear(2, 3), torch.ones(4, 2)
    >>> metrics = evaluate(model, [Batch((x,), targets=torch.zeros(4, dtype=torch.long))], "classification", model)
    >>> metrics.kl
    Estimate(value=0.0, stderr=0.0)
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}. Rule: one of {', '.join(TASKS)}.")
    rows: dict[str, list[torch.Tensor]] = {}
    labelled: bool | None = None
    models = [model] if reference is None else [model, reference]
    with untouched(*models):
        for number, batch in enumerate(batches):
            if labelled is not None and labelled != (batch.targets is not None):
                one, other = (number - 1, number) if labelled else (number, number - 1)
                raise ValueError(f"batch {other} has no targets, batch {one} has. Rule: all batches have them or none.")
            labelled = batch.targets is not None
            output = batch.logits(model)
            if bool(output.isnan().any()):
                raise ValueError(
                    f"the outputs for batch {number} hold NaN. Rule: a network gives numbers; look for NaN in its "
                    "weights or inputs, or run it in float32 if half precision overflows."
                )
            wanted = None if reference is None else output if reference is model else batch.logits(reference)
            for name, values in _sums(output, wanted, batch, task).items():
                rows.setdefault(name, []).append(values)
    if not rows:
        raise ValueError("there are no batches to evaluate on. Rule: at least one.")
    sums = {name: torch.cat(values) for name, values in rows.items()}
    if not bool((sums["count"] > 0).any()):
        raise ValueError(f"all targets are {IGNORED} or padding. Rule: at least one position counts.")
    return _metrics(sums, task)


def quality_loss(before: Metrics, after: Metrics, task: str) -> float:
    """What was lost: the relative increase of the loss for "lm", points of accuracy as a fraction for "classification",
    1 - cosine for "other"; negative if something was gained. Raises `ValueError` if it was not measured.

    >>> quality_loss(Metrics(loss=Estimate(2.0, 0.1)), Metrics(loss=Estimate(2.5, 0.1)), "lm")
    0.25
    """
    if task == "other" and after.cosine is not None:
        return 1 - after.cosine.value
    if task == "lm" and before.loss is not None and after.loss is not None:
        return (after.loss.value - before.loss.value) / max(before.loss.value, 1e-12)
    if task == "classification" and before.accuracy is not None and after.accuracy is not None:
        return before.accuracy.value - after.accuracy.value
    needed = {"lm": "data with targets", "classification": "data with labels", "other": "a reference model"}
    if task not in needed:
        raise ValueError(f"task is {task!r}. Rule: one of {', '.join(TASKS)}.")
    raise ValueError(f"the loss of quality is not known. Rule: for {task!r}, evaluate with {needed[task]}.")


@contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes, buffers and the random state are as before."""
    devices = {p.device.index or 0 for model in models for p in model.parameters() if p.device.type == "cuda"}
    buffers = [(buffer, buffer.clone()) for model in models for buffer in model.buffers()]
    with evaluating(*models), torch.random.fork_rng(sorted(devices)), torch.no_grad():
        try:
            yield
        finally:
            for buffer, before in buffers:
                if buffer.shape == before.shape:
                    buffer.copy_(before)


def ratio(sums: Float[torch.Tensor, " rows"], counts: Float[torch.Tensor, " rows"]) -> Estimate:
    """sum(sums) / sum(counts) with the standard error over rows, which are independent of each other.

    The variance of a ratio by its residuals: G / (G - 1) sum (s_i - r n_i)^2 / N^2 for G rows that count.
    """
    total, units = float(counts.sum()), int((counts > 0).sum())
    value = float(sums.sum()) / total
    if units < 2:
        return Estimate(value, None)
    spread = float((sums - value * counts).square().sum())
    return Estimate(value, math.sqrt(units / (units - 1) * spread) / total)


def _metrics(sums: dict[str, torch.Tensor], task: str) -> Metrics:
    """The estimates from the sums of each row."""
    count = sums["count"]
    found = {name: ratio(sums[name], count) for name in ("loss", "kl", "top1", "cosine") if name in sums}
    if task == "other":
        if "error" in sums:  # of the square root: d sqrt(R) = dR / (2 sqrt(R))
            squared = ratio(sums["error"], sums["energy"].clamp_min(1e-30))
            value = math.sqrt(squared.value)
            spread = squared.stderr and squared.stderr / (2 * value)
            found["loss"] = Estimate(value, spread)
    elif "loss" in found and task == "lm":
        loss = found["loss"]
        value = math.exp(min(loss.value, 700.0))
        found["perplexity"] = Estimate(value, None if loss.stderr is None else value * loss.stderr)
    if "right" in sums and task == "classification":
        k, n = float(sums["right"].sum()), float(count.sum())
        p = (k + 1) / (n + 2)  # in the error only: 30 right of 30 is not certainty
        found["accuracy"] = Estimate(k / n, math.sqrt(p * (1 - p) / n))
    return Metrics(**found)


def _sums(output: torch.Tensor, other: torch.Tensor | None, batch: Batch, task: str) -> dict[str, torch.Tensor]:
    """Sums over the positions of each row, (rows,) each, in float64 on the CPU."""
    targets = None if task == "other" or batch.targets is None else batch.targets.to(output.device)
    if targets is not None and targets.shape != output.shape[:-1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, outputs {tuple(output.shape)}. Rule: one target for each "
            "position of the outputs."
        )
    if other is not None and other.shape != output.shape:
        raise ValueError(
            f"the model gives {tuple(output.shape)}, the reference {tuple(other.shape)}. Rule: equal shapes."
        )
    counted = torch.ones(output.shape[:-1], dtype=torch.bool, device=output.device)
    if targets is not None:
        counted = targets != IGNORED
    elif batch.mask is not None and batch.mask.shape == output.shape[:-1]:
        counted = batch.mask.to(output.device)
    parts: list[dict[str, torch.Tensor]] = []
    step = max(1, CHUNK // max(1, output[0].numel()))
    for start in range(0, len(output), step):
        rows = slice(start, start + step)
        own = _positions(output[rows], None if other is None else other[rows], task)
        if targets is not None:
            flat = output[rows].float().log_softmax(-1)
            wanted = targets[rows].clamp_min(0)
            own["loss"] = -flat.gather(-1, wanted[..., None]).squeeze(-1)
            own["right"] = flat.argmax(-1) == wanted
        own["count"] = torch.ones_like(counted[rows])
        zero = torch.zeros((), dtype=torch.float64, device=output.device)
        parts.append(
            {
                name: torch.where(counted[rows], values.double(), zero).reshape(len(values), -1).sum(-1).cpu()
                for name, values in own.items()
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _positions(output: torch.Tensor, other: torch.Tensor | None, task: str) -> dict[str, torch.Tensor]:
    """Agreement at each position, (...,)."""
    if other is None:
        return {}
    p, q = other.float(), output.float()
    if task == "other":
        return {
            "cosine": _cosine(p, q),
            "error": (p - q).square().sum(-1),
            "energy": p.square().sum(-1),
        }
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    kl = torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    both = p.isfinite() & q.isfinite()  # classes that are ruled out have a logit of -inf
    p, q = (torch.where(both, x, 0.0) for x in (p, q))
    p, q = (x - x.mean(-1, keepdim=True) for x in (p, q))
    return {"kl": kl, "top1": p.argmax(-1) == q.argmax(-1), "cosine": _cosine(p, q)}


def _cosine(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(p, q, dim=-1).clamp(-1, 1)  # rounding may lift it above 1


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
