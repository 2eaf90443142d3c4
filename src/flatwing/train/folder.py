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
    """A folder with the files of one run; nothing is looked at or made before `begin`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def begin(self, recipe: Recipe, free: Collection[str], *, overwrite: bool = False) -> None:
        """Make the folder, or take that of the same run, and write what the run is and where it runs.

        With `overwrite` the files of an earlier run are removed first, others stay. Raises `ValueError`, before any
        work, for a folder with files that are not of a training run, so that nothing of anybody's is lost, and without
        `overwrite` for one of another recipe, where entries of `free` may differ.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{str(self.path)!r} is a file. Rule: a folder for the run. Name another.")
        if self.path.is_dir() and any(self.path.iterdir()):
            before = self._require_own()
            if not overwrite:
                self._require_same(before, recipe, free)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make {str(self.path)!r}: {error.strerror}. Choose another folder.") from None
        # there is no result until the run is finished
        for name in (CHECKPOINT, METRICS, MODEL, ENVIRONMENT, "report.html", RESULT) if overwrite else (RESULT,):
            (self / name).unlink(missing_ok=True)
        self.write(CONFIG, to_toml(recipe.table()))
        self.write_json(ENVIRONMENT, environment())

    def _require_own(self) -> Recipe:
        """The recipe of the run that the folder has; raises `ValueError` where it has something else."""
        rule = "Rule: a new folder, or that of a training run. Name another --out."
        if not (self / CONFIG).is_file():
            raise ValueError(f"{str(self.path)!r} has files but no {CONFIG}. {rule}")
        try:
            before = read_recipe(self / CONFIG)
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(self / CONFIG)!r} is not of a training run: {error} {rule}") from None
        if (self / RESULT).exists():
            try:
                made = json.loads((self / RESULT).read_text(encoding="utf-8"))["command"]
            except (ValueError, OSError, KeyError, TypeError):
                made = None
            if made != "train":
                raise ValueError(f"{str(self / RESULT)!r} is not of a training run. {rule}")
        return before

    def _require_same(self, before: Recipe, recipe: Recipe, free: Collection[str]) -> None:
        """Raise `ValueError` if there is something to lose, and it is of another recipe."""
        if not any((self / name).exists() for name in (CHECKPOINT, MODEL, RESULT)):
            return
        old, new = before.flat(), recipe.flat()
        for key in sorted(old.keys() | new.keys()):
            if key not in free and old.get(key) != new.get(key):
                raise ValueError(
                    f"{str(self.path)!r} has a run with {key}={old.get(key)!r}, this one has {new.get(key)!r}. "
                    "Rule: a run goes on with its own recipe. Name another --out, or begin anew with --overwrite."
                )

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON object."""
        self.write(name, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a text, whole or not at all."""
        with replacing(self / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
