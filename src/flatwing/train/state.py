"""The state of a run between two steps: all that is needed to go on as if nothing had happened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .storage import load_tensors, load_weights, save_tensors

RUN = "flatwing.run.1"
Metric = dict[str, int | float]


@dataclass(slots=True)
class State:
    """Steps done, what was measured on the way, and the best weights so far with their score (lower is better)."""

    step: int = 0
    metrics: list[Metric] = field(default_factory=list)
    best_score: float | None = None
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def keep_if_best(self, score: float, model: nn.Module) -> None:
        """Copy the weights of the model if its score is the lowest so far."""
        if self.best_score is None or score < self.best_score:
            self.best_score = score
            self.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def save(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizers: list[Optimizer],
        settings: Mapping[str, Any],
    ) -> None:
        """Write the state with model, optimizers and the settings of the run into one safetensors file."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        scalars: dict[str, Any] = {}
        for i, optimizer in enumerate(optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                for key, value in entries.items():
                    (tensors if isinstance(value, torch.Tensor) else scalars)[f"optimizer.{i}.{index}.{key}"] = value
        notes = {
            "settings": dict(settings),
            "step": self.step,
            "metrics": self.metrics,
            "best_score": self.best_score,
            "scalars": scalars,
        }
        save_tensors(path, tensors, notes, RUN)

    @staticmethod
    def resume(
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizers: list[Optimizer],
        settings: Mapping[str, Any],
    ) -> State:
        """Load what `save` wrote into model and optimizers; a new state if there is no file.

        Raises `ValueError` if the file belongs to a run with other settings or another model.
        """
        if not Path(path).exists():
            return State()
        tensors, notes = load_tensors(path, RUN)
        for name, value in json.loads(json.dumps(dict(settings))).items():
            if notes["settings"].get(name) != value:
                raise ValueError(
                    f"{str(path)!r} is of a run with {name}={notes['settings'].get(name)!r}, this one has "
                    f"{name}={value!r}. Rule: a run resumes with its own settings. Restore them, or name another file."
                )
        load_weights(model, _part(tensors, "model."))
        for i, optimizer in enumerate(optimizers):
            entries: dict[int, dict[str, Any]] = {}
            for name, value in (tensors | notes["scalars"]).items():
                if name.startswith(f"optimizer.{i}."):
                    _, _, index, key = name.split(".", 3)
                    entries.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        return State(notes["step"], notes["metrics"], notes["best_score"], _part(tensors, "best."))


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
