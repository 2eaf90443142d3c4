"""What became of each layer: a bar per replaced layer, the worst first, and the others by reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from markupsafe import Markup

from .charts import Chart, Series, line_chart
from .record import Layer
from .supports import Pattern, draw_supports, patterns
from .svg import element, linear_ticks
from .words import percent

SHOWN: Final = 12  # bars that stand on the page; the others are folded away
FAMILIES: Final = 6  # structures that are drawn
PAIRS: Final = 2  # spectra at each end


@final
@dataclass(frozen=True, slots=True)
class Bar:
    """A replaced layer and its bar."""

    layer: Layer
    svg: Markup


@final
@dataclass(frozen=True, slots=True)
class Family:
    """A structure, its picture, and how many layers have it."""

    structure: str
    layers: int
    factors: tuple[Pattern, ...]
    svg: Markup


@final
@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a run as the page shows them; `top` is the error at the right end of all bars."""

    bars: tuple[Bar, ...]
    top: float
    strip: Markup | None
    untouched: tuple[tuple[str, str, tuple[str, ...]], ...]
    families: tuple[Family, ...]
    hidden_families: int
    spectra: Chart | None


def view_layers(layers: Sequence[Layer]) -> Layers:
    """Arrange and draw the layers."""
    replaced = sorted(
        (x for x in layers if x.action == "replaced"), key=lambda x: -(x.error if x.error is not None else -1)
    )
    errors = [e for x in replaced for e in (x.error, x.heldout_error, x.lower_bound) if e is not None]
    top = _round_up(max(errors, default=0.0))
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for layer in layers:
        if layer.action != "replaced":
            groups[layer.action, layer.reason or "no reason was recorded"].append(layer.name)
    families = _families(replaced)
    return Layers(
        bars=tuple(Bar(layer, draw_bar(layer, top)) for layer in replaced),
        top=top,
        strip=draw_strip(layers, top) if errors and len(layers) > 1 else None,
        untouched=tuple((action, reason, tuple(names)) for (action, reason), names in groups.items()),
        families=tuple(families[:FAMILIES]),
        hidden_families=max(len(families) - FAMILIES, 0),
        spectra=_spectra(layers),
    )


def draw_bar(layer: Layer, top: float) -> Markup:
    """The error of a layer as a bar, with a tick at the error on held-out data and a mark at the lower bound."""

    def place(value: float) -> float:
        return 100 * min(value / top, 1.0)

    parts = [element("rect", width=100, height=16, class_="track")]
    said = [f"error {percent(layer.error)}"]
    if layer.error is not None:
        parts.append(element("rect", y=2, width=place(layer.error), height=12, class_="fill"))
    if layer.lower_bound:  # 0 says nothing
        x = place(layer.lower_bound)
        parts.append(element("line", x1=x, y1=0, x2=x, y2=16, class_="halo"))
        parts.append(element("line", x1=x, y1=0, x2=x, y2=16, class_="bound"))
        said.append(f"lower bound {percent(layer.lower_bound)}")
    if layer.heldout_error is not None:
        x = place(layer.heldout_error)
        parts.append(element("line", x1=x, y1=0, x2=x, y2=16, class_="heldout"))
        said.append(f"on held-out data {percent(layer.heldout_error)}")
    return element(
        "svg",
        *parts,
        viewBox="0 0 100 16",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{layer.name}: {', '.join(said)}",
        class_="bar",
    )


def draw_strip(layers: Sequence[Layer], top: float) -> Markup:
    """Errors in the order of the network, one column per layer; layers that were not replaced are short and grey."""
    parts = []
    for i, layer in enumerate(layers):
        name = element("title", f"{layer.name}: {layer.structure}, error {percent(layer.error)}")
        if layer.action == "replaced" and layer.error is not None:
            tall = max(48 * min(layer.error / top, 1.0), 1)
            parts.append(element("rect", name, x=i + 0.1, y=48 - tall, width=0.8, height=tall, class_="fill"))
        else:
            parts.append(element("rect", name, x=i + 0.1, y=45, width=0.8, height=3, class_="stub"))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {len(layers)} 48",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"Errors of {len(layers)} layers in the order of the network, from 0 to {percent(top)}",
        class_="strip",
    )


def extremes(layers: Sequence[Layer], each: int) -> tuple[list[Layer], list[Layer]]:
    """The `each` layers whose spectra fall fastest, and slowest: by mean energy relative to the largest value."""
    known = [x for x in layers if len(x.spectrum) > 1 and x.spectrum[0] > 0]
    known.sort(key=lambda x: sum((s / x.spectrum[0]) ** 2 for s in x.spectrum) / len(x.spectrum))
    each = min(each, (len(known) + 1) // 2)
    return known[:each], known[max(len(known) - each, each) :]


def _spectra(layers: Sequence[Layer]) -> Chart | None:
    most, least = extremes(layers, PAIRS)
    lines = [
        Series(layer.name, f"{look}{'' if i == 0 else ' second'}", _relative(layer.spectrum))
        for look, group in (("accent", most), ("bound", list(reversed(least))))
        for i, layer in enumerate(group)
    ]
    return line_chart(
        "chart-spectra",
        "Spectra of the most and least compressible layers",
        lines,
        x_label="index",
        y_label="singular value relative to the largest",
        x_text=lambda tick: f"{tick:.0f}",
        y_log=True,
    )


def _relative(spectrum: Sequence[float]) -> tuple[tuple[float, float, None], ...]:
    floor = 1e-8  # below lies rounding
    return tuple((i + 1.0, s / spectrum[0], None) for i, s in enumerate(spectrum) if s > floor * spectrum[0])


def _round_up(value: float) -> float:
    """The round number at or above `value`, at most 1 unless `value` is."""
    if value <= 0:
        return 1.0
    step = linear_ticks(0, value, 4)[1]
    return float(f"{-(-value // step) * step:.6g}")


def _families(layers: Sequence[Layer]) -> list[Family]:
    """One picture for each structure at each shape, the most frequent first."""
    number = Counter((x.structure, chain) for x in layers if (chain := patterns(x)) is not None)
    return [
        Family(structure, layers_of_it, chain, draw_supports(f"support-{i}", structure, chain))
        for i, ((structure, chain), layers_of_it) in enumerate(number.most_common())
    ]
