"""The run folder of a training run: its files, and what may be put into which folder."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, final

from ..core import replacing
from ..core.machine import environment
from .recipe import Recipe, read_recipe, to_toml

CONFIG, ENVIRONMENT, METRICS, RESULT = "config.toml", "environment.json", "metrics.jsonl", "result.json"
CHECKPOINT, MODEL, BOARD = "checkpoint.safetensors", "model.safetensors", "tensorboard"


@final
class RunFolder:
    """A folder with the files of one run; made if it does not exist.

    Raises `ValueError` for a folder with files that are not of a training run, so that nothing of anybody's is lost.
    With `overwrite` the files of an earlier run are removed first, others stay.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{str(path)!r} is a file. Rule: a folder for the run. Name another.")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self / CONFIG).exists():
            raise ValueError(f"{str(path)!r} has files but no {CONFIG}. Rule: a new folder, or that of a run.")
        if overwrite:
            for name in (CHECKPOINT, METRICS, RESULT, MODEL, ENVIRONMENT, "report.html"):
                (self / name).unlink(missing_ok=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make {str(path)!r}: {error.strerror}. Choose another folder.") from None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def require_same(self, recipe: Recipe, free: Collection[str]) -> None:
        """Raise `ValueError` if there is a checkpoint of another recipe; entries of `free` may differ."""
        if not ((self / CHECKPOINT).exists() and (self / CONFIG).exists()):
            return
        before, now = read_recipe(self / CONFIG).flat(), recipe.flat()
        for key in sorted(before.keys() | now.keys()):
            if key not in free and before.get(key) != now.get(key):
                raise ValueError(
                    f"{str(self.path)!r} has a run with {key}={before.get(key)!r}, this one has {now.get(key)!r}. "
                    "Rule: a run goes on with its own recipe. Name another --out, or begin anew with --overwrite."
                )

    def begin(self, recipe: Recipe) -> None:
        """Write what the run is and where it runs."""
        (self / RESULT).unlink(missing_ok=True)  # there is none until the run is finished
        self.write(CONFIG, to_toml(recipe.table()))
        self.write_json(ENVIRONMENT, environment())

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON object."""
        self.write(name, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a text, whole or not at all."""
        with replacing(self / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
