"""Which model is better, and by how much: stages, other methods, and times, with the rows that lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import Final, final

from markupsafe import Markup

from .record import Landmark, Metrics, Record, Timing, Value
from .svg import Scale, element, padded
from .words import NONE, measured, percent, short, signed

SAME: Final = 1.02  # a file's header may not decide
OURS: Final = "flatwing"


@final
@dataclass(frozen=True, slots=True)
class Measure:
    """A quality: its name, its unit, and which end is good."""

    key: str
    label: str
    higher: bool = False
    scale: float = 1.0
    unit: str = ""

    def text(self, value: Value | None) -> str:
        """The value with its standard error."""
        return measured(value, self.scale, self.unit)

    def change(self, before: Value | None, after: Value | None) -> str | None:
        """What was gained or lost, in words; `None` if one of them is not known."""
        if before is None or after is None:
            return None
        difference = (after.value - before.value) * self.scale
        if self.higher:
            return f"{signed(difference, 2)} points"
        relative = f" ({signed(100 * difference / before.value, 2)} %)" if before.value > 0 else ""
        return f"{signed(difference)}{relative}"

    def better(self, a: Value, b: Value) -> bool:
        """Whether `a` is better than `b`."""
        return a.value > b.value if self.higher else a.value < b.value


LOSS: Final = Measure("loss", "Held-out loss")
ACCURACY: Final = Measure("accuracy", "Accuracy", higher=True, scale=100.0, unit=" %")
KL: Final = Measure("kl", "KL to the original")


def measure_of(record: Record) -> Measure:
    """The quality that matters for the task, among those that were measured."""
    order = (ACCURACY, LOSS, KL) if record.task == "classification" else (LOSS, ACCURACY, KL)
    after = record.metrics["compressed"]
    return next((measure for measure in order if getattr(after, measure.key) is not None), order[0])


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A landmark in its table. `best` names the columns in which it is the best but for the dense model."""

    landmark: Landmark
    ours: bool
    winner: bool
    best: frozenset[str]
    dot: Markup | None


@final
@dataclass(frozen=True, slots=True)
class Landmarks:
    """The table of landmarks: the `measures` that are known, first the one that decides; `verdict` says who wins."""

    rows: tuple[Row, ...]
    measures: tuple[Measure, ...]
    verdict: str


def view_landmarks(record: Record) -> Landmarks | None:
    """Arrange the landmarks; `None` without any.

    The winner has the best quality among all methods whose file is not larger than ours, whichever it is.
    """
    entries = record.landmarks
    if not entries:
        return None
    measure = max(
        (measure_of(record), LOSS, ACCURACY, KL), key=lambda m: sum(_value(e, m) is not None for e in entries)
    )
    methods = [e for e in entries if e.name != "dense"]
    ours = next((e for e in methods if e.name == OURS), None) or next((e for e in methods if _is_ours(e)), None)
    winner, verdict = _winner(methods, ours, measure)
    best = {name: _best(methods, name, measure) for name in ("loss", "accuracy", "kl", "bytes", "flops")}
    values = [value for e in entries if (value := _value(e, measure)) is not None]
    scale = Scale(*padded([v.value for v in values]), 4, 96) if values else None
    rows = tuple(
        Row(
            e,
            _is_ours(e),
            e is winner,
            frozenset(name for name, holders in best.items() if e in holders),
            _dot(_value(e, measure), scale, _is_ours(e)) if scale else None,
        )
        for e in entries
    )
    others = [m for m in (LOSS, ACCURACY, KL) if m is not measure and any(_value(e, m) is not None for e in entries)]
    return Landmarks(rows, (measure, *others), verdict)


def _is_ours(entry: Landmark) -> bool:
    return entry.name == OURS or entry.name.startswith(f"{OURS} ")


def _value(entry: Landmark, measure: Measure) -> Value | None:
    return getattr(entry, measure.key)


