"""Products of sparse factors times a batch on a CPU: flatwing beside everything else, in one process, float32.

    python benchmarks/cpu_multiply.py                                       # all cases: about 25 minutes
    python benchmarks/cpu_multiply.py --quick                               # a minute or two
    python benchmarks/cpu_multiply.py --sizes 1024 --batches 256 --kinds dyadic --threads 1 --modes forward

Contestants: `kernels.multiply` (auto, and each backend by name), `kernels.Packed` (weights packed before the clock
starts, as those of the peers are merged), dense F.linear, pyfaust, lazylinop (every CPU
backend, fused and not), torch.bmm of merged factors (vectors as rows, as columns) and torch.compile of it; as landmarks
a Fourier transform, a Hadamard transform, and a copy of the activations. Each result is compared with the definition in
float64 before it is timed. Times are the best of repeated calls in rounds that all contestants of a case take in turn,
so that a noisy neighbour hits all. Prints ratios (time of the peer / ours: above 1 we are faster), the targets and what
was reached, and writes benchmarks/results/cpu_multiply.json and .png, with the rows that we lose.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
KINDS = ("dyadic", "radix4", "monarch", "rank4")
BUDGET = 0.025  # seconds per contestant and round
HUGE, HUGE_KINDS = 1 << 25, ("dyadic", "monarch")  # numbers in x: beyond, only these kinds (a matter of an hour)


def product_of(kind: str, n: int) -> Any:
    """A random product of this kind, float32."""
    import torch

    from flatwing import Chain
    from flatwing.structure import transforms

    if kind == "radix4":
        radices, rest = [], n
        while rest % 4 == 0:
            radices, rest = [*radices, 4], rest // 4
        chain = Chain.butterfly(n, radices=[*radices, *([rest] if rest > 1 else [])])
    elif kind == "monarch":
        chain = Chain.monarch(n, n, blocks=max(b for b in range(1, int(n**0.5) + 1) if n % b == 0))
    else:
        chain = Chain.butterfly(n, rank=4).reduced() if kind == "rank4" else Chain.butterfly(n)
    generator = torch.Generator().manual_seed(n)
    return transforms.random_product(chain, generator=generator).to(torch.float32)


def contests(n: int, options: dict[str, Any], threads: int) -> Iterator[dict[str, Any]]:
    """All cases of one size; one row per kind and case."""
    import peers
    import torch
    from cpu_multiply_contest import TOO_LONG, Contest, Definition

    products = {kind: product_of(kind, n) for kind in options["kinds"]}
    base = next(iter(products.values()))
    known = n <= 4096  # a larger dense matrix is random: nothing is timed differently, and it need not be computed
    matrix = base.dense().contiguous() if known else torch.randn(n, n)
    operators: dict[str, dict[Any, Any]] = {kind: {} for kind in products}
    groups = {kind: peers.groupings(product) for kind, product in products.items()}
    history: dict[Any, tuple[int, float]] = {}
    for train in [mode == "train" for mode in options["modes"]]:
        for rows in options["batches"]:
            seconds = 2.0 * n * n * rows * (3 if train else 1) / 8e10 / threads
            generator = torch.Generator().manual_seed(rows)
            pick = torch.randperm(rows, generator=generator)[:64]
            case = peers.Case(n, rows, train, threads, pick)
            x = torch.randn(rows, n, generator=generator)
            case.x = {"first": x, "last": x.mT.contiguous()}
            if train:
                g = torch.zeros(rows, n)
                g[pick] = torch.randn(len(pick), n, generator=generator)
                case.g = {"first": g, "last": g.mT.contiguous()}
            contest = Contest(case, history, options["budget"])
            definitions = {kind: Definition(case, product) for kind, product in products.items()}
            chosen = {kind: p for kind, p in products.items() if n * rows <= HUGE or kind in HUGE_KINDS}
            for kind, product in chosen.items():  # ours first: peers change global settings when imported
                contest.enter(kind, peers.flatwing(case, product), definitions[kind])
            for kind, product in chosen.items():
                contest.enter(kind, peers.bmm(case, groups[kind]), definitions[kind])
                contest.enter(kind, peers.lazylinop(case, groups[kind], operators[kind]), definitions[kind])
                contest.enter(kind, peers.pyfaust(case, product, operators[kind]), definitions[kind])
                if kind in options["compiled"] and threads == 1:  # compiling takes seconds per case
                    layouts = [row for row in ("bmm batch-first", "bmm batch-last") if (kind, row) in contest.runs]
                    best = min(layouts, key=lambda row: contest.entries[kind, row]["seconds"], default=None)
                    if best is not None:
                        contest.enter(kind, [peers.compiled(case, contest.runs[kind, best])], definitions[kind])
            dense = matrix if seconds <= TOO_LONG else None
            contest.enter("", peers.landmarks(case, dense, base if known else None), definitions[options["kinds"][0]])
            if dense is None:
                contest.entries["", "F.linear"] = {"skipped": f"about {seconds:.0f} s per call"}
            for g in case.g.values():
                g.normal_()  # in place: only for the comparison were most of its vectors zero
            contest.race()
            shared = {row: e for (kind, row), e in contest.entries.items() if not kind}
            for kind, product in chosen.items():
                methods = {row: e for (k, row), e in contest.entries.items() if k == kind} | shared
                mode = "train" if train else "forward"
                yield {
                    "n": n, "rows": rows, "mode": mode, "threads": threads, "kind": kind, "chain": str(product.chain),
                    "density": product.chain.density, "methods": {row: tidy(e) for row, e in methods.items()},
                }  # fmt: skip
            torch._dynamo.reset()


def tidy(entry: dict[str, Any]) -> dict[str, Any]:
    """What is reported of a contestant: `busy` is CPU time over wall-clock time, far from the threads if disturbed."""
    if "seconds" not in entry:
        return entry
    found = {"seconds": float(f"{entry['seconds']:.4g}"), "calls": int(entry["calls"])}
    found["busy"] = round(entry["cpu"] / max(entry["wall"], 1e-9), 2)
    if entry.get("error") is not None:
        found["error"] = float(f"{entry['error']:.2g}")
    return found | ({"variant": entry["variant"]} if entry.get("variant") else {})


def overhead() -> dict[str, float]:
    """Microseconds of one call for one vector of length 256, eager and without gradients."""
    import torch

    from flatwing import kernels

    product, x = product_of("dyadic", 256), torch.randn(1, 256)
    matrix = product.dense().contiguous()
    packed = kernels.Packed(product)
    runs: dict[str, Callable[[], Any]] = {"F.linear": lambda: torch.nn.functional.linear(x, matrix)}
    runs["flatwing packed"] = lambda: packed(x)
    for name in ("auto", *kernels.list_backends()):
        try:
            kernels.multiply(x, product, backend=name)
        except ValueError:
            continue
        runs[f"flatwing {name}"] = lambda name=name: kernels.multiply(x, product, backend=name)
    best = dict.fromkeys(runs, float("inf"))
    with torch.no_grad():
        for _ in range(20):
            for name, run in runs.items():
                start = time.perf_counter()
                for _ in range(100):
                    run()
                best[name] = min(best[name], (time.perf_counter() - start) / 100)
    return {name: round(1e6 * seconds, 2) for name, seconds in best.items()}


def child(options: dict[str, Any]) -> None:
    """One number of threads, in a process of its own so that every library obeys it: rows as JSON lines to stdout."""
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # peers print their progress
    import torch
    from cpu_multiply_report import line

    threads = options["threads"]
    torch.set_num_threads(threads)
    gc.disable()
    first = {"overhead": overhead()} if threads == 1 else {}
    print(json.dumps(first), file=out, flush=True)
    import lazylinop.butterfly  # noqa: F401  # it sets the number of threads when imported
    import threadpoolctl

    warnings.simplefilter("ignore")  # again: it changes the filters, too
    torch.set_num_threads(threads)
    with threadpoolctl.threadpool_limits(threads):
        for n in options["sizes"]:
            for row in contests(n, options, threads):
                print(json.dumps(row), file=out, flush=True)
                print(line(row), file=sys.stderr, flush=True)
                gc.collect()
    out.close()


def main() -> None:
    """Parse, run each number of threads in a child process, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256,768,1024,4096,16384")
    parser.add_argument("--batches", default="1,16,256,4096")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--modes", default="forward,train")
    parser.add_argument("--compiled", default="dyadic,monarch", help="kinds for torch.compile; '' for none")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds per contestant and round")
    parser.add_argument("--quick", action="store_true", help="few cases, short rounds, no torch.compile")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    if options.quick:
        options.sizes, options.batches, options.kinds, options.threads = "256,1024", "1,16,256", "dyadic,monarch", "1"
        options.compiled, options.budget = "", 0.01
    wanted: dict[str, Any] = {
        name: [int(v) for v in getattr(options, name).split(",")] for name in ("sizes", "batches")
    }
    wanted |= {name: [v for v in getattr(options, name).split(",") if v] for name in ("kinds", "modes", "compiled")}
    start, rows, calling, failed = time.perf_counter(), [], {}, False
    for threads in options.threads.split(","):
        # a wisdom file would tell the planner what it is here to predict
        env = os.environ | dict.fromkeys(LIMITS, threads) | {"FLATWING_WISDOM": os.devnull, "PYTHONWARNINGS": "ignore"}
        argument = json.dumps(wanted | {"threads": int(threads), "budget": options.budget})
        process = subprocess.run([sys.executable, __file__, "--child", argument], env=env, stdout=subprocess.PIPE)
        lines = [json.loads(text) for text in process.stdout.decode().splitlines()]
        calling |= lines[0].get("overhead", {}) if lines else {}
        rows += lines[1:]
        if process.returncode:
            failed = True
            print(f"error: {threads} thread(s): exit {process.returncode}; what it finished is kept", file=sys.stderr)
    if rows:
        report(rows, calling, time.perf_counter() - start, quick=options.quick)
    sys.exit(1 if failed or not rows else 0)


