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

from .distributed import parted, parted_weights, rank, whole, whole_weights
from .storage import load_tensors, load_weights, save_tensors

RUN = "flatwing.run.2"
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
        optimizer: Optimizer,
        settings: Mapping[str, Any],
        scaler: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the state with model, optimizer and the settings of the run into one safetensors file.

        The file is the same whatever the number of ranks: all of them must call this, rank 0 writes.
        """
        tensors = {f"model.{name}": tensor for name, tensor in whole_weights(model).items()}
        tensors |= {f"best.{name}": whole(tensor) for name, tensor in self.best.items()}
        scalars: dict[str, Any] = {}
        state = optimizer.state_dict()
        for index, entries in state["state"].items():
            for key, value in entries.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{index}.{key}"] = whole(value)
                else:
                    scalars[f"optimizer.{index}.{key}"] = value
        if rank() > 0:
            return
        notes = {
            "settings": dict(settings),
            "step": self.step,
            "metrics": self.metrics,
            "best_score": self.best_score,
            "scalars": scalars,
            "groups": [_plain(group) for group in state["param_groups"]],
            "scaler": dict(scaler or {}),
        }
        save_tensors(path, tensors, notes, RUN)

    @staticmethod
    def resume(
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizer: Optimizer,
        settings: Mapping[str, Any],
        scaler: Any = None,
    ) -> State:
        """Load what `save` wrote into model, optimizer and scaler; a new state if there is no file.

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
        load_weights(model, parted_weights(model, _part(tensors, "model.")))
        entries: dict[int, dict[str, Any]] = {}
        owners = [p for group in optimizer.param_groups for p in group["params"]]  # as a state dict numbers them
        for name, value in (tensors | notes["scalars"]).items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                at = int(index)
                entries.setdefault(at, {})[key] = parted(value, owners[at]) if torch.is_tensor(value) else value
        own = optimizer.state_dict()["param_groups"]
        if len(own) != len(notes["groups"]):
            raise ValueError(
                f"{str(path)!r} has {len(notes['groups'])} groups of parameters, this run has {len(own)}. "
                "Rule: the same optimizer in the same groups. Make it as it was, or name another file."
            )
        groups = [_restored(group, saved) for group, saved in zip(own, notes["groups"], strict=True)]
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
        if scaler is not None and notes["scaler"]:
            scaler.load_state_dict(notes["scaler"])
        best = parted_weights(model, _part(tensors, "best."))
        return State(notes["step"], notes["metrics"], notes["best_score"], best)


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a group: hyper-parameters, and numbers that a method counts with."""
    kinds = (bool, int, float, str, type(None))
    return {
        key: value
        for key, value in group.items()
        if key != "params"
        and (isinstance(value, kinds) or (isinstance(value, list | tuple) and all(isinstance(v, kinds) for v in value)))
    }


def _restored(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group with the values that were saved; JSON turned tuples into lists."""
    back = {
        key: tuple(value) if isinstance(value, list) and isinstance(group.get(key), tuple) else value
        for key, value in saved.items()
    }
    return {**group, **back}


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
