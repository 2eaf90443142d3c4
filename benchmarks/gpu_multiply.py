"""Time of the Triton kernels beside what torch offers on the same GPU, in the same process.

    python benchmarks/gpu_multiply.py               # pairs, 40 single patterns, training steps: at most nine minutes
    python benchmarks/gpu_multiply.py --quick       # a few of each; nothing is written
    python benchmarks/gpu_multiply.py --check       # no times: only whether results are right, and the same each time
    FLATWING_TUNE=0 compute-sanitizer --tool racecheck --target-processes all python benchmarks/gpu_multiply.py --check

Prints ratios (above 1: flatwing is faster), the time over a copy of the activations, which is the physical limit, and
which targets were met. Writes benchmarks/results/gpu_multiply.json with the hardware, the date, and for each row the
error against float64, whether five runs gave the same bits (where they do not, there is a race), and what explains the
time. Rows that we lose stay in. Needs a CUDA device.

Made to run unattended: every case runs in a worker process, and one that fails, hangs or takes the device down with it
is a row that says so, after which a new worker goes on; the file is written after each row; what there is no time for
is listed. The status is 1 if a result was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_cases
import torch
from gpu_cases import TARGETS, Case
from gpu_compile import compile_all
from gpu_measure import said

from flatwing.core import replacing

RESULTS = Path(__file__).parent / "results"
START, CASE = 120.0, 75.0  # seconds that a worker may take to start, and for one case
COMPILE = 150.0  # seconds; what is not compiled by then is compiled when it is needed
RATIOS = {
    "pair": ("over dense", "over bmm", "over the roofline", "over the model", "time / copy"),
    "step": ("over dense", "over bmm", "over the roofline", "over the model", "weights fused over apart"),
    "single": ("over bmm", "over the best peer", "over the best peer, batch-last", "time / copy"),
}


def hardware() -> dict[str, Any]:
    import triton

    from flatwing.kernels.gpu.device import device_of

    return {
        "gpu": torch.cuda.get_device_name(),
        "rates": str(device_of(0)),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "host": platform.platform(),
        "date": datetime.date.today().isoformat(),
    }


def serve(pipe: Any, greet: Callable[[], Any], measure: Callable[[Case], dict[str, Any]]) -> None:
    """In the worker: answers each case with a row, until the device does not answer any more."""
    pipe.send(greet())
    while True:
        case = pipe.recv()
        try:
            row = measure(case)
        except Exception as error:
            row = {"error": said(error)}
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except Exception as error:  # an address that does not exist: this process can do nothing more with the device
            pipe.send(row | {"error": row.get("error", said(error))})
            return
        pipe.send(row)


class Worker:
    """A process that measures; started when it is needed, and again after a case has ended it."""

    def __init__(self, greet: Callable[[], Any] = hardware, measure: Callable[..., Any] = gpu_cases.measure) -> None:
        self.jobs = (greet, measure)
        self.process: Any = None
        self.pipe: Any = None
        self.greeting: Any = None
        self.context = multiprocessing.get_context("spawn")

    def row(self, case: Case, limit: float = CASE) -> dict[str, Any]:
        """The row of a case, or one that says why there is none."""
        try:
            self._start()
            self.pipe.send(case)
            if not self.pipe.poll(limit):
                raise TimeoutError(f"no result after {limit:.0f} seconds")
            return self.pipe.recv()
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            code = self.stop()
            text = said(error) if isinstance(error, TimeoutError) else f"the worker ended with status {code}"
            return {"error": text}

    def _start(self) -> None:
        if self.process is not None and self.process.is_alive():
            return
        self.stop()
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=serve, args=(theirs, *self.jobs), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(START):
            raise TimeoutError(f"the worker did not start in {START:.0f} seconds")
        self.greeting = self.pipe.recv()

    def stop(self) -> int | None:
        """End the process if there is one; its status."""
        if self.process is None:
            return None
        self.process.join(1.0)
        self.process.kill()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return code


def run(
    cases: list[Case], worker: Worker, seconds: float, write: Callable[[list[Any], Any], None], limit: float = CASE
) -> list[Any]:
    """Rows of all cases; those that would begin too late say so. Three failures to start in a row are the end."""
    rows: list[dict[str, Any]] = []
    begin, failures = time.monotonic(), 0
    for case in cases:
        spent = time.monotonic() - begin
        if spent > seconds or failures == 3:
            found = {"skipped": "no time left" if failures < 3 else "the worker does not start"}
        else:
            found = worker.row(case, min(limit, max(10.0, seconds + 20 - spent)))
            failures = 0 if worker.greeting else failures + 1
        rows.append({**gpu_cases.label(case), **found, "after": round(time.monotonic() - begin, 1)})
        correct = {True: "ok", False: "WRONG", None: f"not checked: {found.get('check')}"}[found.get("correct")]
        state = found.get("error") or found.get("skipped") or correct
        print(
            f"{spent:6.0f} s  {rows[-1]['kind']:>6} {rows[-1]['chain']:>32} {rows[-1]['dtype']:>8} {state}", flush=True
        )
        write(rows, worker.greeting)
    worker.stop()
    return rows


def measured(rows: list[dict[str, Any]], name: str) -> list[float]:
    """The numbers of that name; rows without one, and ratios to something that did not run, are left out."""
    return [row[name] for row in rows if isinstance(row.get(name), float) and row[name] == row[name]]


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target with what was reached; None where nothing was measured. Rows that miss it carry counters."""

    def entry(
        what: str, name: str, chosen: list[dict[str, Any]], how: Callable[[list[float]], float]
    ) -> dict[str, Any]:
        found = measured(chosen, name)
        value = how(found) if found else None
        met = None if value is None else value >= TARGETS[name]
        return {"target": what, "at least": TARGETS[name], "reached": value, "rows": len(found), "met": met}

    pairs = [row for row in rows if row["kind"] == "pair" and row["rows"] == gpu_cases.MANY]
    wide = [row for row in pairs if row["n"] >= 1024]
    single = [row for row in rows if row["kind"] == "single"]
    half, full = ([row for row in single if row["dtype"] == kind] for kind in ("bfloat16", "float32"))
    return [
        entry("fused pair, many rows: worst share of the roofline", "over the roofline", pairs, min),
        entry("fused pair, many rows, n >= 1024: worst over dense", "over dense", wide, min),
        entry("one factor, bfloat16: median over bmm and permutations", "over bmm", half, statistics.median),
        entry("one factor, float32: median over bmm and permutations", "over bmm", full, statistics.median),
        entry("one factor, float32: median over the best peer", "over the best peer", full, statistics.median),
    ]


