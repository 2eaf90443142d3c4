"""How far from the widest margin descent ends, with and without rescaling: the spread over problems, not one of them.

    python benchmarks/max_margin.py              # 40 random problems and 3 pairs of digits: minutes on 3 processes

A random problem is 40 normal samples of 10 features, labelled by a random direction, largest norm 1; seeds 0 to 39.
It *spans* where the rows that support the widest margin have the rank of the data: the condition of the
theory. Digits are pairs of scikit-learn's 8 x 8 images, without intercept. "error" is |w / |w| - best|, "gap" is
(bound - margin) / bound, both after 40 000 passes over the data (20 000 for digits); best and bound are from Wolfe's
active set, whose own gap is in the file. Writes benchmarks/results/max_margin.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from flatwing.core import replacing
from flatwing.core.machine import processor
from flatwing.optim.margin import margin, widest_margin
from flatwing.optim.prgd import at, normalized_gd, prgd

RESULT = Path(__file__).parent / "results" / "max_margin.json"
SEEDS = range(40)
PAIRS = ((0, 1), (4, 9), (3, 8))
METHODS = ("normalized", "published", "adaptive")


def random_problem(seed: int) -> np.ndarray:
    """Rows y_i x_i, (40, 10)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 10))
    z = np.sign(x @ rng.standard_normal(10))[:, None] * x
    return z / np.linalg.norm(z, axis=1).max()


def digit_pair(a: int, b: int) -> np.ndarray:
    """Rows y_i x_i, (n, 64), of the images of two digits."""
    images, labels = load_digits(return_X_y=True)
    of = (labels == a) | (labels == b)
    z = np.where(labels[of] == a, 1.0, -1.0)[:, None] * images[of]
    return z / np.linalg.norm(z, axis=1).max()


def supporting(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The rows that support the margin of w, up to rounding."""
    scores = z @ w
    return z[scores <= scores.min() * (1 + 1e-9)]


def error(w: np.ndarray, best: np.ndarray) -> float:
    """How far the direction of w is from the best, of norm 1."""
    return float(np.linalg.norm(w / np.linalg.norm(w) - best))


def measure(name: str) -> dict[str, Any]:
    """Errors and gaps of all methods on "random 7" or "digits 4 9"."""
    kind, *numbers = name.split()
    z = random_problem(int(numbers[0])) if kind == "random" else digit_pair(int(numbers[0]), int(numbers[1]))
    steps = 40_000 if kind == "random" else 20_000
    best = widest_margin(z)
    spans = bool(np.linalg.matrix_rank(supporting(z, best.w)) == np.linalg.matrix_rank(z))
    row: dict[str, Any] = {"problem": name, "steps": steps, "spans": spans, "gap_of_best": best.gap}
    runs = {"normalized": normalized_gd(z), "published": prgd(z, schedule="exp"), "adaptive": prgd(z)}
    for method, run in runs.items():
        (w,) = at(run, steps)
        row[method] = {"error": error(w, best.w), "gap": (best.bound - margin(z, w)) / best.bound}
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Least, median and largest error of each method, and how many reach 1e-9."""
    out: dict[str, Any] = {"problems": len(rows)}
    for method in METHODS:
        errors = sorted(row[method]["error"] for row in rows)
        reached = sum(error <= 1e-9 for error in errors)
        out[method] = {"least": errors[0], "median": statistics.median(errors), "largest": errors[-1]}
        out[method] |= {"at_most_1e-9": reached}
    worse = [row["problem"] for row in rows if row["adaptive"]["error"] > row["normalized"]["error"]]
    return out | {"adaptive_worse_than_normalized": worse}


def main() -> None:
    """Measure, print the summary and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=3)
    names = [f"random {seed}" for seed in SEEDS] + [f"digits {a} {b}" for a, b in PAIRS]
    with ProcessPoolExecutor(parser.parse_args().processes) as pool:
        rows = list(pool.map(measure, names))
    of = {
        "spanning": [row for row in rows if row["spans"] and row["problem"].startswith("random")],
        "not spanning": [row for row in rows if not row["spans"] and row["problem"].startswith("random")],
        "digits": [row for row in rows if row["problem"].startswith("digits")],
    }
    summaries = {name: summary(some) for name, some in of.items()}
    print(json.dumps(summaries, indent=1))
    machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": processor()}
    with replacing(RESULT) as path:
        path.write_text(json.dumps({"machine": machine, "summary": summaries, "problems": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
