"""What `result.json` of a run folder says, with types: the format that `report` shares with whoever writes runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from .node import Node

FORMAT: Final = "flatwing.run"
VERSION: Final = 1
STAGES: Final = ("before", "compressed", "healed", "quantized")
ACTIONS: Final = ("replaced", "kept", "skipped")


@final
@dataclass(frozen=True, slots=True)
class Value:
    """A measured number and its standard error, where one is known."""

    value: float
    stderr: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Timing:
    """Time of one forward pass in milliseconds with its interval."""

    batch: int
    ms: float
    low: float | None
    high: float | None


@final
@dataclass(frozen=True, slots=True)
class Metrics:
    """One model, measured: `peak_memory` and `bytes` in bytes, `flops` for one sample."""

    loss: Value | None
    perplexity: Value | None
    accuracy: Value | None
    kl: Value | None
    top1: Value | None
    cosine: Value | None
    parameters: int | None
    linear_parameters: int | None
    bytes: int | None
    flops: int | None
    peak_memory: int | None
    latency: tuple[Timing, ...]


@final
@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer: what became of it and what that cost; errors are relative to its output on the data."""

    name: str
    shape: tuple[int, ...]
    action: str
    reason: str | None
    structure: str
    kind: str | None
    chain: tuple[tuple[int, ...], ...] | None
    blocks: tuple[int, ...] | None
    rank: int | None
    parameters: int | None
    dense_parameters: int | None
    error: float | None
    heldout_error: float | None
    lower_bound: float | None
    unweighted_error: float | None
    sensitivity: float | None
    speed: float | None
    spectrum: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class Landmark:
    """Another way to make the same model smaller, measured on the same data."""

    name: str
    loss: Value | None
    accuracy: Value | None
    kl: Value | None
    bytes: int | None
    parameters: int | None
    flops: int | None
    note: str | None


@final
@dataclass(frozen=True, slots=True)
class Point:
    """Quality of one method at one share of the parameters."""

    method: str
    share: float
    value: float
    stderr: float | None


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """Quality against budget; `dense` is the quality of the model before."""

    metric: str
    points: tuple[Point, ...]
    dense: float | None


@final
@dataclass(frozen=True, slots=True)
class Budget:
    """What was asked for: this share of `dense` units, of which `kept` were left."""

    unit: str
    share: float | None
    dense: float | None
    kept: float | None


@final
@dataclass(frozen=True, slots=True)
class Calibration:
    """The data that the layers were fitted to."""

    source: str | None
    samples: int | None
    tokens: int | None
    heldout_tokens: int | None
    anchored: bool | None
    warnings: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Heal:
    """How the model was trained after compression."""

    steps: int | None
    optimizer: str | None
    lr: float | None
    seconds: float | None


@final
@dataclass(frozen=True, slots=True)
class Record:
    """The whole of `result.json`."""

    name: str
    command: str
    task: str
    created: str | None
    flatwing: str | None
    seed: int | None
    summary: tuple[str, ...]
    budget: Budget | None
    calibration: Calibration | None
    heal: Heal | None
    metrics: dict[str, Metrics]
    layers: tuple[Layer, ...]
    landmarks: tuple[Landmark, ...]
    curve: Curve | None
    model: str | None


def read_record(node: Node) -> Record:
    """The record of a parsed `result.json`; raises `ValueError` that names the first value that breaks a rule."""
    if node.value.get("format") != FORMAT:
        raise node.refuse("format", f"{FORMAT!r}, the mark of a run folder")
    if node.require("version") != VERSION:
        raise node.refuse("version", f"{VERSION}, the version that this flatwing reads")
    node.require("layers")
    stages = node.child("metrics")
    if stages is None:
        raise node.refuse("metrics", "an object")
    for stage in STAGES[:2]:
        stages.require(stage)
    files = node.child("files")
    return Record(
        name=node.text("name") or "unnamed",
        command=node.text("command") or "compress",
        task=node.text("task") or "other",
        created=node.text("created"),
        flatwing=node.text("flatwing"),
        seed=node.count("seed"),
        summary=node.texts("summary"),
        budget=_budget(child) if (child := node.child("budget")) is not None else None,
        calibration=_calibration(child) if (child := node.child("calibration")) is not None else None,
        heal=_heal(child) if (child := node.child("heal")) is not None else None,
        metrics={stage: _metrics(child) for stage in STAGES if (child := stages.child(stage)) is not None},
        layers=tuple(_layer(child) for child in node.children("layers")),
        landmarks=tuple(_landmark(child) for child in node.children("landmarks")),
        curve=_curve(child) if (child := node.child("curve")) is not None else None,
        model=files.text("model") if files is not None else None,
    )


