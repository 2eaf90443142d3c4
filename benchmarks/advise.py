"""Does `kernels.explain` know when structure beats the dense matrix? 40 tasks, prediction beside measurement.

    python benchmarks/advise.py                # one thread: about a minute
    python benchmarks/advise.py --threads 2
    python benchmarks/advise.py --packed       # weights packed once: 40 forwards

Every task is predicted without any stored measurement, then timed beside F.linear in rounds taken in turn. Prints both
answers to "faster than dense?", the confusion table, how many clear answers (beyond a factor of 1.3) are right, and the
accuracy of the predicted times, and writes benchmarks/results/advise.json (or ..._packed, ..._2_threads). About half of
the tasks are meant to be hard: tiny, or with almost as many parameters as the dense matrix.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MARGIN = 1.3  # of a predicted ratio, within which `advise` says "about equal"
ROUNDS, SECONDS = 5, 0.03  # per contestant and round
NEEDED = 0.9  # share of tasks with the right answer

TASKS = [  # chain, then rows and mode of two tasks
    ("butterfly(48)", (1, "forward"), (16, "train")),
    ("butterfly(64)", (1, "forward"), (4096, "forward")),
    ("butterfly(256)", (1, "forward"), (256, "train")),
    ("butterfly(768)", (16, "forward"), (256, "train")),
    ("butterfly(1024)", (1, "forward"), (16, "train")),
    ("butterfly(4096)", (1, "forward"), (256, "forward")),
    ("butterfly(1024, radices=[4, 4, 4, 4, 4])", (16, "forward"), (256, "train")),
    ("butterfly(1024, rank=4)", (1, "train"), (256, "forward")),
    ("butterfly(384, rank=8)", (16, "forward"), (1024, "train")),
    ("monarch(256, 256, blocks=16)", (16, "forward"), (4096, "train")),
    ("monarch(1024, 1024, blocks=32)", (1, "forward"), (256, "train")),
    ("monarch(4096, 1024, blocks=32)", (1, "train"), (64, "forward")),
    ("monarch(1024, 1024, blocks=32, rank=14)", (16, "forward"), (256, "train")),
    ("low_rank(1024, 1024, rank=16)", (1, "forward"), (256, "train")),
    ("low_rank(1024, 1024, rank=400)", (1, "train"), (256, "forward")),
    ("low_rank(768, 3072, rank=700)", (16, "forward"), (256, "train")),
    ("block_diagonal(1024, 1024, blocks=4)", (1, "forward"), (256, "train")),
    ("block_diagonal(96, 96, blocks=3)", (1, "train"), (256, "forward")),
    ("block_butterfly(1024, block=32)", (16, "forward"), (256, "train")),
    ("kronecker([(8, 8), (8, 8), (8, 8)])", (1, "forward"), (256, "train")),
]


def contestants(chain: Any, rows: int, mode: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Calls of ours (`multiply` or `Packed`) and of F.linear: the result, or gradients for x and all parameters."""
    import torch

    from flatwing import SparseProduct, kernels

    train = mode == "train"
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, chain.shape[1], generator=generator).requires_grad_(train)
    factors = [torch.randn(p.blocks, p.b, p.c, generator=generator) / p.c**0.5 for p in chain]
    product = SparseProduct(chain, [w.requires_grad_(train) for w in factors])
    matrix = product.dense().detach().contiguous().requires_grad_(train)
    g = torch.randn(rows, chain.shape[0], generator=generator)
    error = (kernels.multiply(x, product) - x @ matrix.T).norm() / (x @ matrix.T).norm()
    assert error < 1e-4, f"{chain} with {rows} rows: relative error {error}"
    linear = torch.nn.functional.linear
    if train:
        leaves = (x, *product.factors)
        return (
            lambda: torch.autograd.grad(kernels.multiply(x, product), leaves, g),
            lambda: torch.autograd.grad(linear(x, matrix), (x, matrix), g),
        )
    ours = kernels.Packed(product) if mode == "packed" else partial(kernels.multiply, product=product)
    return lambda: ours(x), lambda: linear(x, matrix)


def measure(runs: tuple[Callable[[], Any], ...]) -> list[float]:
    """Best wall-clock time of each, in rounds taken in turn."""
    best = [math.inf] * len(runs)
    for _ in range(ROUNDS):
        for i, run in enumerate(runs):
            run()
            end = time.perf_counter() + SECONDS
            while True:
                start = time.perf_counter()
                run()
                now = time.perf_counter()
                best[i] = min(best[i], now - start)
                if now > end:
                    break
    return best