def show(rows: list[dict[str, Any]]) -> None:
    for kind, names in RATIOS.items():
        for dtype in ("bfloat16", "float32"):
            chosen = [row for row in rows if row["kind"] == kind and row["dtype"] == dtype]
            if not chosen:
                continue
            print(f"\n{kind}, {dtype}\n{'':32}{'rows':>7}" + "".join(f"{name[-24:]:>26}" for name in names))
            for row in chosen:
                numbers = "".join(f"{row[name]:26.2f}" if measured([row], name) else f"{'-':>26}" for name in names)
                print(f"{row['chain']:32}{row['rows']:7}{numbers}  {row.get('error') or row.get('skipped') or ''}")
            middle = (measured(chosen, name) for name in names)
            print(f"{'median':39}" + "".join(f"{statistics.median(m):26.2f}" if m else f"{'-':>26}" for m in middle))
    print()
    for entry in targets(rows):
        value = "not measured" if entry["reached"] is None else f"{entry['reached']:.2f}"
        print(f"{entry['target']}: {value}, wanted {entry['at least']}, {entry['rows']} rows")


def without_nan(value: Any) -> Any:
    """What JSON can hold: a ratio to something that did not run is null."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def save(rows: list[dict[str, Any]], greeting: Any) -> None:
    """Everything so far, as one file."""
    result = without_nan({"hardware": greeting, "targets": targets(rows), "rows": rows})
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / "gpu_multiply.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few sizes and patterns only; nothing is written")
    parser.add_argument("--minutes", type=float, default=8.5, help="cases that would begin later are left out")
    parser.add_argument("--check", action="store_true", help="those of --quick without times; nothing is written")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "this benchmark times CUDA kernels, and torch sees no CUDA device here. Run it on a machine with a GPU."
        )
    from flatwing.kernels.gpu.device import device_of

    begin, small = time.monotonic(), asked.quick or asked.check
    keep = (lambda rows, greeting: None) if small else save
    cases = gpu_cases.cases(small)
    if asked.check:
        rows = run(cases, Worker(measure=gpu_cases.only_checked), 60 * asked.minutes, keep, 60 * asked.minutes)
    else:
        compile_all(cases, device_of(0), COMPILE)
        print(f"compiled in {time.monotonic() - begin:.0f} s", flush=True)
        rows = run(cases, Worker(), 60 * asked.minutes - (time.monotonic() - begin), keep)
    if not asked.check:
        show(rows)
    if any(row.get("correct") is False for row in rows):
        sys.exit("some results were wrong, or not the same twice: see `errors` and `same bits` of their rows")


if __name__ == "__main__":
    main()
