"""Sparse factors without a chain, beside pyfaust, scipy's L-BFGS and lazylinop: error and time, in one process.

    python benchmarks/fixed_support.py                 # about four minutes
    python benchmarks/fixed_support.py --only palm     # one part: hierarchical, palm or fixed

* hierarchical: FAuST's scheme with FAuST's own presets (the same sets), on Hadamard matrices, on Hadamard matrices with
  rows and columns in random order, on random sparse products and on handwritten digits (64 x 512, real data).
* palm: the same projections, the same number of sweeps at most, the same order of updates as `palm4msa`. Ours is shown
  with and without its last step, L-BFGS on the entries found.
* fixed: two factors on given supports. `factorize_fixed` beside 20 starts of scipy's L-BFGS on the same values,
  pyfaust's `palm4msa` with these supports, and lazylinop's `ksd` where the supports are a chain.

Errors are relative to the Frobenius norm. Times are the best of several calls, after one that is not timed.
Prints a table and writes benchmarks/results/fixed_support.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatwing import Chain
from flatwing.core import replacing
from flatwing.core.machine import processor
from flatwing.factorize import factorize_fixed, hierarchical, palm
from flatwing.structure import transforms

RESULT = Path(__file__).parent / "results" / "fixed_support.json"
SECONDS = 1.5  # per method and case: as many calls as fit, at least three
SWEEPS = 200
Row = dict[str, Any]
Found = Callable[[], tuple[np.ndarray, int]]  # what is timed: the product, dense, and its number of parameters


def hadamard(n: int) -> np.ndarray:
    return transforms.hadamard(n).dense().numpy()


def sparse_product(n: int, factors: int, k: int, seed: int) -> np.ndarray:
    """Random values on k random entries of each column, normal; `factors` of them multiplied."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(factors):
        part = np.zeros((n, n))
        for column in range(n):
            part[rng.choice(n, k, replace=False), column] = rng.standard_normal(k)
        parts.append(part)
    return np.linalg.multi_dot(parts)


def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return np.ascontiguousarray(load_digits().data[:512].T)


def hierarchical_cases() -> Iterator[tuple[str, np.ndarray, dict[str, Found]]]:
    rng = np.random.default_rng(0)
    for n in (32, 64, 128):
        yield f"hadamard {n}", hadamard(n), hierarchical_methods(hadamard(n), "hadamard", "hadamard")
    A = hadamard(32)[rng.permutation(32)][:, rng.permutation(32)]
    yield "hadamard 32, shuffled", A, hierarchical_methods(A, "hadamard", "hadamard")
    A = sparse_product(32, 4, 2, 0)
    yield "random sparse product 32", A, hierarchical_methods(A, "square(4,3)", None)
    yield "digits 64 x 512", digits(), hierarchical_methods(digits(), "rectangular(4,8,4)", ["rectmat", 4, 8, 4])


def hierarchical_methods(A: np.ndarray, scheme: str, theirs: Any) -> dict[str, Found]:
    import pyfaust.fact

    def ours(polishing: bool) -> tuple[np.ndarray, int]:
        result = hierarchical(A, scheme, polishing=polishing)
        return result.product.dense().numpy(), result.product.nnz

    def faust(backend: int) -> tuple[np.ndarray, int]:
        product = pyfaust.fact.hierarchical(A, theirs if theirs else same(scheme), backend=backend)
        return product.toarray(), product.nnz_sum()

    def same(scheme: str) -> Any:
        from pyfaust.factparams import ParamsHierarchical, StoppingCriterion
        from pyfaust.proj import splincol

        from flatwing.factorize.schemes import parse_scheme

        plan = parse_scheme(scheme, *A.shape)
        sets = [[splincol(A.shape, one.arguments[0]) for one in many] for many in (plan.factors, plan.residuals)]
        stop = StoppingCriterion(num_its=30)
        return ParamsHierarchical(*sets, stop, stop, is_update_way_R2L=True)

    return four_methods(ours, faust)


