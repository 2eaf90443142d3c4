"""Compressing the two built-in networks, three seeds each, beside other methods on the same data and budget.

    python benchmarks/compress.py [--examples digits,bytelm] [--seeds 0,1,2] [--budgets 0.5,0.25] [--cache FOLDER]

Prints one row per network, seed, budget and method, and writes them with hardware and date to
benchmarks/results/compress.json. Training the byte language model takes about ten minutes per seed; --cache keeps it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from flatwing.compress import compress
from flatwing.core.machine import environment
from flatwing.train import EXAMPLES

RESULTS = Path(__file__).parent / "results" / "compress.json"
KEY = {"digits": "accuracy", "bytelm": "loss"}
HEAL = {"digits": {"heal": 300}, "bytelm": {"heal": 300}}


def measure(example: str, seed: int, budgets: list[float], cache: Path | None) -> list[dict[str, Any]]:
    begin = time.perf_counter()
    file = None if cache is None else cache / f"{example}-{seed}.safetensors"
    trained = EXAMPLES[example](seed, cache=file)
    print(f"{example} seed {seed}: trained or loaded in {time.perf_counter() - begin:.0f} s", flush=True)
    rows = []
    for budget in budgets:
        begin = time.perf_counter()
        done = compress(trained.model, budget=budget, curve=False, timing=0.3, seed=seed, **HEAL[example])
        seconds = time.perf_counter() - begin
        for row in done.result["landmarks"]:
            value = row[KEY[example]]
            rows.append(
                {
                    "example": example,
                    "seed": seed,
                    "budget": budget,
                    "method": row["name"],
                    "metric": KEY[example],
                    "value": value["value"],
                    "stderr": value["stderr"],
                    "bytes": row["bytes"],
                    "parameters": row["parameters"],
                    "flops": row["flops"],
                    "seconds": seconds,
                }
            )
            number = f"{value['value']:.4f} ± {value['stderr']:.4f}"
            print(f"  {budget:5.3f} {row['name']:16} {number} {row['bytes']:>10,} bytes")
        for name in ("before", "compressed"):
            times = ", ".join(f"{t['ms']:.2f} ms at batch {t['batch']}" for t in done.metrics[name]["latency"])
            print(f"        {name}: {times}")
        print(f"        {seconds:.0f} s", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    lines = ["| network | budget | method | " + "metric | mean over seeds | deviation |", "|---" * 6 + "|"]
    groups: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["example"], row["budget"], row["method"]), []).append(row["value"])
    for (example, budget, method), values in groups.items():
        spread = f"{stdev(values):.4f}" if len(values) > 1 else "-"
        lines.append(f"| {example} | {budget} | {method} | {KEY[example]} | {mean(values):.4f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", default="digits,bytelm")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budgets", default="0.5,0.25")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    budgets = [float(b) for b in asked.budgets.split(",")]
    rows: list[dict[str, Any]] = []
    for example in asked.examples.split(","):
        for seed in asked.seeds.split(","):
            rows += measure(example, int(seed), budgets, asked.cache)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
