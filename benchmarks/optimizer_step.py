"""Time and memory of one optimizer step, each method over its bare base in the same process, 10 million parameters.

    python benchmarks/optimizer_step.py                         # all methods, 1 and 2 threads: about 10 minutes
    python benchmarks/optimizer_step.py --methods IRE --threads 1
    PYTHONPATH=FOLDER python benchmarks/optimizer_step.py       # with pytorch_optimizer and timm from a folder

What is timed is the optimizer alone: gradients are there, closures compute nothing. So the passes through the network
that a method asks for come on top, and stand in the table. The bare base is torch's AdamW with foreach; for IRE also
fused AdamW; for LITE torch's Muon. Both take turns in blocks of 10 steps, which is IRE's interval, so that its mask is
amortised (of one step where that takes seconds), and the fastest block of each counts. Memory is counted in a process
of its own: what the state holds, and how far the resident set rises during steps. Peers do the same job: SAM of
pytorch_optimizer beside ours, AdamW of timm beside torch's.
Writes benchmarks/results/optimizer_step.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BLOCK, ROUNDS = 10, 6
LONG = 1.0  # seconds of a step
OTHER_BASES = {"LITE": "Muon"}
TARGETS = {"time": 1.10, "bytes": 1.25}
IMPLEMENTATIONS = ("foreach", "fused")
PEERS = {"pytorch_optimizer SAM": "pytorch_optimizer", "timm AdamW": "timm.optim"}

Step = Callable[[], Any]


def network() -> Any:
    """Matrices as in a small transformer, 384 to 1536 and back, without biases, so that every method accepts it."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(1024, 384, bias=False)]
    for _ in range(8):
        layers += [nn.ReLU(), nn.Linear(384, 1536, bias=False), nn.ReLU(), nn.Linear(1536, 384, bias=False)]
    layers += [nn.ReLU(), nn.Linear(384, 512, bias=False)]
    return nn.Sequential(*layers)


def prepared(row: str, implementation: str) -> tuple[Step, Any, dict[str, Any]]:
    """A step of one row of the table, its optimizer, and what is known of it."""
    import torch

    from flatwing.optim import METHODS

    model = network()
    gradients = {p: 1e-3 * torch.randn_like(p) for p in model.parameters()}

    def bare(params: Any) -> torch.optim.Optimizer:
        if implementation == "Muon":
            return torch.optim.Muon(params, lr=1e-4)
        return torch.optim.AdamW(params, lr=1e-4, **{implementation: True})

    name, _, variant = row.partition(" ")
    facts: dict[str, Any] = {}
    if row == "bare":
        optimizer = bare(model.parameters())
    elif row in PEERS:
        module = importlib.import_module(PEERS[row])
        if row == "timm AdamW":
            optimizer = module.AdamWLegacy(model.parameters(), lr=1e-4)
        else:
            optimizer = module.SAM(model.parameters(), torch.optim.AdamW, lr=1e-4, **{implementation: True})
            facts["passes"] = 2.0
    else:
        name = name if name in METHODS else row
        settings = json.loads(variant) if variant.startswith("{") else {}
        optimizer = METHODS[name].make(model, bare, **settings)
        facts["passes"] = METHODS[name].passes
        facts["declared_bytes"] = METHODS[name].bytes

    def closure() -> torch.Tensor:
        for p, gradient in gradients.items():
            p.grad = gradient
        return torch.zeros(())

    takes_closure = row in ("SAM", "ASAM", "pytorch_optimizer SAM")
    closure()

    def step() -> Any:
        if row == "pytorch_optimizer SAM":  # its documentation: gradients first, then step(closure)
            closure()
        return optimizer.step(closure) if takes_closure else optimizer.step()

    for _ in range(2):
        step()
    return step, optimizer, facts


def held(optimizer: Any) -> int:
    """Bytes of all tensors of the state."""
    entries = [entry for state in optimizer.state_dict()["state"].values() for entry in state.values()]
    return sum(entry.numel() * entry.element_size() for entry in entries if hasattr(entry, "element_size"))


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; 0 where the system does not tell."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def rise(step: Step) -> int:
    """How far the resident set rises above what it was before, during a block of steps."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        return 0
    before = resident("VmRSS")
    block(step)
    return max(0, resident("VmHWM") - before)


def block(step: Step, length: int = BLOCK) -> float:
    """Seconds per step; fewer steps where one takes long, as no method has an interval there."""
    begin = time.perf_counter()
    for done in range(1, length + 1):
        step()
        if time.perf_counter() - begin > LONG * done:
            return (time.perf_counter() - begin) / done
    return (time.perf_counter() - begin) / length


def child(row: str, implementation: str, threads: int, what: str) -> dict[str, Any]:
    """One row: its time over the bare base's, or its memory."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    step, optimizer, facts = prepared(row, implementation)
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    if what == "memory":
        block(step)  # what is compiled or kept for good is there now
        return {"parameters": count, "held": held(optimizer), "rise": rise(step)}
    base, _, _ = prepared("bare", implementation)
    times = {"row": float("inf"), "bare": float("inf")}
    for _ in range(ROUNDS):
        times["bare"] = min(times["bare"], block(base))
        times["row"] = min(times["row"], block(step))
    return facts | {"milliseconds": 1e3 * times["row"], "bare_milliseconds": 1e3 * times["bare"]}


