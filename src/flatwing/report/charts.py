"""Line charts: quality against budget, healing, spectra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

from markupsafe import Markup

from .svg import Scale, decimal, element, padded, picture
from .words import MINUS, Real, significant

WIDTH: Final = 440.0  # of a chart; on a phone it is shown at about 0.8 of its size, so letters are 12 units high
HEIGHT: Final = 250.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 26.0, 40.0
LONGEST: Final = 52  # letters of a label that fit
MOST: Final = 400  # points of one line; more could not be told apart


@final
@dataclass(frozen=True, slots=True)
class Series:
    """One line: `points` are (x, y, standard error or None); `look` is a class of the style sheet."""

    name: str
    look: str
    points: tuple[tuple[float, float, float | None], ...]
    marks: bool = False


@final
@dataclass(frozen=True, slots=True)
class Chart:
    """A picture and the (name, look) pairs of its legend, which is text of the page so that it wraps."""

    svg: Markup
    legend: tuple[tuple[str, str], ...]


def line_chart(
    key: str,
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    y_log: bool = False,
    x_ticks: Sequence[float] | None = None,
    x_text: Callable[[float], str] = significant,
    y_text: Callable[[float], str] | None = None,
    level: tuple[str, float] | None = None,
) -> Chart | None:
    """Draw lines, marks and standard errors; `level` is a horizontal line with a name. `None` without any point.

    Values that are not positive are left out of a logarithmic axis.
    """
    shown = [_drawable(line, x_log, y_log) for line in series]
    shown = [line for line in shown if line.points]
    if not shown:
        return None
    level = level if level is not None and (level[1] > 0 or not y_log) else None
    xs = [x for line in shown for x, _, _ in line.points]
    ys = [y + side * (error or 0) for line in shown for _, y, error in line.points for side in (-1, 1)]
    ys = [y for y in ys if y > 0 or not y_log] + ([level[1]] if level else [])
    x = Scale(*padded(xs, log=x_log, part=0.03), LEFT, WIDTH - RIGHT, log=x_log)
    y = Scale(*padded(ys, log=y_log), HEIGHT - BOTTOM, TOP, log=y_log)
    parts = [*_axes(x, y, x_label, y_label, x_ticks, x_text, y_text or _labels(y.ticks(), y_log))]
    if level:
        parts.append(_line("level", LEFT, y(level[1]), WIDTH - RIGHT, y(level[1])))
    for line in reversed(shown):  # the first one on top
        parts += _draw(line, x, y)
    said = [
        f"{line.name}: {len(line.points)} points from {significant(line.points[0][1], 4)} "
        f"to {significant(line.points[-1][1], 4)}"
        for line in shown
    ]
    if level:
        said.append(f"{level[0]}: {significant(level[1], 4)}")
    description = f"{y_label} against {x_label}. {'; '.join(said)}."
    legend = [(line.name, line.look) for line in shown] + ([(level[0], "level")] if level else [])
    return Chart(picture(key, WIDTH, HEIGHT, title, description, *parts), tuple(legend))


def _drawable(line: Series, x_log: bool, y_log: bool) -> Series:
    points = [p for p in line.points if (p[0] > 0 or not x_log) and (p[1] > 0 or not y_log)]
    if len(points) > MOST:
        points = [points[round(i * (len(points) - 1) / (MOST - 1))] for i in range(MOST)]
    return Series(line.name, line.look, tuple(points), line.marks)


def _labels(ticks: list[float], log: bool) -> Callable[[float], str]:
    """All ticks of a linear axis with the same number of decimals, as few as tell them apart."""
    if any(abs(tick) >= 1e5 or 0 < abs(tick) < 1e-4 for tick in ticks):
        return lambda tick: f"{tick:.0e}".replace("e-0", f"e{MINUS}").replace("e-", f"e{MINUS}").replace("e+0", "e")
    if log:
        return lambda tick: f"{tick:g}"
    places = max((len(f"{tick:.10g}".partition(".")[2]) for tick in ticks), default=0)
    return lambda tick: f"{tick:.{places}f}".replace("-", MINUS)


def _axes(
    x: Scale,
    y: Scale,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks():
        parts.append(_line("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(_text(y_text(tick), LEFT - 7, y(tick) + 4, "end"))
    parts.append(_line("axis", LEFT, bottom, WIDTH - RIGHT, bottom))
    last = -1e9
    for tick in x.ticks() if x_ticks is None else sorted(set(x_ticks)):
        if x(tick) - last < 44:  # two labels would touch
            continue
        last = x(tick)
        parts.append(_line("axis", x(tick), bottom, x(tick), bottom + 4))
        parts.append(_text(x_text(tick), x(tick), bottom + 17, "middle"))
    parts.append(_text(_cut(y_label), 0, 11, "start", "label"))
    parts.append(_text(_cut(x_label), WIDTH - RIGHT, HEIGHT - 4, "end", "label"))
    return parts


def _cut(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def _draw(line: Series, x: Scale, y: Scale) -> list[Markup]:
    places = [(x(px), y(py)) for px, py, _ in line.points]
    path = "M" + "L".join(f"{decimal(px)} {decimal(py)}" for px, py in places)
    parts = [element("path", d=path, class_=f"line {line.look}")] if len(places) > 1 else []
    for px, py, error in line.points:
        if error:
            ends = [y(max(py + side * error, y.low) if y.log else py + side * error) for side in (-1, 1)]
            parts.append(_line(f"whisker {line.look}", x(px), ends[0], x(px), ends[1]))
    if line.marks or len(places) == 1:
        for (px, py), point in zip(places, line.points, strict=True):
            name = element("title", f"{line.name}: {significant(point[1], 4)}")
            parts.append(element("circle", name, cx=px, cy=py, r=3.5, class_=f"mark {line.look}"))
    return parts


def _line(look: str, x1: Real, y1: Real, x2: Real, y2: Real) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=look)


def _text(text: str, x: Real, y: Real, anchor: str, look: str = "tick") -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=look)