def _winner(methods: Sequence[Landmark], ours: Landmark | None, measure: Measure) -> tuple[Landmark | None, str]:
    if ours is None or ours.bytes is None:
        return None, "There is no row of flatwing to compare at the same bytes."
    room = ours.bytes * SAME
    fits = [e for e in methods if e.bytes is not None and e.bytes <= room and _value(e, measure) is not None]
    if not fits:
        return None, f"{measure.label} was not measured for methods of at most {short(ours.bytes, 'B')}."
    sign = -1 if measure.higher else 1
    winner = min(fits, key=lambda e: (sign * _value(e, measure).value, e.bytes))  # type: ignore[union-attr]
    value, own = _value(winner, measure), _value(ours, measure)
    assert value is not None
    against = "" if winner is ours or own is None else f", against {measure.text(own)} for flatwing alone"
    verdict = (
        f"In at most {short(ours.bytes, 'B')}, the size of flatwing without quantization, {winner.name} does best: "
        f"{measure.label[0].lower() + measure.label[1:] if measure is not KL else measure.label} "
        f"{measure.text(value)} in {short(winner.bytes, 'B')}{against}."
    )
    equal = [e.name for e in fits if e is not winner and _same(value, _value(e, measure))]
    if equal:
        verdict += f" Within two standard errors of it: {', '.join(equal)}."
    return winner, verdict + _leanest(methods, ours, measure)


def _leanest(methods: Sequence[Landmark], ours: Landmark, measure: Measure) -> str:
    """Who does best with no more arithmetic than ours, in words."""
    if not ours.flops:
        return ""
    room = ours.flops * SAME
    fits = [e for e in methods if e.flops is not None and e.flops <= room and _value(e, measure) is not None]
    if not fits:
        return ""
    sign = -1 if measure.higher else 1
    winner = min(fits, key=lambda e: (sign * _value(e, measure).value, e.flops))  # type: ignore[union-attr]
    quality = measure.text(_value(winner, measure))
    return f" With at most its {short(ours.flops)} FLOP, {winner.name} does best: {quality}."


def _same(a: Value, b: Value | None) -> bool:
    """Whether two values are within two standard errors of their difference; never, where none are known."""
    if b is None or a.stderr is None or b.stderr is None:
        return False
    return abs(a.value - b.value) <= 2 * hypot(a.stderr, b.stderr)


def _best(methods: Sequence[Landmark], name: str, measure: Measure) -> list[Landmark]:
    values = []
    for entry in methods:
        value = getattr(entry, name)
        value = value.value if isinstance(value, Value) else value
        if value is not None:
            values.append((-value if name == "accuracy" else value, entry))
    least = min((value for value, _ in values), default=None)
    return [entry for value, entry in values if value == least] if len(values) > 1 else []


def _dot(value: Value | None, scale: Scale, ours: bool) -> Markup | None:
    """The value on the scale that all rows share, with its standard error."""
    if value is None:
        return None
    look = "accent" if ours else "muted"
    parts = [element("line", x1=0, y1=8, x2=100, y2=8, class_="grid")]
    if value.stderr:
        ends = [min(max(scale(value.value + side * value.stderr), 0), 100) for side in (-1, 1)]
        parts.append(element("line", x1=ends[0], y1=8, x2=ends[1], y2=8, class_=f"whisker {look}"))
    parts.append(element("circle", cx=scale(value.value), cy=8, r=3.5, class_=f"mark {look}"))
    return element("svg", *parts, viewBox="0 0 100 16", width=100, height=16, aria_hidden="true", class_="dot")


@final
@dataclass(frozen=True, slots=True)
class Race:
    """Times of the dense model and one other at one batch size; `ratio` above 1 means that ours is faster."""

    batch: int
    stage: str
    dense: Timing
    other: Timing
    ratio: float
    low: float | None
    high: float | None
    verdict: str
    svg: Markup


def view_latency(metrics: dict[str, Metrics]) -> tuple[Race, ...]:
    """Races of every stage against the model before, at every batch size both were timed at."""
    dense = {timing.batch: timing for timing in metrics["before"].latency}
    stages = [("structured", metrics["compressed"].latency or _latency(metrics, "healed"))]
    stages.append(("structured + int8", _latency(metrics, "quantized")))
    races = [
        (dense[timing.batch], timing, name) for name, timings in stages for timing in timings if timing.batch in dense
    ]
    largest = max((max(d.ms / t.ms, t.ms / d.ms) for d, t, _ in races), default=1.0)
    return tuple(_race(d, t, name, max(largest * 1.1, 1.5)) for d, t, name in races)