def call(row: str, implementation: str, threads: int, what: str) -> dict[str, Any]:
    """`child` in a process of its own."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    order = json.dumps([row, implementation, threads, what])
    done = subprocess.run(
        [sys.executable, __file__, "--child", order], env={**os.environ, **limits}, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"skipped": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(methods: list[str]) -> list[str]:
    """The names of all rows: every method, variants of IRE, peers."""
    from flatwing.optim import METHODS

    variants = ['IRE {"mask": "gradient"}', 'IRE {"mask": "random"}']
    every = [*METHODS, *variants, *PEERS]
    return every if not methods else [row for row in every if row.partition(" ")[0] in methods or row in methods]


def measure(row: str, implementation: str, threads: list[int], bare: dict[str, Any]) -> dict[str, Any]:
    """All numbers of one row; ratios and bytes are over the bare base."""
    memory = call(row, implementation, 1, "memory")
    if "skipped" in memory:
        return {"row": row, "base": implementation, **memory}
    count = memory["parameters"]
    found: dict[str, Any] = {
        "row": row, "base": implementation,
        "held_bytes_per_parameter": round((memory["held"] - bare["held"]) / count, 3),
        "peak_bytes_per_parameter": round((memory["held"] + memory["rise"] - bare["held"] - bare["rise"]) / count, 3),
    }  # fmt: skip
    for number in threads:
        timed = call(row, implementation, number, "time")
        if "skipped" in timed:
            return found | timed
        ratio = timed["milliseconds"] / timed["bare_milliseconds"]
        times = {key: round(timed.pop(key), 2) for key in ("milliseconds", "bare_milliseconds")}
        found |= {f"threads_{number}": {"ratio": round(ratio, 3), **times}, **timed}
    return found


def main() -> None:
    """Parse, measure each row in child processes, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="", help="names, with commas; all by default")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--bases", default=",".join(IMPLEMENTATIONS), help="implementations of AdamW")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*json.loads(options.child))))
        return
    threads = [int(number) for number in options.threads.split(",")]
    rows: list[dict[str, Any]] = []
    print(f"{'row':26} {'base':8} {'ratio of time by threads':26} {'bytes held':>10} {'at peak':>8}  passes")
    names = rows_of([name for name in options.methods.split(",") if name])
    for implementation in options.bases.split(","):
        bare = {name: call("bare", name, 1, "memory") for name in (implementation, *OTHER_BASES.values())}
        for row in names if implementation == "foreach" else [name for name in names if name == "IRE"]:
            base = OTHER_BASES.get(row, implementation)
            found = measure(row, base, threads, bare[base])
            rows.append(found)
            print(line(found, threads), flush=True)
            write(rows, threads)  # each time: who interrupts keeps what is there
    print("asked:", TARGETS, "reached:", reached(rows, threads))


def line(row: dict[str, Any], threads: list[int]) -> str:
    """One line of the table."""
    if "skipped" in row:
        return f"{row['row']:26} {row['base']:8} left out: {row['skipped'][:90]}"
    ratios = "  ".join(f"{row[f'threads_{n}']['ratio']:.2f}x on {n}" for n in threads)
    held_, peak = row["held_bytes_per_parameter"], row["peak_bytes_per_parameter"]
    return f"{row['row']:26} {row['base']:8} {ratios:26} {held_:10.2f} {peak:8.2f}  {row.get('passes', 1.0):.2g}"


def write(rows: list[dict[str, Any]], threads: list[int]) -> None:
    """Write everything, with what was asked of IRE and what was reached."""
    import torch

    from flatwing.core import replacing
    from flatwing.core.machine import processor

    record = {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "load_at_the_end": [round(value, 1) for value in os.getloadavg()],
        "versions": {"torch": torch.__version__}, "targets": TARGETS, "reached": reached(rows, threads), "rows": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / "optimizer_step.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


def reached(rows: list[dict[str, Any]], threads: list[int]) -> dict[str, dict[str, float]]:
    """IRE over its base: ratio of time, and bytes per parameter at the peak."""
    ours = [row for row in rows if row["row"] == "IRE" and "skipped" not in row]
    return {
        f"{row['base']}, threads {n}": {
            "time": row[f"threads_{n}"]["ratio"],
            "bytes": row["peak_bytes_per_parameter"],
        }
        for row in ours
        for n in threads
    }


if __name__ == "__main__":
    main()
