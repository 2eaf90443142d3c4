"""AdamW and Muon, tuned, against the same with methods of flatwing: equal budgets, paired seeds, all trials on file.

    python benchmarks/optimizers.py [--tier t0] [--workers 2] [--rows "AdamW/IRE adam,..."] [--report]

Protocol. Every row (a base and a method) gets the same number of trials to find its learning rate: a grid of factors
of 2 until the best is in the interior, then of sqrt(2), judged by the mean of two seeds on `valid` at the end of the
run (of one seed, the luckiest rate at the edge of stability would win). The rate found is then run on fresh seeds,
with the same initial weights and batches for every row, and judged on `test`; what is reported is the mean difference
to the base over these pairs with a 95 % interval. Other settings are the defaults of the methods: nothing but the
learning rate is tuned. The bases also run half and twice as long, so that a difference can be said in steps.
Stop it at any time: finished trials are in benchmarks/results/ and are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from optimizers_report import write_report
from optimizers_trial import TIERS, Trial, train

from flatwing.core.machine import processor

RESULTS = Path(__file__).parent / "results"
COMMON = ["IRE sampled", "IRE random", "Blockwise published", "Blockwise measured", "GradPower"]
ROWS = {"AdamW": ["alone", "IRE adam", *COMMON], "Muon": ["alone", "IRE gradient", *COMMON, "LITE"]}
RATES, TUNING, FRESH = 5, (101, 102), (1, 2, 3, 4, 5)  # rates that are tried; seeds to try and to report them on
HORIZONS = (0.5, 2.0)
# what multiplies the step is looked for lower: 1 + kappa on most coordinates, the ratios of the blocks
BEGIN = {"IRE": 0.5, "Blockwise": 0.25}


class Trials:
    """The trials of a tier: those on file, and a pool that runs the others."""

    def __init__(self, tier: str, workers: int) -> None:
        self.path = RESULTS / f"optimizers_{tier}.jsonl"
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                record = json.loads(line)
                self.done[record["key"]] = record
        threads = max(1, (os.cpu_count() or 1) // workers) if TIERS[tier].device != "cpu" else 1
        self.pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,))
        self.lock = threading.Lock()

    def run(self, trials: list[Trial]) -> list[dict[str, Any]]:
        """The results of trials, in order."""
        waiting: dict[str, Future[dict[str, Any]]] = {}
        for trial in trials:
            if trial.key not in self.done:
                waiting[trial.key] = self.pool.submit(train, trial)
        for trial in trials:
            if trial.key in waiting:
                self.write(trial, waiting[trial.key].result())
        return [self.done[trial.key] for trial in trials]

    def write(self, trial: Trial, result: dict[str, Any]) -> None:
        record = {"key": trial.key, **result, "machine": machine(trial.tier), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        with self.lock:
            self.done[trial.key] = record
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        print(
            f"{trial.key:48} valid {result['valid']:.4f} test {result['test']:.4f} {result['seconds']:.0f} s",
            flush=True,
        )


def machine(tier: str) -> str:
    return torch.cuda.get_device_name() if TIERS[tier].device == "cuda" else f"{processor()}, 1 thread"


def tune(trials: Trials, tier: str, base: str, method: str) -> float:
    """The best learning rate of a row, found with exactly `RATES` rates on the seeds `TUNING`."""
    factor = next((f for name, f in BEGIN.items() if method.startswith(name)), 1.0)
    first = TIERS[tier].lr[base] * factor
    tried: dict[float, float] = {}

    def try_rates(powers: list[float]) -> None:
        results = trials.run([Trial(tier, base, method, first * 2**power, seed) for power in powers for seed in TUNING])
        for k, power in enumerate(powers):
            tried[power] = mean(r["valid"] for r in results[k * len(TUNING) : (k + 1) * len(TUNING)])

    try_rates([-1.0, 0.0, 1.0])
    while len(tried) < RATES:
        best = min(tried, key=tried.__getitem__)
        if best == min(tried):
            step = [best - 1]
        elif best == max(tried):
            step = [best + 1]
        else:  # interior: the neighbours half a factor away, then the untried rate nearest to the best
            near = [best + d / 2 for d in (1, -1) if best + d / 2 not in tried]
            step = near or [best + d / 4 for d in (1, -1) if best + d / 4 not in tried]
        try_rates(step[: RATES - len(tried)])
    return first * 2 ** min(tried, key=tried.__getitem__)


def run_row(trials: Trials, tier: str, base: str, method: str) -> None:
    lr = tune(trials, tier, base, method)
    horizons = HORIZONS if method == "alone" else ()
    trials.run([Trial(tier, base, method, lr, seed) for seed in FRESH])
    trials.run([Trial(tier, base, method, lr, seed, horizon) for horizon in horizons for seed in FRESH[:2]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="t0")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", help="only these, as BASE/METHOD,BASE/METHOD")
    parser.add_argument("--report", action="store_true", help="only write the table and the picture of what is on file")
    arguments = parser.parse_args()
    rows = [(base, method) for base, methods in ROWS.items() for method in methods]
    if arguments.rows:
        rows = [row for row in rows if "/".join(row) in arguments.rows.split(",")]
    if TIERS[arguments.tier].device == "cuda" and not torch.cuda.is_available() and not arguments.report:
        raise SystemExit(
            f"tier {arguments.tier} needs a GPU. Run it where torch.cuda.is_available(), or take --tier t0."
        )
    trials = Trials(arguments.tier, arguments.workers)
    if not arguments.report:
        with ThreadPoolExecutor(arguments.workers) as rows_at_once, trials.pool:
            for finished in [rows_at_once.submit(run_row, trials, arguments.tier, *row) for row in rows]:
                finished.result()
    write_report(arguments.tier, list(trials.done.values()), TUNING, FRESH, RESULTS)


if __name__ == "__main__":
    main()
