"""The table and the picture of `optimizers.py`: each row against its own base, with intervals, in loss and in steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student


def best_rate(records: list[dict[str, Any]], seeds: Sequence[int]) -> tuple[float, bool]:
    """The learning rate with the lowest mean loss on those seeds, and whether rates on both sides were worse."""
    found: dict[float, list[float]] = {}
    for r in records:
        if r["seed"] in seeds and r["horizon"] == 1:
            found.setdefault(r["lr"], []).append(r["valid"])
    tuning = {lr: mean(values) for lr, values in found.items()}
    best = min(tuning, key=tuning.__getitem__)
    return best, min(tuning) < best < max(tuning)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student)."""
    n = len(values)
    return mean(values), student.ppf(0.975, n - 1) * stdev(values) / math.sqrt(n) if n > 1 else math.inf


def steps_worth(difference: float, at: dict[float, float]) -> float:
    """How many times the steps of the base give that difference: linear in log steps between half, one and two."""
    side = 0.5 if difference > 0 else 2.0
    slope = (at[side] - at[1.0]) / math.log2(side)  # loss per doubling, negative
    return 2 ** (difference / slope)


def table(records: list[dict[str, Any]], tuning: Sequence[int], fresh: Sequence[int]) -> list[dict[str, Any]]:
    """One entry per row, in the order of the trials' file; rows whose fresh seeds are not all there are left out."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        rows.setdefault((record["base"], record["method"]), []).append(record)
    ends: dict[tuple[str, str], dict[int, float]] = {}
    curves: dict[str, dict[float, float]] = {}
    entries = []
    for (base, method), mine in rows.items():
        lr, interior = best_rate(mine, tuning)
        at = [r for r in mine if r["lr"] == lr]
        ends[base, method] = {r["seed"]: r["test"] for r in at if r["horizon"] == 1 and r["seed"] in fresh}
        if len(ends[base, method]) < len(fresh):
            continue
        if method == "alone":
            by = {h: [r["test"] for r in at if r["horizon"] == h and r["seed"] in fresh[:2]] for h in (0.5, 1.0, 2.0)}
            curves[base] = {h: mean(values) for h, values in by.items() if values}
        entries.append({
            "base": base, "method": method, "lr": lr, "interior": interior,
            "trials": sum(r["horizon"] == 1 and r["seed"] in tuning for r in mine),
            "loss": mean(ends[base, method].values()),
            "passes": mean(r["passes"] for r in at), "seconds": mean(r["seconds"] for r in at if r["horizon"] == 1),
            "ratios": next((r["ratios"] for r in at if r.get("ratios")), None),
        })  # fmt: skip
    for entry in entries:
        pairs = [ends[entry["base"], entry["method"]], ends[entry["base"], "alone"]]
        differences = [pairs[0][seed] - pairs[1][seed] for seed in fresh if seed in pairs[1]]
        if entry["method"] == "alone" or len(differences) < len(fresh):
            continue
        entry["difference"], entry["half_width"] = interval(differences)
        if len(curves.get(entry["base"], {})) == 3:
            entry["steps_worth"] = steps_worth(entry["difference"], curves[entry["base"]])
        decided = abs(entry["difference"]) > entry["half_width"]
        entry["verdict"] = "not decided" if not decided else "better" if entry["difference"] < 0 else "worse"
    for entry in entries:
        entry["curve"] = curves.get(entry["base"]) if entry["method"] == "alone" else None
    return sorted(entries, key=lambda e: (e["base"], e["method"] != "alone", e.get("difference", 0)))


def markdown(entries: list[dict[str, Any]]) -> str:
    lines = ["| base | method | best lr | test loss | to the base | steps of the base | passes per step | verdict |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for e in entries:
        against = f"{e['difference']:+.4f} ± {e['half_width']:.4f}" if "difference" in e else ""
        worth = f"{e['steps_worth']:.2f}x" if "steps_worth" in e else ""
        edge = "" if e["interior"] else " (edge)"
        lines.append(
            f"| {e['base']} | {e['method']} | {e['lr']:.2g}{edge} | {e['loss']:.4f} | {against} | {worth} | "
            f"{e['passes']:.2f} | {e.get('verdict', '')} |"
        )
    return "\n".join(lines)


def write_report(
    tier: str, records: list[dict[str, Any]], tuning: Sequence[int], fresh: Sequence[int], folder: Path
) -> None:
    """Print the table, write it as JSON and the differences as a picture."""
    entries = table(records, tuning, fresh)
    machines = sorted({f"{r['machine']}, {r['date']}" for r in records})
    summary = {"tier": tier, "tuning_seeds": list(tuning), "seeds": list(fresh), "machines": machines, "rows": entries}
    (folder / f"optimizers_{tier}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(markdown(entries))
    compared = [e for e in entries if "difference" in e]
    if compared:
        picture(tier, compared, folder / f"optimizers_{tier}.png")


def picture(tier: str, entries: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.4 * len(entries) + 1.2), layout="constrained")
    axes = figure.subplots()
    for k, entry in enumerate(reversed(entries)):
        colour = {"better": "tab:green", "worse": "tab:red"}.get(entry["verdict"], "tab:gray")
        axes.errorbar(entry["difference"], k, xerr=entry["half_width"], fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(entries)), [f"{e['base']} + {e['method']}" for e in reversed(entries)])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"test loss minus the tuned base (nats per byte, {tier})")
    figure.savefig(path, dpi=120)
