"""Where the metrics of a run go: lines of JSON always, TensorBoard for those who want it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, final

from typing_extensions import override

from ..core import parse_json, replacing, require_writable
from .callbacks import Callback, Training
from .state import Metric


@final
class JsonLines(Callback):
    """One JSON object per step in a file, written at once: {"step", "loss", "lr", "norm", ..., "seconds"}.

    `seconds` is the time that the run has worked. A run that goes on keeps the lines of its own steps, drops those of
    steps that will be made again, and counts on from the `seconds` of its last line, which are `earlier`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require_writable(path)
        self.path = Path(path)
        self.earlier = 0.0
        self._start = perf_counter()

    @override
    def on_start(self, training: Training) -> None:
        """Keep one line for each metric so far, with the seconds that were written then."""
        written: dict[Any, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # the last line may be cut off
                    row = parse_json(line)
                    written[row["step"]] = row
        rows = [{**written.get(metric["step"], {}), **metric} for metric in training.metrics]
        self.earlier = float(rows[-1].get("seconds", 0.0)) if rows else 0.0
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._start = perf_counter()

    @override
    def on_metric(self, training: Training, metric: Metric) -> None:
        """Append a line."""
        row = {**metric, "seconds": round(self.earlier + perf_counter() - self._start, 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@final
class TensorBoard(Callback):
    """The metrics as scalars for TensorBoard; raises `ValueError` at once if it is not installed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # type: ignore[reportPrivateImportUsage]
        except ImportError as error:
            raise ValueError(
                f"TensorBoard cannot be imported ({error}). Install it: pip install tensorboard. "
                "Or leave out run.tensorboard; metrics.jsonl is written in any case."
            ) from None
        self._make = SummaryWriter
        self.folder = Path(folder)
        self._writer: Any = None

    @override
    def on_start(self, training: Training) -> None:
        """Open an event file; events of steps that will be made again are hidden by TensorBoard."""
        self._writer = self._make(str(self.folder), purge_step=training.step + 1)

    @override
    def on_metric(self, training: Training, metric: Metric) -> None:
        """Write one scalar per entry."""
        for name, value in metric.items():
            if name != "step":
                self._writer.add_scalar(name, value, metric["step"])

    @override
    def on_end(self, training: Training) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
