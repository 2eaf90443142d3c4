"""Heal: train the compressed network to answer as the original does, on data without labels."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from ..nn import StructuredLayer
from ..train import Metric, fit
from .batch import Batch, main_output, select, until
from .divergence import divergence
from .trace import evaluating
from .walk import find_trunk

LOSSES = ("outputs", "layers")
HALF = (torch.float16, torch.bfloat16)
POSITIONS = 2048  # that one step takes at least, in ROWS rows: texts have many positions, images one
ROWS = (16, 64)
CHECKS = 10  # times that held-out data are looked at
SCORED = 4096  # positions of them
RATES = (3e-3, 1e-3, 3e-4, 1e-4)
TRIAL = 8  # a trial of a rate takes this part of the steps


def heal(
    model: nn.Module,
    original: nn.Module,
    batches: Sequence[Batch],
    heldout: Sequence[Batch],
    task: str,
    *,
    steps: int,
    lr: float = 1e-3,
    optimizer: str = "AdamW",
    match: str = "outputs",
    precision: str = "fp32",
    gradient_checkpointing: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[Metric], None] | None = None,
) -> list[Metric]:
    """Distil `original` into `model` in place for `steps` steps; ends with the weights best on held-out data.

    The loss is the divergence of the outputs; with `match` = "layers" the squared error of every block's output is
    added, relative to its size. Warm-up and cosine; everything but embeddings is trained. The start is scored too, so
    healing never leaves the model worse on held-out data. With `checkpoint`, a file, an interrupted run goes on.

    Where weights are in half precision, a copy in float32 is trained, for small steps would be rounded away; it is then
    rounded into the model, unless that makes the model worse than it was. The original answers as it is.

    Raises `ValueError` for unknown names and networks without blocks to match, and `FloatingPointError` where training
    diverges; the weights are then as they were. Cost per step: one forward pass of the
    original, forward and backward of the model; `gradient_checkpointing` keeps only the blocks' inputs, at one more
    forward pass.
    """
    if match not in LOSSES:
        raise ValueError(f"unknown match {match!r}. Rule: {' or '.join(LOSSES)}.")
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, StructuredLayer))]
    trunk = find_trunk(model, layers, batches[0]) if match == "layers" or gradient_checkpointing else None
    if trunk is None and match == "layers":
        raise ValueError("match='layers' needs a network of equal blocks, and none were found. Take match='outputs'.")
    before = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    rounded = any(tensor.dtype in HALF for tensor in before.values())
    student = copy.deepcopy(model)._apply(_single) if rounded else model
    frozen = _freeze_embeddings(student)
    rows = [(i, j) for i, batch in enumerate(batches) for j in range(len(batch.inputs))]

    def draw(step: int, generator: torch.Generator) -> Batch:
        first, _ = rows[int(torch.randint(len(rows), (1,), generator=generator))]
        batch = batches[first]
        per_row = max(1, batch.positions // len(batch.inputs))
        count = min(max(POSITIONS // per_row, ROWS[0]), ROWS[1])
        picked = torch.randperm(len(batch.inputs), generator=generator)[:count]
        return select(batch, picked)

    def own_batch(network: nn.Module, batch: Batch) -> Batch:
        return _in_single(batch) if rounded and network is student else batch

    def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            wanted, states = _call(original, batch, trunk if match == "layers" else None)
        output, own = _call(network, own_batch(network, batch), trunk if match == "layers" else None)
        value = divergence(wanted, output, batch, task).mean()
        for a, b in zip(states, own, strict=True):
            value = value + (a - b).float().square().mean() / a.float().square().mean() / len(states)
        return value

    some = until(heldout, SCORED)

    def score(network: nn.Module) -> float:
        parts = [divergence(b.logits(original), own_batch(network, b).logits(network), b, task).double() for b in some]
        return float(torch.cat(parts).mean())

    try:
        with (
            evaluating(original, model, student),
            _recomputing(student, trunk if gradient_checkpointing else None),
        ):
            metrics = fit(
                student,
                draw,
                steps=steps,
                lr=lr,
                loss=loss,
                optimizer=optimizer,
                warmup=min(20, steps // 10),
                precision=precision,
                seed=seed,
                evaluate=score,
                every=max(1, steps // CHECKS),
                keep="best",
                checkpoint=checkpoint,
                progress=progress,
            )
            if rounded:
                _round_into(model, student, score)
            return metrics
    except FloatingPointError:
        model.load_state_dict(before)
        raise
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _round_into(model: nn.Module, healed: nn.Module, score: Callable[[nn.Module], float]) -> None:
    """Copy the healed weights in the dtypes of the model, if they are better there than those that it has."""
    before = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        worst = score(model)
        model.load_state_dict(healed.state_dict())  # which rounds
        if not score(model) < worst:
            model.load_state_dict(before)


def _single(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in HALF else x


def _in_single(batch: Batch) -> Batch:
    """The batch with inputs in float32 where they are in half precision."""

    def turn(x: Any) -> Any:
        return _single(x) if isinstance(x, torch.Tensor) else x

    kwargs = {name: turn(value) for name, value in batch.kwargs.items()}
    return replace(batch, args=tuple(turn(x) for x in batch.args), kwargs=kwargs)


def best_rate(model: nn.Module, original: nn.Module, *args: Any, steps: int, **kwargs: Any) -> float:
    """The learning rate of `RATES` that heals a copy of the model best in an eighth of the steps; arguments of `heal`.

    What is too large for one network does nothing for the next: on our two examples the best rates differ threefold.
    Cost: half of the healing itself.
    """
    trial = max(10, steps // TRIAL)
    scores = {}
    for rate in RATES:
        try:
            metrics = heal(copy.deepcopy(model), original, *args, steps=trial, lr=rate, **kwargs)
        except FloatingPointError:  # it diverged
            continue
        scores[rate] = metrics[-1]["score"]
    if not scores:
        raise FloatingPointError(f"healing diverges at every rate of {RATES}. Give heal_lr below {min(RATES)}.")
    return min(scores, key=scores.__getitem__)


def _freeze_embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Tables are not what was compressed, and few of their rows are seen on the way."""
    tables = [p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters() if p.requires_grad]
    for table in tables:
        table.requires_grad_(False)
    return tables


def _call(model: nn.Module, batch: Batch, trunk: str | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Outputs of the model, and of the blocks of its trunk if one is named."""
    states: list[torch.Tensor] = []
    blocks = [] if trunk is None else model.get_submodule(trunk).children()
    handles = [b.register_forward_hook(lambda _, args, output: states.append(main_output(output))) for b in blocks]
    try:
        return batch.logits(model), states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recomputing(model: nn.Module, trunk: str | None) -> Iterator[None]:
    """Blocks of the trunk keep their inputs only and run again for the gradient."""
    blocks = [] if trunk is None else list(model.get_submodule(trunk).children())
    for block in blocks:
        forward = block.forward

        def again(*args: Any, forward: Callable[..., Any] = forward, **kwargs: Any) -> Any:
            return recompute(forward, *args, use_reentrant=False, **kwargs)

        block.forward = again  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