def report(rows: list[dict[str, Any]], calling: dict[str, float], seconds: float, quick: bool) -> None:
    """Print tables and targets, write the record and the picture."""
    from cpu_multiply_report import draw, summary, tables, targets

    from flatwing.core.machine import processor

    print(tables(rows))
    found = targets(rows, calling)
    print(summary(rows, calling, found))
    versions = {p: importlib.metadata.version(p) for p in ("torch", "numpy", "numba", "scipy", "lazylinop", "pyfaust")}
    record = {
        "date": datetime.date.today().isoformat(), "minutes": round(seconds / 60, 1),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "left_out": f"kinds other than {' and '.join(HUGE_KINDS)} where x has more than {HUGE} numbers",
        "versions": versions, "targets": found, "overhead_microseconds": calling, "rows": rows,
    }  # fmt: skip
    name = "cpu_multiply_quick" if quick else "cpu_multiply"
    RESULTS.mkdir(exist_ok=True)
    head = json.dumps({**record, "rows": []}, indent=1).removesuffix("[]\n}")
    body = ",\n".join(json.dumps(row) for row in rows)  # one case per line
    (RESULTS / f"{name}.json").write_text(f"{head}[\n{body}\n]\n}}\n")
    draw(rows, RESULTS / f"{name}.png")
    print(f"written: {RESULTS / name}.json and .png, {seconds / 60:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
