"""Options of a compression, checked before any work."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, final

from ..train import OPTIMIZERS
from .candidates import STRUCTURES
from .costs import UNITS
from .divergence import TASKS
from .heal import LOSSES

QUANTIZERS = ("int8",)


@final
@dataclass(frozen=True)
class Options:
    """What was asked for; see `flatwing.compress.compress` for the meaning of each. Raises `ValueError`."""

    budget: float | None = None
    unit: str = "parameters"
    max_loss: float | None = None
    where: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    structures: tuple[str, ...] = tuple(STRUCTURES)
    anchored: bool = True
    heal: int = 0
    heal_lr: float | None = None
    optimizer: str = "AdamW"
    match: str = "outputs"
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    quantize: str | None = None
    densify: bool = False
    landmarks: bool = True
    curve: bool = True
    timing: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.max_loss is None):
            given = "neither" if self.budget is None else "both"
            raise ValueError(f"{given} of budget and max_loss was given. Rule: one, such as budget=0.5.")
        if self.budget is not None and not (math.isfinite(self.budget) and 0 < self.budget <= 1):
            raise ValueError(
                f"budget={self.budget}. Rule: a share of the dense cost, above 0 and at most 1, such as 0.5."
            )
        if self.max_loss is not None and not (math.isfinite(self.max_loss) and self.max_loss > 0):
            raise ValueError(f"max_loss={self.max_loss}. Rule: above 0; 0.03 allows 3 % more loss, or 3 points less.")
        if not math.isfinite(self.heal) or self.heal < 0:
            raise ValueError(f"heal={self.heal}. Rule: a number of steps, 0 for none; 200 is a good start.")
        if self.heal_lr is not None and not (math.isfinite(self.heal_lr) and self.heal_lr > 0):
            raise ValueError(f"heal_lr={self.heal_lr}. Rule: above 0, such as 1e-3, or none to try some.")
        for name, value, known in (
            ("unit", self.unit, UNITS),
            ("match", self.match, LOSSES),
            ("precision", self.precision, ("fp32", "bf16")),
            ("quantize", self.quantize, (None, *QUANTIZERS)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}. Rule: one of {', '.join(str(k) for k in known)}.")
        if self.quantize and self.densify:
            raise ValueError("quantize and densify exclude each other: an ordinary checkpoint holds no int8. Give one.")
        if not self.structures:
            raise ValueError(f"no structures. Rule: some of {', '.join(STRUCTURES)}.")
        for name in self.structures:
            STRUCTURES[name]  # raises, naming the nearest
        OPTIMIZERS[self.optimizer]

    @property
    def share(self) -> float:
        """The share around which error curves are measured."""
        return 0.35 if self.budget is None else min(self.budget, 0.9)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def check_task(task: str | None) -> None:
    """Raise `ValueError` for a task that is not known."""
    if task is not None and task not in TASKS:
        raise ValueError(f"task={task!r}. Rule: one of {', '.join(TASKS)}, or none to tell it from the class.")