def four_methods(ours: Callable[[bool], Any], faust: Callable[[int], Any]) -> dict[str, Found]:
    """`ours` by whether it polishes, `faust` by the year of its backend."""
    return {
        "flatwing": lambda: ours(True),
        "flatwing, not polished": lambda: ours(False),
        "pyfaust 2016": lambda: faust(2016),
        "pyfaust 2020": lambda: faust(2020),
    }


def palm_cases() -> Iterator[tuple[str, np.ndarray, dict[str, Found]]]:
    for seed in range(3):
        A = sparse_product(32, 3, 3, seed)
        yield f"random sparse product 32, number {seed}", A, palm_methods(A, [("spcol", 3)] * 3)
    A = np.random.default_rng(0).standard_normal((24, 24))
    yield "normal 24 x 24", A, palm_methods(A, [("splin", 6), ("spcol", 6)])
    A = digits()[:, :64]
    yield "digits 64 x 64", A, palm_methods(A, [("sp", 512), ("sp", 512), ("sp", 512)])
    yield "hadamard 32, five factors", hadamard(32), palm_methods(hadamard(32), [("splincol", 2)] * 5)


def palm_methods(A: np.ndarray, sets: list[tuple[str, int]]) -> dict[str, Found]:
    import pyfaust.fact
    import pyfaust.proj
    from pyfaust.factparams import ParamsPalm4MSA, StoppingCriterion

    text = " ".join(f"{name}({k})" for name, k in sets)

    def ours(polishing: bool) -> tuple[np.ndarray, int]:
        result = palm(A, text, sweeps=SWEEPS, tolerance=0, polishing=polishing)
        return result.product.dense().numpy(), result.product.nnz

    def faust(backend: int) -> tuple[np.ndarray, int]:
        limits = [getattr(pyfaust.proj, name)(A.shape, k) for name, k in sets]
        stop = StoppingCriterion(num_its=SWEEPS)
        product = pyfaust.fact.palm4msa(A, ParamsPalm4MSA(limits, stop, is_update_way_R2L=True), backend=backend)
        return product.toarray(), product.nnz_sum()

    return four_methods(ours, faust)


def fixed_cases() -> Iterator[tuple[str, np.ndarray, dict[str, Found]]]:
    rng = np.random.default_rng(0)
    chain = Chain.parse("monarch(64,64,blocks=8)")
    A = rng.standard_normal((64, 64))
    yield "monarch pair, 64 x 64", A, fixed_methods(A, [pattern.support().numpy() for pattern in chain], chain)
    rows, columns = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
    groups = np.repeat(np.arange(4), 3)
    disjoint = [rows[:, None] == groups, groups[:, None] == columns]
    A = rng.standard_normal((30, 30))
    yield "disjoint classes of rank 3, 30 x 30", A, fixed_methods(A, disjoint)
    # one full class of rank 2, and classes of one row each that can hold anything: the remainder is a rectangle
    extra = np.zeros((30, 6), dtype=bool)
    extra[np.arange(6), np.arange(6)] = True
    full = [np.hstack([np.ones((30, 2), dtype=bool), extra]), np.ones((8, 30), dtype=bool)]
    yield "a class of rank 2 and six free rows, 30 x 30", A, fixed_methods(A, full)
    masks = [rng.random((20, 10)) < 0.4, rng.random((10, 20)) < 0.4]
    A = rng.standard_normal((20, 20))
    yield "random masks, 20 x 20, not tractable", A, fixed_methods(A, masks)
    lower = np.tril(np.ones((10, 10), dtype=bool))
    A = rng.standard_normal((10, 10))
    A[0, 0] = 0  # no LU factors exist, yet the infimum is 0
    yield "LU without pivots, 10 x 10, not tractable", A, fixed_methods(A, [lower, lower.T])


