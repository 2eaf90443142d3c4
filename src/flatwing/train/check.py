"""What `fit` looks at before it begins; each error states the value, the rule and what to write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch.optim import Optimizer

from ..core import require_number, require_whole
from ..optim.shell import needing_closure
from .callbacks import Callback
from .distributed import PARALLEL
from .schedule import SCHEDULES

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
KEEPS = ("last", "best")
RATES = {"lr": (inf, 1e-3), "weight_decay": (inf, 0.01), "floor": (1, 0.1)}  # from 0 to, and often right
COUNTS = {"steps": (0, 1000), "warmup": (0, 100), "every": (0, 100), "save_every": (0, 100), "micro_batch": (1, 32)}
OPTIONAL = ("save_every", "micro_batch")
NEEDED = ("batches", "loss")


def check_plan(settings: Mapping[str, Any], evaluated: bool) -> None:
    """Raise `ValueError` for numbers and names among the arguments of `fit` that it cannot run with.

    >>> check_plan({"steps": 2.5}, False)
    Traceback (most recent call last):
    ValueError: steps is 2.5. Rule: a whole number, at least 0, such as 1000. Nearest good value: 2.
    """
    for name, (least, good) in COUNTS.items():
        if not (settings[name] is None and name in OPTIONAL):
            require_whole(name, settings[name], least, good=good)
    for name, (most, good) in RATES.items():
        require_number(name, settings[name], 0, most, good=good)
    if "seed" in settings:
        require_whole("seed", settings["seed"], -inf)
    if (clip := settings["clip"]) is not None:
        require_number("clip", clip, above=0, good=1.0, advice="Or None, which leaves gradients alone.")
    for name, known in (("precision", PRECISIONS), ("keep", KEEPS), ("parallel", PARALLEL)):
        if settings[name] not in tuple(known):
            raise ValueError(f"unknown {name} {settings[name]!r}. Known: {', '.join(known)}.")
    SCHEDULES[settings["schedule"]]  # raises, with the nearest name
    if settings["keep"] == "best" and not evaluated:
        raise ValueError("keep is 'best', but nothing scores the model. Give evaluate=, or write keep='last'.")


def check_hooks(calls: Mapping[str, Any], optimizer: Any, callbacks: Any) -> None:
    """Raise `ValueError` unless `calls` are functions or, where not needed, None; and for what makes no optimizer."""
    for name, call in calls.items():
        if not (callable(call) or (call is None and name not in NEEDED)):
            rule = "a function" if name in NEEDED else "a function, or None"
            raise ValueError(f"{name} is {call!r}. Rule: {rule}. Write {name}=... with the name of yours.")
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    if issubclass(kind, Optimizer) or not (isinstance(optimizer, str) or callable(optimizer)):
        raise ValueError(
            f"optimizer is {optimizer if isinstance(optimizer, type) else kind.__name__!r}. Rule: a name such as "
            "'AdamW', or a function that makes one. Write optimizer=lambda model: AdamW(model.parameters(), lr=1e-3)."
        )
    if not isinstance(callbacks, Sequence) or not all(isinstance(hook, Callback) for hook in callbacks):
        raise ValueError(f"callbacks is {callbacks!r}. Rule: a list of objects of class Callback. Write callbacks=[].")


def check_places(tables: Mapping[str, Any], checkpoint: Any) -> None:
    """Raise `ValueError` unless `tables` are mappings from texts or None, and `checkpoint` a path or None."""
    for name, table in tables.items():
        check_table(name, table)
    if not (checkpoint is None or isinstance(checkpoint, str | os.PathLike)):
        raise ValueError(f"checkpoint is {checkpoint!r}. Rule: a file, or None. Write checkpoint='run.safetensors'.")


def check_table(name: str, table: Any) -> None:
    """Raise `ValueError` unless `table` is a mapping from texts, or None.

    >>> check_table("options", [0.9])
    Traceback (most recent call last):
    ValueError: options is [0.9]. Rule: a dict with names as keys. Write options={}.
    """
    if table is not None and not (isinstance(table, Mapping) and all(isinstance(key, str) for key in table)):
        raise ValueError(f"{name} is {table!r}. Rule: a dict with names as keys. Write {name}={{}}.")


def check_stepper(stepper: Any) -> Optimizer:
    """The optimizer that was made; raises `ValueError` if it is none, or cannot step on a gradient that is there."""
    if not isinstance(stepper, Optimizer):
        raise ValueError(
            f"the function optimizer returned a {type(stepper).__name__}. Rule: a torch.optim.Optimizer. "
            "Write optimizer=lambda model: AdamW(model.parameters(), lr=1e-3)."
        )
    if (inner := needing_closure(stepper)) is not None:
        advice = "Add callbacks=[SamPhase()]" if inner in ("SAM", "ASAM") else "Take 'AdamW'"
        raise ValueError(f"optimizer is {inner}, which steps with a closure. Rule: one step per gradient. {advice}.")
    return stepper