def _budget(node: Node) -> Budget:
    share, dense, kept = (node.number(key, least=0) for key in ("share", "dense", "kept"))
    return Budget(node.text("unit") or "parameters", share, dense, kept)


def _calibration(node: Node) -> Calibration:
    samples, tokens, heldout = (node.count(key) for key in ("samples", "tokens", "heldout_tokens"))
    return Calibration(node.text("source"), samples, tokens, heldout, node.flag("anchored"), node.texts("warnings"))


def _heal(node: Node) -> Heal:
    return Heal(node.count("steps"), node.text("optimizer"), node.number("lr"), node.number("seconds", least=0))


def value_of(node: Node | None, key: str) -> Value | None:
    """The measured number under a key, {"value": ..., "stderr": ...}; None where there is none."""
    child = node.child(key) if node is not None else None
    value = child.number("value") if child is not None else None
    return None if child is None or value is None else Value(value, child.number("stderr", least=0))


def _metrics(node: Node) -> Metrics:
    agreement = node.child("agreement")
    return Metrics(
        loss=value_of(node, "loss"),
        perplexity=value_of(node, "perplexity"),
        accuracy=value_of(node, "accuracy"),
        kl=value_of(agreement, "kl"),
        top1=value_of(agreement, "top1"),
        cosine=value_of(agreement, "cosine"),
        parameters=node.count("parameters"),
        linear_parameters=node.count("linear_parameters"),
        bytes=node.count("bytes"),
        flops=node.count("flops"),
        peak_memory=node.count("peak_memory"),
        latency=tuple(timing for child in node.children("latency") if (timing := _timing(child)) is not None),
    )


def _timing(node: Node) -> Timing | None:
    batch, ms = node.count("batch"), node.number("ms", least=0)
    return None if batch is None or not ms else Timing(batch, ms, node.number("low", least=0), node.number("high"))


def _layer(node: Node) -> Layer:
    if node.text("action") not in ACTIONS:
        raise node.refuse("action", f"one of {', '.join(ACTIONS)}")
    patterns = node.value.get("chain")
    chain = None
    if patterns is not None:
        if not isinstance(patterns, list) or not patterns:
            raise node.refuse("chain", "a list of patterns [a, b, c, d]")
        rows = Node({str(i): pattern for i, pattern in enumerate(patterns)}, node.path("chain"))
        chain = tuple(pattern for i in range(len(patterns)) if (pattern := rows.counts(str(i), 4)) is not None)
    node.require("name")
    errors = ("error", "heldout_error", "lower_bound", "unweighted_error", "speed")
    return Layer(
        name=node.text("name") or "",
        shape=node.counts("shape") or (),
        action=node.text("action") or "",
        reason=node.text("reason"),
        structure=node.text("structure") or "dense",
        kind=node.text("kind"),
        chain=chain,
        blocks=node.counts("blocks"),
        rank=node.count("rank"),
        parameters=node.count("parameters"),
        dense_parameters=node.count("dense_parameters"),
        sensitivity=node.number("sensitivity"),
        spectrum=node.numbers("spectrum"),
        **{name: node.number(name, least=0) for name in errors},
    )


def _landmark(node: Node) -> Landmark:
    node.require("name")
    return Landmark(
        name=node.text("name") or "",
        loss=value_of(node, "loss"),
        accuracy=value_of(node, "accuracy"),
        kl=value_of(node, "agreement_kl"),
        bytes=node.count("bytes"),
        parameters=node.count("parameters"),
        flops=node.count("flops"),
        note=node.text("note"),
    )


def _curve(node: Node) -> Curve:
    points = []
    for child in node.children("points"):
        share, value = child.number("share", least=0), child.number("value")
        if share and value is not None:
            points.append(Point(child.text("method") or "flatwing", share, value, child.number("stderr", least=0)))
    dense = node.value.get("dense")
    level = node.child("dense").number("value") if isinstance(dense, dict) else node.number("dense")  # type: ignore[union-attr]
    return Curve(node.text("metric") or "loss", tuple(points), level)