def fixed_methods(A: np.ndarray, masks: list[np.ndarray], chain: Chain | None = None) -> dict[str, Found]:
    import pyfaust.fact
    import pyfaust.proj
    from pyfaust.factparams import ParamsPalm4MSA, StoppingCriterion
    from scipy.optimize import minimize

    S, T = masks
    count = int(S.sum())

    def ours() -> tuple[np.ndarray, int]:
        result = factorize_fixed(A, masks)
        return result.product.dense().numpy(), result.product.nnz

    def unpack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X, Y = np.zeros(S.shape), np.zeros(T.shape)
        X[S], Y[T] = values[:count], values[count:]
        return X, Y

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        X, Y = unpack(values)
        rest = X @ Y - A
        return float(np.square(rest).sum()), 2 * np.concatenate([(rest @ Y.T)[S], (X.T @ rest)[T]])

    def descents() -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(1)
        size = count + int(T.sum())
        options = {"maxiter": 2000, "ftol": 0, "gtol": 1e-12}
        starts = (rng.standard_normal(size) for _ in range(20))
        ends = [minimize(loss, start, jac=True, method="L-BFGS-B", options=options) for start in starts]
        X, Y = unpack(min(ends, key=lambda end: end.fun).x)
        return X @ Y, size

    def faust() -> tuple[np.ndarray, int]:
        limits = [pyfaust.proj.supp(mask.astype(float)) for mask in masks]
        stop = StoppingCriterion(num_its=2000)
        product = pyfaust.fact.palm4msa(A, ParamsPalm4MSA(limits, stop, is_update_way_R2L=True), backend=2020)
        return product.toarray(), product.nnz_sum()

    def lazy() -> tuple[np.ndarray, int]:
        import lazylinop.butterfly as lb

        assert chain is not None
        product = lb.ksd(A, lb.Chain([tuple(pattern) for pattern in chain]))
        return product.toarray(), chain.nnz

    methods: dict[str, Found] = {"flatwing": ours, "L-BFGS, 20 starts": descents, "pyfaust palm4msa": faust}
    return methods | ({"lazylinop ksd": lazy} if chain is not None else {})


@contextmanager
def silence() -> Iterator[None]:
    """Peers write their progress to the standard output of the process."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def measure(A: np.ndarray, methods: dict[str, Found]) -> dict[str, Row]:
    """Error, parameters and best time of every method, or why there is none.

    The methods take turns, so that what else the machine does meets all of them.
    """
    rows: dict[str, Row] = {}
    for label, run in methods.items():
        try:
            with silence():
                dense, parameters = run()
            error = float(np.linalg.norm(dense - A) / np.linalg.norm(A))
            rows[label] = {"error": error, "parameters": int(parameters), "seconds": float("inf"), "calls": 0}
        except Exception as problem:  # a peer that fails is a result, too
            rows[label] = {"failed": f"{type(problem).__name__}: {problem}"[:200]}
    running = {label: row for label, row in rows.items() if "failed" not in row}
    begin = time.perf_counter()
    while time.perf_counter() - begin < SECONDS * len(running) or min(row["calls"] for row in running.values()) < 3:
        for label, row in running.items():
            with silence():
                start = time.perf_counter()
                methods[label]()
                row["seconds"] = min(row["seconds"], time.perf_counter() - start)
            row["calls"] += 1
    return rows


PARTS = {"hierarchical": hierarchical_cases, "palm": palm_cases, "fixed": fixed_cases}


def main() -> None:
    """Run the parts, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    if any(os.environ.get(name) != "1" for name in threads):  # libraries read them when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **threads})
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    content = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in [options.only] if options.only else PARTS:
        rows = []
        for name, A, methods in PARTS[part]():
            print(f"{part}: {name}")
            for label, row in measure(A, methods).items():
                rows.append({"case": name, "method": label, **row})
                what = row.get("failed") or f"error {row['error']:9.3e} {row['parameters']:6d} {row['seconds']:9.4f} s"
                print(f"    {label:<24}{what}", flush=True)
        content[part] = rows
    content["date"] = datetime.date.today().isoformat()
    content["machine"] = {"processor": processor(), "cores": os.cpu_count(), "threads": 1}
    content["versions"] = {
        name: importlib.metadata.version(name) for name in ("torch", "pyfaust", "lazylinop", "scipy")
    }
    with replacing(options.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
