"""The page of a training run: what was trained, how good it is, and the curves of loss and learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from .charts import Chart, Series, line_chart
from .folder import environment_of, text_of
from .log import Step, in_order, logged
from .node import Node
from .record import FORMAT, VERSION, Value, value_of
from .words import count

SPLITS: Final = ("valid", "test")
NAMES: Final = {"valid": "Held-out data", "test": "Test data"}
WINDOW: Final = 0.02  # share of the run over which the training loss is smoothed


@final
@dataclass(frozen=True, slots=True)
class Split:
    """One model measured on one split of the data."""

    title: str
    loss: Value | None
    accuracy: Value | None
    samples: int | None


@final
@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What the run folder of `flatwing train` tells; `notes` name what is missing in it."""

    folder: Path
    name: str
    task: str
    created: str | None
    flatwing: str | None
    seed: int | None
    summary: tuple[str, ...]
    facts: dict[str, str]
    splits: tuple[Split, ...]
    steps: tuple[Step, ...]
    environment: dict[str, str]
    config: str | None
    notes: tuple[str, ...]


def is_training(result: Node) -> bool:
    """Whether a parsed result.json was written by `flatwing train`."""
    return result.text("command") == "train"


def read_training(path: Path, result: Node) -> TrainingRun:
    """The run in a folder, whose result.json is parsed; raises `ValueError` that names the first value that is wrong.

    A last line of `metrics.jsonl` that was cut off is left out and noted.
    """
    if result.value.get("format") != FORMAT:
        raise result.refuse("format", f"{FORMAT!r}, the mark of a run folder")
    if result.require("version") != VERSION:
        raise result.refuse("version", f"{VERSION}, the version that this flatwing reads")
    notes: list[str] = []
    config = text_of(path / "config.toml")
    environment = text_of(path / "environment.json")
    for name, text in (("environment.json", environment), ("config.toml", config)):
        if text is None:
            notes.append(f"{name} is not in the run folder.")
    return TrainingRun(
        folder=path,
        name=result.text("name") or "unnamed",
        task=result.text("task") or "other",
        created=result.text("created"),
        flatwing=result.text("flatwing"),
        seed=result.count("seed"),
        summary=result.texts("summary"),
        facts=_facts(result.child("training")),
        splits=tuple(_split(result, name) for name in SPLITS),
        steps=_log(text_of(path / "metrics.jsonl"), notes),
        environment=environment_of(environment),
        config=config,
        notes=tuple(notes),
    )


def context(run: TrainingRun) -> dict[str, Any]:
    """What the template shows, already arranged and drawn."""
    return {"run": run, "notes": run.notes, "loss": loss_chart(run.steps), "rate": rate_chart(run.steps)}


def loss_chart(steps: Sequence[Step]) -> Chart | None:
    """Training loss as it is and smoothed, and held-out loss where it was measured."""
    fitted = [(float(s.step), s.loss, None) for s in steps if s.loss is not None]
    scored = tuple((float(s.step), s.heldout, None) for s in steps if s.heldout is not None)
    values = [value for _, value, _ in (*fitted, *scored)]
    return line_chart(
        "chart-loss",
        "Loss",
        [
            Series("held-out data", "accent", scored, marks=len(scored) < 30),
            Series("training data, smoothed", "muted", tuple(smooth(fitted))),
            Series("training data", "thin", tuple(fitted)),
        ],
        x_label="step",
        y_label="loss, nats",
        x_text=lambda tick: f"{tick:.0f}",
        y_log=bool(values) and min(values) > 0 and max(values) > 30 * min(values),
    )


def rate_chart(steps: Sequence[Step]) -> Chart | None:
    """The learning rate that was used."""
    points = tuple((float(s.step), s.lr, None) for s in steps if s.lr is not None)
    return line_chart(
        "chart-rate",
        "Learning rate",
        [Series("learning rate", "accent", points)],
        x_label="step",
        y_label="learning rate",
        x_text=lambda tick: f"{tick:.0f}",
    )


def smooth(points: Sequence[tuple[float, float, None]]) -> list[tuple[float, float, None]]:
    """Exponential mean over about `WINDOW` of all points, free of the weight of its start.

    >>> smooth([(1.0, 3.0, None), (2.0, 3.0, None)])
    [(1.0, 3.0, None), (2.0, 3.0, None)]
    """
    keep = 1 - 1 / max(1.0, WINDOW * len(points))
    total = weight = 0.0
    found: list[tuple[float, float, None]] = []
    for x, y, _ in points:
        total, weight = keep * total + y, keep * weight + 1
        found.append((x, total / weight, None))
    return found


def _split(result: Node, name: str) -> Split:
    metrics = result.child("metrics")
    node = metrics.child(name) if metrics is not None else None
    samples = node.count("samples") if node is not None else None
    return Split(NAMES[name], value_of(node, "loss"), value_of(node, "accuracy"), samples)


def _facts(node: Node | None) -> dict[str, str]:
    """Sizes and settings of the training, as words."""
    if node is None:
        return {}
    numbers = {
        "parameters": node.count("parameters"),
        "steps": node.count("steps"),
        f"{node.text('unit') or 'samples'} per step": node.count("per_step"),
    }
    facts = {name: count(value) for name, value in numbers.items() if value is not None}
    if (optimizer := node.text("optimizer")) is not None:
        facts["optimizer"] = optimizer
    if (lr := node.number("lr", least=0)) is not None:
        facts["learning rate"] = f"{lr:g}"
    if (seconds := node.number("seconds", least=0)) is not None:
        facts["seconds"] = f"{seconds:.1f}"
    return facts


def _log(text: str | None, notes: list[str]) -> tuple[Step, ...]:
    return in_order(
        Step(step, line.number("loss"), line.number("score"), line.number("lr", least=0))
        for line in logged(text, notes)
        if (step := line.count("step")) is not None
    )
