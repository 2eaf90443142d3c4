"""`write`: a run folder in, one HTML file out that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..core import replacing
from . import training, words
from .charts import Chart, Series, line_chart
from .compare import measure_of, view_cards, view_landmarks, view_latency, view_stages
from .folder import Run, read_result, read_run
from .layers import SHOWN, view_layers
from .log import Step
from .magnitudes import magnitudes, opened
from .record import Layer, Point, Record, Value
from .supports import draw_magnitudes, patterns

NAME: Final = "report.html"
SUFFIXES: Final = (".html", ".htm")
PORTRAITS: Final = 3  # layers whose factors are shown
LOOKS: Final = {"flatwing": "accent", "whitened SVD": "muted", "plain SVD": "faint"}
BESIDE: Final = ("whitened SVD", "plain SVD")  # what is cut to the same share


def write(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a run folder as one HTML file without links to anything outside, and return its path.

    `out` is `report.html` in the run folder by default; an older report is replaced. Names and texts of the run are
    escaped, numbers that are NaN or Infinity are shown as not known, optional parts that are missing are left out and
    named. The file appears whole or not at all. Cost: a second, and one pass over the factors of three layers.

    Raises `ValueError` if the folder is not a finished run, a file in it is cut off or malformed, or `out` is not an
    .html file that can be written.

    >>> write("no-such-run")
    Traceback (most recent call last):
    ValueError: 'no-such-run' is not a run folder: there is no such folder. Name the OUT of a flatwing run.
    """
    if out is not None and Path(out).suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"cannot write a report to {str(out)!r}: its suffix is {Path(out).suffix!r}. Rule: .html. "
            f"Write for example {str(Path(out).with_suffix('.html'))!r}."
        )
    result = read_result(run_dir)
    if training.is_training(result):
        text = _fill("training.html", training.context(training.read_training(Path(run_dir), result)))
    else:
        text = render(read_run(run_dir))
    path = Path(run_dir) / NAME if out is None else Path(out)
    with replacing(path) as temporary:
        # a lone surrogate, which JSON can hold, is no character of UTF-8
        temporary.write_bytes(text.encode("utf-8", "replace"))
    return path


def render(run: Run) -> str:
    """The page of a compression as text."""
    return _fill("report.html", context(run))


def _fill(template: str, values: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__ or "flatwing.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("count", "short", "plain", "significant", "percent", "measured", "times", "duration", "breakable")
    environment.filters.update({name: getattr(words, name) for name in names})
    return environment.get_template(template).render(**values)


def context(run: Run) -> dict[str, Any]:
    """What the template shows, already arranged and drawn."""
    record = run.record
    portraits, missing = _portraits(run.model, record.layers)
    return {
        "run": run,
        "record": record,
        "cards": view_cards(record),
        "stages": view_stages(record),
        "layers": view_layers(record.layers),
        "shown": SHOWN,
        "curve": _curve(record),
        "healing": _healing(run.healing),
        "landmarks": view_landmarks(record),
        "races": view_latency(record.metrics),
        "portraits": portraits,
        "measure": measure_of(record),
        "notes": (*run.notes, *([missing] if missing else [])),
    }


def _curve(record: Record) -> Chart | None:
    """Quality against budget; landmarks at the budget of the run stand beside the line."""
    curve, budget = record.curve, record.budget
    if curve is None:
        return None
    points = list(curve.points)
    if budget is not None and budget.share:
        drawn = {p.method for p in points}
        for entry in record.landmarks:
            value: Value | None = {"loss": entry.loss, "accuracy": entry.accuracy, "kl": entry.kl}.get(curve.metric)
            if entry.name in BESIDE and entry.name not in drawn and value is not None:
                points.append(Point(entry.name, budget.share, value.value, value.stderr))
    accuracy = curve.metric == "accuracy"
    scale = 100.0 if accuracy else 1.0
    methods: dict[str, list[tuple[float, float, float | None]]] = {}
    for p in sorted(points, key=lambda p: p.share):
        line = methods.setdefault(p.method, [])
        line.append((100 * p.share, p.value * scale, None if p.stderr is None else p.stderr * scale))
    lines = [Series(name, LOOKS.get(name, "other"), tuple(line), marks=True) for name, line in methods.items()]
    lines.sort(key=lambda line: list(LOOKS).index(line.name) if line.name in LOOKS else len(LOOKS))
    least, most = (end((p.value for p in points), default=0.0) for end in (min, max))
    label = {"accuracy": "accuracy, %", "kl": "KL to the original", "loss": "held-out loss"}
    return line_chart(
        "chart-curve",
        "Quality against budget",
        lines,
        x_label=f"share of the {budget.unit if budget is not None else 'parameters'} kept, %",
        y_label=label.get(curve.metric, curve.metric),
        x_log=True,
        x_ticks=[100 * p.share for p in points],
        x_text=lambda tick: f"{tick:.3g}",
        y_log=not accuracy and least > 0 and most > 30 * least,
        level=None if curve.dense is None else ("dense", curve.dense * scale),
    )


def _healing(steps: Sequence[Step]) -> Chart | None:
    fitted = tuple((float(s.step), s.loss, None) for s in steps if s.loss is not None)
    heldout = tuple((float(s.step), s.heldout, None) for s in steps if s.heldout is not None)
    values = [value for _, value, _ in (*fitted, *heldout)]
    return line_chart(
        "chart-healing",
        "Healing",
        [Series("held-out data", "accent", heldout, marks=len(heldout) < 30), Series("training data", "thin", fitted)],
        x_label="step",
        y_label="distance to the original (distillation loss)",
        x_text=lambda tick: f"{tick:.0f}",
        y_log=bool(values) and min(values) > 0 and max(values) > 30 * min(values),
    )


def _portraits(model: Path | None, layers: Sequence[Layer]) -> tuple[list[tuple[str, Layer, Any]], str | None]:
    """Magnitudes of the layers with the largest, the middle and the smallest error, and why there are none."""
    known = [x for x in layers if x.action == "replaced" and patterns(x) is not None]
    known.sort(key=lambda x: -(x.error or 0.0))
    if not known:
        return [], None
    if model is None:
        return [], "model.safetensors is not in the run folder, so the factors' magnitudes are not shown."
    places = sorted({0, len(known) // 2, len(known) - 1})[:PORTRAITS]
    words_for = (
        ["largest error", "middle", "smallest error"] if len(places) == PORTRAITS else ["largest error", "smallest"]
    )
    shown = []
    try:
        with opened(model) as file:
            for place, what in zip(places, words_for, strict=False):
                images, layer = magnitudes(file, known[place]), known[place]
                if images is not None:
                    svg = draw_magnitudes(f"magnitudes-{place}", layer.name, patterns(layer) or (), images)
                    shown.append((what, layer, svg))
    except ValueError as error:
        return [], str(error)
    return shown, None if shown else f"{model.name} does not hold the factors as plain numbers; they are not shown."