def _latency(metrics: dict[str, Metrics], stage: str) -> tuple[Timing, ...]:
    return metrics[stage].latency if stage in metrics else ()


def _race(dense: Timing, other: Timing, stage: str, largest: float) -> Race:
    ratio = dense.ms / other.ms
    low = dense.low / other.high if dense.low and other.high else None
    high = dense.high / other.low if dense.high and other.low else None
    if low is None or high is None:
        verdict = "faster" if ratio > 1 else "slower" if ratio < 1 else "equal"
    else:
        verdict = "faster" if low > 1 else "slower" if high < 1 else "undecided"
    scale = Scale(1 / largest, largest, 0, 100, log=True)
    start, end = sorted((scale(1.0), scale(ratio)))
    parts = [
        element("rect", x=start, y=3, width=max(end - start, 0.5), height=10, class_=f"race {verdict}"),
        element("line", x1=50, y1=0, x2=50, y2=16, class_="axis"),
    ]
    if low and high:
        ends = [min(max(scale(v), 0), 100) for v in (low, high)]
        parts.append(element("line", x1=ends[0], y1=8, x2=ends[1], y2=8, class_="interval"))
    svg = element("svg", *parts, viewBox="0 0 100 16", width=100, height=16, aria_hidden="true", class_="dot")
    return Race(dense.batch, stage, dense, other, ratio, low, high, verdict, svg)


@final
@dataclass(frozen=True, slots=True)
class Card:
    """One stage of the run: its quality, and `sizes` as (what, value, share of the size before)."""

    title: str
    value: str
    stderr: str
    change: str | None
    sizes: tuple[tuple[str, str, str | None], ...]


TITLES: Final = {"before": "Before", "compressed": "Compressed", "healed": "Healed", "quantized": "With int8"}
SIZES: Final = (
    ("Parameters", "parameters", ""),
    ("in linear layers", "linear_parameters", ""),
    ("File", "bytes", "B"),
    ("FLOP for one sample", "flops", ""),
    ("Peak memory", "peak_memory", "B"),
)
QUALITIES: Final = (
    LOSS,
    Measure("perplexity", "Perplexity"),
    ACCURACY,
    KL,
    Measure("top1", "Same top answer as the original", higher=True, scale=100.0, unit=" %"),
    Measure("cosine", "Cosine to the original outputs", higher=True),
)
ON_CARDS: Final = {"bytes": "File", "flops": "FLOP"}


def view_cards(record: Record) -> tuple[Card, ...]:
    """Before, compressed, healed and with int8, as far as they exist."""
    before, measure = record.metrics["before"], measure_of(record)
    cards = []
    for stage, title in _stages(record):
        now = record.metrics[stage]
        first, _, second = measure.text(getattr(now, measure.key)).partition(" ± ")
        change = None if now is before else measure.change(getattr(before, measure.key), getattr(now, measure.key))
        sizes = [(ON_CARDS[name], *_size(record, stage, name, unit)) for _, name, unit in SIZES if name in ON_CARDS]
        cards.append(Card(title, first, second, change, tuple(size for size in sizes if size[1] != NONE)))
    return tuple(cards)


def view_stages(record: Record) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[tuple[str, str | None], ...]], ...]]:
    """Titles of the stages, and for each measure its name and (value, share of the size before) by stage."""
    stages = _stages(record)
    rows: list[tuple[str, tuple[tuple[str, str | None], ...]]] = [
        (measure.label, tuple((measure.text(getattr(record.metrics[stage], measure.key)), None) for stage, _ in stages))
        for measure in QUALITIES
    ]
    rows += [(label, tuple(_size(record, stage, name, unit) for stage, _ in stages)) for label, name, unit in SIZES]
    known = [row for row in rows if any(value != NONE for value, _ in row[1])]
    return tuple(title for _, title in stages), tuple(known)


def _stages(record: Record) -> list[tuple[str, str]]:
    return [(stage, title) for stage, title in TITLES.items() if stage in record.metrics]


def _size(record: Record, stage: str, name: str, unit: str) -> tuple[str, str | None]:
    value, start = getattr(record.metrics[stage], name), getattr(record.metrics["before"], name)
    return short(value, unit), percent(value / start) if stage != "before" and start and value is not None else None
