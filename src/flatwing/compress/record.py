"""The record of a run: result.json for the report, and the other files of the output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from ..core import replacing
from ..core.machine import __version__, environment
from ..report import write as write_report
from .choice import BOTH, DENSIFIED, better_choice
from .layerwise import LayerResult
from .pipeline import Pipeline
from .plan import LayerPlan
from .save import card, save_model, write_json
from .summary import summarize

REFITTED = 1e-6  # relative change of a matrix above which a layer that stayed dense is another one than before


def make_record(
    pipeline: Pipeline,
    share: float,
    plans: list[LayerPlan],
    results: list[LayerResult] | None,
    metrics: dict[str, Any],
    rate: float,
) -> dict[str, Any]:
    """result.json: everything that the report shows.

    `error`, `heldout_error` and `lower_bound` of a layer are against the target that it was fitted to, which in an
    anchored run makes up for the errors before it; `unweighted_error` is against the layer's own matrix. The summary
    is about the network that is written: rounded to int8 or multiplied out where that was asked for.
    """
    options, source, data = pipeline.options, pipeline.source, pipeline.data
    done = {result.name: result for result in results or ()}
    layers = [_row(plan, done.get(plan.name)) for plan in plans]
    layers += [_skipped(name, why) for name, why in pipeline.skipped.items()]
    kept = sum(pipeline.cost(plan.name, plan.candidate) for plan in plans)
    scarce = [(r.samples, p.shape[1]) for p in plans if (r := done.get(p.name)) and 0 < r.samples < 10 * p.shape[1]]
    calibration = data.describe(options.anchored, [_scarce(*min(scarce, key=lambda s: s[0] / s[1]))] if scarce else [])
    record: dict[str, Any] = {
        "format": "flatwing.run",
        "version": 1,
        "command": "compress",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "flatwing": __version__,
        "name": source.name,
        "task": source.task,
        "seed": options.seed,
        "dry_run": results is None,
        "summary": [],
        "budget": {
            "unit": options.unit,
            "share": kept / pipeline.dense_cost,
            "asked": share,
            "dense": pipeline.dense_cost,
            "kept": kept,
        },
        "calibration": calibration,
        "metrics": metrics,
        "layers": layers,
        "landmarks": [],
        "curve": None,
        "heal": None,
        "files": {},
    }
    if results is None:
        return record
    last = metrics["healed"] or metrics["compressed"]
    rows = [_landmark("dense", metrics["before"], None), *pipeline.compared(kept / pipeline.dense_cost)]
    own = [_landmark("flatwing", metrics["compressed"], None)]
    if metrics["healed"] is not None:
        own.append(_landmark("flatwing + heal", metrics["healed"], f"{options.heal} steps of distillation"))
    if metrics["quantized"] is not None:
        own.append(_landmark(BOTH, metrics["quantized"], "structure, healed if asked, then int8"))
    written = None
    if options.quantize is not None:
        written = BOTH
    elif options.densify:
        written = DENSIFIED
        dense = {key: metrics["before"][key] for key in ("bytes", "parameters", "flops")}
        own.append(_landmark(DENSIFIED, {**last, **dense}, "as it is written: an ordinary dense checkpoint"))
    record["landmarks"] = [*rows, *own]
    record["curve"] = pipeline.curve(kept / pipeline.dense_cost, metrics["compressed"])
    if metrics["healed"] is not None:
        settings = {name: getattr(options, name) for name in ("optimizer", "match", "precision")}
        seconds = pipeline.seconds.get("healed")
        record["heal"] = {"steps": options.heal, "lr": rate, "seconds": seconds, **settings}
    better = better_choice(record["landmarks"], options.unit, written) if share < 1 else None
    record["summary"] = summarize(
        source.name,
        source.task,
        kept / pipeline.dense_cost,
        options.unit,
        {**metrics, "quantized": metrics["quantized"] if written == BOTH else None},
        layers,
        record["landmarks"],
        better,
        calibration["warnings"],
        options.heal,
        options.densify,
    )
    return record


def _scarce(samples: int, inputs: int) -> str:
    return (
        f"Calibration had {samples:,} vectors for a layer of {inputs:,} inputs, fewer than 10 per input: give "
        "more data, or expect larger errors on other data."
    )


def _row(plan: LayerPlan, result: LayerResult | None) -> dict[str, Any]:
    candidate = plan.candidate
    chain = None if candidate is None or candidate.chain is None else [list(pattern) for pattern in candidate.chain]
    kind = "dense" if candidate is None else "blast" if chain is None else "chain"
    kept = "worth its size"
    if result is not None and result.unweighted_error > REFITTED:
        kept += ", re-fitted to its new inputs"
    return {
        "name": plan.name,
        "shape": list(plan.shape),
        "action": "kept" if candidate is None else "replaced",
        "reason": kept if candidate is None else None,
        "structure": plan.structure,
        "kind": kind,
        "chain": chain,
        "blocks": None if candidate is None else list(candidate.blocks),
        "rank": None if candidate is None else candidate.rank,
        "parameters": plan.parameters,
        "dense_parameters": plan.shape[0] * plan.shape[1],
        "predicted_error": plan.error,
        "error": plan.error if result is None else result.error,
        "heldout_error": None if result is None else _number(result.heldout_error),
        "lower_bound": plan.bound if result is None else result.lower_bound,
        "unweighted_error": None if result is None else result.unweighted_error,
        "trust": None if result is None else result.trust,
        "sensitivity": plan.sensitivity,
        "speed": None,
        "spectrum": list(plan.spectrum),
    }


def _skipped(name: str, why: str) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("chain", "blocks", "rank", "predicted_error", "error", "heldout_error", "lower_bound", "unweighted_error",
         "trust", "sensitivity", "speed", "spectrum", "parameters", "dense_parameters")
    )  # fmt: skip
    return {
        "name": name,
        "shape": None,
        "action": "skipped",
        "reason": why,
        "structure": "dense",
        "kind": "dense",
        **empty,
    }


def _landmark(name: str, metrics: dict[str, Any], note: str | None) -> dict[str, Any]:
    agreement = metrics["agreement"] or {}
    sizes = {key: metrics[key] for key in ("bytes", "parameters", "flops")}
    quality = {"loss": metrics["loss"], "accuracy": metrics["accuracy"], "agreement_kl": agreement.get("kl")}
    return {"name": name, **quality, **sizes, "note": note}


def _number(value: float) -> float | None:
    return value if value == value else None


def write_output(
    pipeline: Pipeline, model: nn.Module, result: dict[str, Any], steps: list[dict[str, Any]], record: dict[str, Any]
) -> None:
    """Put the output together in the work folder."""
    work, options = pipeline.work, pipeline.options
    assert work is not None
    folder = work.begin_output()
    certificates = {
        row["name"]: {
            key: row[key] for key in ("structure", "error", "heldout_error", "lower_bound", "unweighted_error")
        }
        for row in result["layers"]
        if row["action"] == "replaced"
    }
    description = save_model(
        folder,
        model,
        pipeline.source,
        pipeline.layers,
        certificates,
        quantize=options.quantize,
        densify=options.densify,
    )
    files = sorted(path.name for path in folder.iterdir())
    result["files"] = {"model": next(name for name in files if name.startswith("model")), "report": "report.html"}
    lines = [{"stage": name, "seconds": seconds} for name, seconds in pipeline.seconds.items()]
    lines += [{"stage": "heal", "heldout": step.get("score"), **step} for step in steps]
    write_lines(folder / "metrics.jsonl", lines)
    write_json(folder / "environment.json", environment())
    write_toml(folder / "config.toml", record)
    write_json(folder / "result.json", result)
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(
            card(pipeline.source.name, result["summary"], description, _table(result)), encoding="utf-8"
        )
    write_report(folder)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_toml(path: Path, options: Mapping[str, Any]) -> None:
    """The options of a run as TOML; what is None is left out."""
    lines = []
    for key, value in options.items():
        if value is not None:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(result: Mapping[str, Any]) -> str:
    """Before, compressed, healed as Markdown."""
    stages = [(name, m) for name, m in result["metrics"].items() if m is not None]
    rows = ["| | " + " | ".join(name for name, _ in stages) + " |", "|---" * (len(stages) + 1) + "|"]
    for key in ("loss", "perplexity", "accuracy"):
        if all(m.get(key) for _, m in stages):
            rows.append(f"| {key} | " + " | ".join(f"{m[key]['value']:.4f}" for _, m in stages) + " |")
    for key in ("parameters", "linear_parameters", "bytes", "flops"):
        rows.append(f"| {key.replace('_', ' ')} | " + " | ".join(f"{m[key]:,}" for _, m in stages) + " |")
    return "\n".join(rows)
