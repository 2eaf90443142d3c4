"""Batch: what one call of a network is made with, and the logits that come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn


@final
@dataclass(frozen=True)
class Batch:
    """Arguments of one call `model(*args, **kwargs)`, the targets if there are any, and where there is no padding.

    `targets` are class indices: one per row for classification, one per position for language models, where -100 marks
    positions that count for nothing. `mask` (batch, length) is True where a position is not padding.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def call(self, model: nn.Module) -> Any:
        """Whatever the model returns."""
        return model(*self.args, **self.kwargs)

    def logits(self, model: nn.Module) -> torch.Tensor:
        """The model's main output as one floating-point tensor; raises `TypeError` if none can be told."""
        return main_output(self.call(model))

    @property
    def inputs(self) -> torch.Tensor:
        """The first tensor among the arguments."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, torch.Tensor):
                return value
        raise TypeError("a batch holds no tensor. Rule: at least one of its arguments is a tensor.")

    @property
    def positions(self) -> int:
        """Rows, or positions that are not padding in a text."""
        if self.mask is not None:
            return int(self.mask.sum())
        x = self.inputs
        return len(x) if x.is_floating_point() or x.ndim == 1 else x.numel()

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""

        def move(x: Any) -> Any:
            return x.to(device) if isinstance(x, torch.Tensor) else x

        kwargs = {name: move(value) for name, value in self.kwargs.items()}
        return Batch(tuple(move(x) for x in self.args), kwargs, move(self.targets), move(self.mask))


def main_output(output: Any) -> torch.Tensor:
    """The logits of a model output: a tensor, `.logits`, `.last_hidden_state`, or the first tensor of a tuple.

    >>> main_output((torch.ones(1), None))
    tensor([1.])
    """
    if isinstance(output, torch.Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, torch.Tensor):
            return value
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    raise TypeError(
        f"the model returned a {type(output).__name__} without logits. Rule: a tensor, .logits, .last_hidden_state "
        "or a tuple that begins with a tensor; wrap the model in a module that returns one."
    )


def select(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some rows of a batch; arguments that are not one per row stay."""
    count = len(batch.inputs)

    def pick(x: Any) -> Any:
        return x[rows.to(x.device)] if isinstance(x, torch.Tensor) and x.ndim and len(x) == count else x

    kwargs = {name: pick(value) for name, value in batch.kwargs.items()}
    return Batch(tuple(pick(x) for x in batch.args), kwargs, pick(batch.targets), pick(batch.mask))


def until(batches: Sequence[Batch], positions: int) -> list[Batch]:
    """The first of the batches, until they hold this many positions; rows of the last one beyond that are left out."""
    taken: list[Batch] = []
    for batch in batches:
        missing = positions - sum(b.positions for b in taken)
        if missing <= 0:
            break
        rows = -(-missing * len(batch.inputs) // max(1, batch.positions))
        taken.append(select(batch, torch.arange(min(rows, len(batch.inputs)))))
    return taken