def confusion(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How often what was predicted was measured."""
    words = {True: "faster", False: "slower"}
    pairs = [(words[r["predicted"] > 1], words[r["measured"] > 1]) for r in rows]
    return {f"predicted {p}, measured {m}": pairs.count((p, m)) for p in words.values() for m in words.values()}


def spread(values: list[float]) -> float:
    """How far predicted and measured times are apart: the median factor, 1 for exact predictions."""
    factors = sorted(math.exp(abs(math.log(v))) for v in values)
    return factors[len(factors) // 2]


def main() -> None:
    """Predict, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--packed", action="store_true")
    options = parser.parse_args()
    threads = options.threads
    os.environ["FLATWING_WISDOM"] = os.devnull  # measurements of this machine would make the predictions easy
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    import torch

    from flatwing import Chain
    from flatwing.core.machine import processor
    from flatwing.kernels.backend import Task
    from flatwing.kernels.plan import plan_for

    torch.set_num_threads(threads)
    gc.disable()
    rows: list[dict[str, Any]] = []
    print(
        f"{'chain':<42}{'rows':>6} {'mode':>8}{'backend':>8}{'ours, us':>10}{'dense, us':>11}"
        f"{'predicted':>12}{'measured':>10}"
    )
    for text, *cases in TASKS:
        chain = Chain.parse(text)
        for count, mode in cases:
            mode = "packed" if options.packed else mode
            train, packed = mode == "train", mode == "packed"
            plan = plan_for(Task(chain, count, train=train, threads=threads, packed=packed))
            ours, dense = measure(contestants(chain, count, mode))
            row = {
                "chain": text, "shape": list(chain.shape), "density": round(chain.density, 3), "rows": count,
                "mode": mode, "backend": plan.backend, "predicted": plan.speedup, "measured": dense / ours,
                "seconds": {"ours": ours, "dense": dense},
                "predicted_seconds": {"ours": plan.seconds, "dense": plan.dense_seconds},
            }  # fmt: skip
            rows.append(row)
            right = (row["predicted"] > 1) == (row["measured"] > 1)
            print(
                f"{text:<42}{count:>6} {mode:>8}{plan.backend:>8}{1e6 * ours:>10.1f}{1e6 * dense:>11.1f}"
                f"{row['predicted']:>11.2f}x{row['measured']:>9.2f}x{'' if right else '  WRONG'}"
            )
    table = confusion(rows)
    right = table["predicted faster, measured faster"] + table["predicted slower, measured slower"]
    clear = [r for r in rows if max(r["predicted"], 1 / r["predicted"]) > MARGIN]
    sure = sum((r["predicted"] > 1) == (r["measured"] > 1) for r in clear)
    met = right >= NEEDED * len(rows)
    apart = {k: spread([r["seconds"][k] / r["predicted_seconds"][k] for r in rows]) for k in ("ours", "dense")}
    print(f"\n{'':<18}{'measured faster':>16}{'measured slower':>16}")
    for p in ("faster", "slower"):
        print(f"predicted {p:<8}{table[f'predicted {p}, measured faster']:>16}"
              f"{table[f'predicted {p}, measured slower']:>16}")  # fmt: skip
    print(f"right in {right} of {len(rows)}, needed {NEEDED:.0%}: {'met' if met else 'missed'}")
    print(f"of the {len(clear)} clear answers {sure} are right, of the {len(rows) - len(clear)} others {right - sure}")
    print(
        f"predicted and measured times differ by a factor of {apart['ours']:.2f} (ours), {apart['dense']:.2f} (dense)"
    )
    record = {
        "date": datetime.date.today().isoformat(), "threads": threads,
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numba")},
        "right": right, "of": len(rows), "met": met, "clear": len(clear), "clear_right": sure,
        "confusion": table, "median_factor": apart, "rows": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    more = ("_packed" if options.packed else "") + (f"_{threads}_threads" if threads > 1 else "")
    place = RESULTS / f"advise{more}.json"
    place.write_text(json.dumps(record, indent=1))
    print(f"written: {place}", file=sys.stderr)


if __name__ == "__main__":
    main()
