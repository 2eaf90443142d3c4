"""Options of a compression, checked before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

from ..core import require_number, require_whole
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
        if self.budget is not None:
            require_number("budget", self.budget, above=0, most=1, good=0.5, advice="It is a share of the dense cost.")
        if self.max_loss is not None:
            advice = "It allows 3 % more loss, or 3 points less."
            require_number("max_loss", self.max_loss, above=0, good=0.03, advice=advice)
        require_whole("heal", self.heal, 0, good=200, advice="It is a number of steps.")
        if self.heal_lr is not None:
            require_number("heal_lr", self.heal_lr, above=0, good=1e-3, advice="Or none, to try some.")
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
