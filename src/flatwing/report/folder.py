"""A run folder: `result.json` and what lies beside it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from .log import Step, in_order, logged
from .node import Node, parse
from .record import Record, read_record


@final
@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder tells; `notes` name what is missing in it."""

    folder: Path
    record: Record
    healing: tuple[Step, ...]
    seconds: dict[str, float]
    environment: dict[str, str]
    config: str | None
    model: Path | None
    notes: tuple[str, ...]


def read_result(folder: str | os.PathLike[str]) -> Node:
    """The parsed `result.json` of a run folder; raises `ValueError` if there is none."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{str(path)!r} is not a run folder: there is no such folder. Name the OUT of a flatwing run.")
    result = text_of(path / "result.json")
    if result is None:
        raise ValueError(
            f"{str(path)!r} is not a finished run: it has no result.json. "
            "Finish the run (the same command resumes it), then ask for its report."
        )
    return parse(result, "result.json")


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Only `result.json` must exist. A last line of `metrics.jsonl` that was cut off is left out and noted. Raises
    `ValueError` if the folder or `result.json` is missing, or a file that exists is not what its name says.
    """
    path = Path(folder)
    record = read_record(read_result(folder))
    notes: list[str] = []
    healing, seconds = _log(text_of(path / "metrics.jsonl"), notes)
    environment = text_of(path / "environment.json")
    config = text_of(path / "config.toml")
    notes += [
        f"{name} is not in the run folder."
        for name, text in (("environment.json", environment), ("config.toml", config))
        if text is None
    ]
    return Run(
        folder=path,
        record=record,
        healing=healing,
        seconds=seconds,
        environment=environment_of(environment),
        config=config,
        model=_inside(path, record.model or "model.safetensors"),
        notes=tuple(notes),
    )


def text_of(path: Path) -> str | None:
    """The content of a text file, None if there is none; raises `ValueError` if it cannot be read."""
    if not path.exists():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}. Write it again."
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}. Rule: an ordinary file.") from None


def _inside(folder: Path, name: str) -> Path | None:
    """The file, if it exists; raises `ValueError` if it lies outside of the folder."""
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"result.json: files.model is {name!r}. Rule: a file inside the run folder.")
    return path if path.is_file() else None


def environment_of(text: str | None) -> dict[str, str]:
    """The entries of `environment.json`, as texts."""
    values: dict[str, Any] = {} if text is None else parse(text, "environment.json").value
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _log(text: str | None, notes: list[str]) -> tuple[tuple[Step, ...], dict[str, float]]:
    """Healing steps in order, and seconds by stage."""
    steps: list[Step] = []
    seconds: dict[str, float] = {}
    for line in logged(text, notes):
        stage, step = line.text("stage") or "other", line.count("step")
        if stage == "heal" and step is not None:
            steps.append(Step(step, line.number("loss"), line.number("heldout")))
        elif (spent := line.number("seconds")) is not None:
            seconds[stage] = seconds.get(stage, 0.0) + spent
    return in_order(steps), seconds
