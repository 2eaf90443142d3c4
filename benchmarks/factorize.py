"""Time to factorize, certificate included, beside lazylinop's `ksd` and pyfaust's `butterfly` in the same process.

    python benchmarks/factorize.py                    # all sizes, 1 and 2 threads: about ten minutes
    python benchmarks/factorize.py --sizes 64,1024    # some sizes

Prints a table per number of threads and writes benchmarks/results/factorize.json and .png. A ratio above 1 means that
flatwing is faster. The first call of every method is not timed: ours compiles once per dtype and machine (its seconds
are printed and stored), theirs import and allocate. Beside the times stands the time to read the matrix once.
Peers give no certificate; the ratio that counts is the one against the fastest peer whose error is not larger than ours
by more than 0.001 % (errors below 1e-5 in float32 and 1e-13 in float64 count as none), the other one is against the
fastest peer whatever its error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SECONDS = 0.4  # per method and case; at least two or three calls
ORDERS = ("l2r", "r2l", "balanced", "best")


def matrices(n: int) -> dict[str, Any]:
    """Hadamard, and a random dyadic butterfly plus 1 % noise; float64."""
    import torch

    from flatwing import Chain
    from flatwing.structure import transforms

    generator = torch.Generator().manual_seed(n)
    clean = transforms.random_product(Chain.butterfly(n), generator=generator).dense()
    noise = torch.randn(n, n, dtype=torch.float64, generator=generator)
    noisy = clean + 0.01 * noise * clean.norm() / noise.norm()
    return {"hadamard": transforms.hadamard(n).dense(), "noisy butterfly": noisy}


def fastest(run: Callable[[], Any]) -> tuple[float, Any]:
    """Best wall-clock time of repeated runs, in seconds, and the last result."""
    times, begin = [], time.perf_counter()
    # first calls allocate and fill caches, ours and theirs; the best of all calls is not one of them
    run()
    while len(times) < 3 or (time.perf_counter() - begin < SECONDS and len(times) < 200):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
        if len(times) == 2 and time.perf_counter() - begin > 4:  # seconds per call: nothing left to warm up
            break
    return min(times), result


def methods(matrix: Any) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Name -> (what is timed, how its result becomes a dense matrix)."""
    import lazylinop.butterfly as lb
    import pyfaust.fact
    import torch

    from flatwing import Chain, factorize

    n = len(matrix)
    array, chain, theirs = matrix.numpy(), Chain.butterfly(n), lb.Chain.square_dyadic((n, n))
    eye = torch.eye(n, dtype=matrix.dtype)
    table: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {}
    for order in ORDERS:
        table[f"flatwing {order}"] = (lambda o=order: factorize(matrix, chain, order=o), lambda r: r.product.dense())
    for order in ("l2r", "balanced"):
        for ortho in (True, False):
            label = f"lazylinop {order}{'' if ortho else ' no ortho'}"
            table[f"{label} torch"] = (
                lambda o=order, q=ortho: lb.ksd(matrix, theirs, ortho=q, order=o),
                lambda r: r @ eye,
            )
        if n <= 1024:  # several times slower than with torch at every size
            table[f"lazylinop {order} numpy"] = (
                lambda o=order: lb.ksd(array, theirs, order=o),
                lambda r: torch.from_numpy(r.toarray()),
            )
    for kind in ("bbtree", "left", "right") if n <= 256 else ("bbtree",):
        table[f"pyfaust {kind}"] = (
            lambda k=kind: pyfaust.fact.butterfly(array, type=k),
            lambda r: torch.from_numpy(r.toarray()),
        )
    return table


