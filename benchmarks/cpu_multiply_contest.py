"""How `cpu_multiply.py` compares and times: against the definition in float64 first, then in rounds taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import peers
import torch

from flatwing import SparseProduct

ROUNDS = 3
TOO_LONG = 25.0  # seconds per call, predicted
TOO_LARGE = 6e9  # bytes of intermediate results, predicted
SLOW, VERY_SLOW = 0.3, 5.0  # seconds per call: beyond, those far behind are not called again, or none
TOLERANCE = 5e-5  # relative error in float32 beyond which a contestant computes something else


class Definition:
    """Result and gradients of the picked vectors, in float64: what every contestant is compared with."""

    def __init__(self, case: peers.Case, product: Any) -> None:
        self.case, self.product = case, product
        self.known: dict[int, list[Any]] = {}

    def of(self, product: Any) -> list[Any]:
        """The result, or the gradients for x and the factors of this product."""
        case = self.case
        product = product if case.train else self.product  # merging changes the gradients, but no result
        if id(product) not in self.known:
            x = case.x["first"].detach()[case.pick].double()
            factors = [w.detach().double().requires_grad_(case.train) for w in product.factors]
            leaves = [x.requires_grad_(case.train), *factors]
            with torch.set_grad_enabled(case.train):
                y = (SparseProduct(product.chain, factors) @ x.mT).mT
                found = list(torch.autograd.grad(y, leaves, case.g["first"][case.pick].double())) if case.train else [y]
            self.known[id(product)] = [product, *found]  # kept alive, so that its id stays its own
        return self.known[id(product)][1:]

    def error(self, contestant: peers.Contestant, result: Any) -> float | None:
        """Largest relative error of what the contestant returned; None for landmarks."""
        if contestant.product is None:
            return None
        parts = [torch.as_tensor(p).detach() for p in (result if isinstance(result, tuple) else (result,))]
        first = parts[0] if contestant.layout == "first" else parts[0].mT
        found = [first[self.case.pick], *parts[1:]]
        expected = self.of(contestant.product)
        if contestant.row == "F.linear":
            found, expected = found[:1], expected[:1]
        return max(float((f.double() - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True))


def calls(run: Callable[[], Any], seconds: float, most: int = 1000) -> dict[str, float]:
    """Best wall-clock time of repeated calls, and how busy the process was."""
    best, count = float("inf"), 0
    begin, cpu = time.perf_counter(), time.process_time()
    while True:
        start = time.perf_counter()
        result = run()
        end = time.perf_counter()
        del result
        best, count = min(best, end - start), count + 1
        if end - begin >= seconds or count >= most:
            return {"seconds": best, "calls": count, "wall": end - begin, "cpu": time.process_time() - cpu}


class Contest:
    """All contestants of one case (size, batch, mode, threads), for all kinds of products."""

    def __init__(self, case: peers.Case, history: dict[Any, tuple[int, float]], budget: float) -> None:
        self.case, self.history, self.budget = case, history, budget
        self.entries: dict[tuple[str, str], dict[str, Any]] = {}  # (kind, row) -> what is reported
        self.runs: dict[tuple[str, str], Any] = {}

    def enter(self, kind: str, contestants: Iterable[peers.Contestant], definition: Definition) -> None:
        """Check and time each contestant for a few calls; of the variants of a row the fastest stays."""
        iterator = iter(contestants)
        while True:
            try:
                contestant = next(iterator, None)
            except Exception as problem:
                self.entries[kind, "preparation"] = {"failed": f"{type(problem).__name__}: {problem}"[:200]}
                return
            if contestant is None:
                return
            self._enter(kind, contestant, definition)

    def _enter(self, kind: str, contestant: peers.Contestant, definition: Definition) -> None:
        case, key = self.case, (kind, contestant.row)
        best = self.entries.get(key, {}).get("seconds", float("inf"))
        id_ = (kind, contestant.row, contestant.variant if "runs" in contestant.variant else "", case.train)
        rows, before = self.history.get(id_, (1, 0.0))
        predicted = before * case.rows / rows if rows >= 16 else 0.0  # few rows cost as much as one
        size = 4.0 * case.n * case.rows * (4 + (contestant.factors if case.train else 3))
        if predicted > 3 * best and predicted > 0.05:
            return  # another variant of this row is faster
        if contestant.hopeless:
            self.entries.setdefault(key, {"skipped": contestant.hopeless})
            return
        if predicted > TOO_LONG or size > TOO_LARGE:
            why = f"about {predicted:.0f} s per call" if predicted > TOO_LONG else f"about {size / 1e9:.0f} GB"
            self.entries.setdefault(key, {"skipped": why})
            return
        try:
            start = time.perf_counter()
            result = contestant.run()
            first = time.perf_counter() - start
            error = definition.error(contestant, result)
            del result
            if error is not None and not error <= TOLERANCE:
                self.entries[kind, f"{contestant.row} {contestant.variant}".strip()] = {"wrong": error}
                return
            if first > VERY_SLOW:
                entry = {"seconds": first, "calls": 1, "wall": first, "cpu": first}
            else:  # the first call compiles, or fills caches
                entry = calls(contestant.run, self.budget / 2, most=50)
        except Exception as problem:
            self.entries.setdefault(key, {"failed": f"{type(problem).__name__}: {problem}"[:200]})
            return
        self.history[id_] = (case.rows, entry["seconds"])
        if entry["seconds"] < best:
            self.entries[key] = {**entry, "variant": contestant.variant, "error": error}
            self.runs[key] = contestant

    def race(self) -> None:
        """Rounds of all rows in turn."""
        for _ in range(ROUNDS):
            for (kind, row), contestant in self.runs.items():
                entry = self.entries[kind, row]
                leader = min(e["seconds"] for (k, _), e in self.entries.items() if k == kind and "seconds" in e)
                far = entry["seconds"] > 3 * leader and not row.startswith("flatwing auto")
                if entry["seconds"] > SLOW and (far or entry["seconds"] > VERY_SLOW):
                    continue
                if entry["seconds"] < self.budget / 10:
                    contestant.run()  # the others emptied the caches
                more = calls(contestant.run, self.budget)
                entry["seconds"] = min(entry["seconds"], more["seconds"])
                for name in ("calls", "wall", "cpu"):
                    entry[name] += more[name]