def measure(sizes: list[int], threads: int) -> list[dict[str, Any]]:
    """All cases with this number of threads; runs in a process of its own, so that every library obeys it."""
    import torch

    torch.set_num_threads(threads)
    rows = []
    for n in sizes:
        for name, exact in matrices(n).items():
            for dtype in (torch.float32, torch.float64):
                matrix = exact.to(dtype)
                row: dict[str, Any] = {"n": n, "matrix": name, "dtype": str(dtype)[6:], "threads": threads}
                row["first call, seconds"] = first_call(matrix)
                row["read, seconds"] = fastest(matrix.sum)[0]
                row["methods"] = {}
                for label, (run, dense) in methods(matrix).items():
                    try:
                        seconds, result = fastest(run)
                        error = float((dense(result).double() - matrix).norm() / matrix.double().norm())
                        row["methods"][label] = {"seconds": seconds, "error": error}
                    except Exception as problem:
                        row["methods"][label] = {"failed": f"{type(problem).__name__}: {problem}"[:200]}
                rows.append(summarize(row))
                print(line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def first_call(matrix: Any) -> float:
    """Seconds of the first factorization in this process: loading, or with an empty cache compiling, included."""
    from flatwing import Chain, factorize

    start = time.perf_counter()
    factorize(matrix, Chain.butterfly(len(matrix)))
    return time.perf_counter() - start


def summarize(row: dict[str, Any]) -> dict[str, Any]:
    """Add the fastest peers and the ratios; rounding-level errors count as equal."""
    done = {label: m for label, m in row["methods"].items() if "seconds" in m}
    ours = {label: m for label, m in done.items() if label.startswith("flatwing")}
    peers = {label: m for label, m in done.items() if not label.startswith("flatwing")}
    for m in ours.values():
        allowed = max(m["error"] * (1 + 1e-5), 1e-5 if row["dtype"] == "float32" else 1e-13)
        equal = {p: q for p, q in peers.items() if q["error"] <= allowed}
        for key, group in (("equal_error", equal), ("any_error", peers)):
            if group:
                best = min(group, key=lambda p: group[p]["seconds"])
                m[key] = {"peer": best, "ratio": group[best]["seconds"] / m["seconds"], "error": group[best]["error"]}
    return row


def line(row: dict[str, Any]) -> str:
    """One case, one line."""
    text = f"{row['threads']} thr  n={row['n']:<5}{row['matrix']:<16}{row['dtype']:<8}"
    for order in ORDERS:
        m = row["methods"][f"flatwing {order}"]
        if "failed" in m:
            text += f" | {order:<8} failed: {m['failed']}"
            continue
        equal, anyway = m.get("equal_error"), m.get("any_error")
        text += f" | {order:<8} {m['seconds'] * 1e3:8.2f} ms {m['error']:.2e}"
        text += f" {equal['ratio']:6.2f}x" if equal else "      - "
        text += f" ({anyway['ratio']:.2f}x)" if anyway else ""
    m = row["methods"]["flatwing l2r"]
    text += f" | {m['seconds'] / row['read, seconds']:.0f} reads"
    return text + (f" | {m['equal_error']['peer']}" if "equal_error" in m else " | no peer with equal error")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios against the fastest peer of equal error, by size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, name in zip(panels, ("hadamard", "noisy butterfly"), strict=True):
        for threads, style in ((1, "-"), (2, "--")):
            for dtype, colour in (("float32", "tab:blue"), ("float64", "tab:orange")):
                case = [r for r in rows if (r["matrix"], r["threads"], r["dtype"]) == (name, threads, dtype)]
                points = [(r["n"], r["methods"]["flatwing l2r"].get("equal_error", {}).get("ratio")) for r in case]
                points = [p for p in points if p[1] is not None]
                panel.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=f"{dtype}, {threads} thr")
        panel.axhline(1, color="grey", linewidth=1)
        panel.set(title=name, xscale="log", yscale="log", xlabel="n")
    panels[0].set_ylabel("time of the fastest peer of equal error / ours (l2r)")
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Parse, run each number of threads in a child process, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="64,128,256,512,1024,2048,4096")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.child:
        warnings.simplefilter("ignore")
        out = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # peers print their progress to stdout
        rows = measure(sizes, int(options.threads))
        with os.fdopen(out, "w") as stream:
            json.dump(rows, stream)
        return
    rows = []
    for threads in options.threads.split(","):
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        command = [sys.executable, __file__, "--child", "--sizes", options.sizes, "--threads", threads]
        child = subprocess.run(command, env={**os.environ, **limits}, stdout=subprocess.PIPE, check=True)
        rows += json.loads(child.stdout)
    print("time, error, ratio to the fastest peer of equal error (to the fastest peer of any error)")
    print("\n".join(line(row) for row in rows))
    import importlib.metadata as meta

    from flatwing.core.machine import processor

    record = {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {name: meta.version(name) for name in ("torch", "numpy", "lazylinop", "pyfaust")},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "factorize.json").write_text(json.dumps(record, indent=1))
    draw(rows, RESULTS / "factorize.png")
    print(f"written: {RESULTS / 'factorize.json'} and .png", file=sys.stderr)


if __name__ == "__main__":
    main()
