"""Plan: which backend multiplies, which neighbours are merged first, how long it should take, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, final

import torch
from jaxtyping import Num

from ..structure import Chain, SparseProduct
from . import cost, wisdom
from .backend import BACKENDS, NARROW, Backend, Layout, Runner, Task

NEVER_CHOSEN = ("reference",)  # runs when it is named: it is what the others are compared with


@final
@dataclass(frozen=True)
class Plan:
    """What `multiply` does for a task; immutable. Times are seconds per call.

    `merged` are the splits (1-based, between the factors s-1 and s) whose two sides are multiplied together first, in
    every call: exact, and differentiable. `times` holds the predicted or measured time of each backend that could run.
    """

    task: Task
    backend: str
    merged: tuple[int, ...]
    seconds: float
    dense_seconds: float
    reason: str
    times: tuple[tuple[str, float], ...]
    skipped: tuple[tuple[str, str], ...]
    measured: bool

    @property
    def speedup(self) -> float:
        """Time of `x @ W.T` with the dense matrix over the time of this plan; above 1 structure wins."""
        return self.dense_seconds / self.seconds

    @property
    def chain(self) -> Chain:
        """The chain that runs: that of the task with the merged neighbours replaced by their product."""
        return _merged_chain(self.task.chain, self.merged)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        task = self.task
        return {
            "backend": self.backend,
            "chain": str(task.chain),
            "batch": task.rows,
            "dtype": cost.dtype_name(task.dtype),
            "device": task.device,
            "layout": task.layout,
            "train": task.train,
            "packed": task.packed,
            "threads": task.threads,
            "merged": list(self.merged),
            "seconds": self.seconds,
            "dense_seconds": self.dense_seconds,
            "speedup": self.speedup,
            "measured": self.measured,
            "reason": self.reason,
            "times": dict(self.times),
            "skipped": dict(self.skipped),
        }

    def __str__(self) -> str:
        what = "training step" if self.task.train else "packed forward" if self.task.packed else "forward"
        source = "measured" if self.measured else "predicted"
        lines = [
            f"{self.backend}: {1e6 * self.seconds:.3g} us {source} for a {what} with up to {self.task.rows} rows of "
            f"{cost.dtype_name(self.task.dtype)} on {self.task.device}, {self.speedup:.2g}x the speed of F.linear with "
            f"a dense matrix ({1e6 * self.dense_seconds:.3g} us); {self.reason}"
        ]
        if self.merged:
            lines.append(f"  merged {'once' if self.task.packed else 'first'}, exactly: {self.chain}")
        lines += [f"  {name}: {1e6 * t:.3g} us" for name, t in self.times if name != self.backend]
        lines += [f"  {name} skipped: {why}" for name, why in self.skipped]
        return "\n".join(lines)


def plan_of(chain: Chain, x: torch.Tensor, last: bool, train: bool, backend: str, products: int = 1) -> Plan:
    """The plan for multiplying x (rows, n), or (n, rows) if `last`; rows are rounded up to a power of two.

    This is on the way of every multiplication: about a microsecond.
    """
    rows, threads = x.shape[1 if last else 0], torch.get_num_threads()
    return _plan_of(
        chain, wisdom.rounded(rows), x.dtype, x.device.type, last, train, threads, products, backend, wisdom.version()
    )


@lru_cache(maxsize=4096)
def _plan_of(
    chain: Chain,
    rows: int,
    dtype: torch.dtype,
    device: str,
    last: bool,
    train: bool,
    threads: int,
    products: int,
    backend: str,
    version: int,
) -> Plan:
    layout: Layout = "batch-last" if last else "batch-first"
    return plan_for(Task(chain, rows, dtype, device, layout, train, threads, products), backend)


def runner_of(chain: Chain, x: torch.Tensor, backend: str) -> Runner | None:
    """What multiplies x (rows, n) on the CPU if nothing is to be recorded; None where the plan merges or is native.

    This is on the way of every small multiplication: half a microsecond.
    """
    return _runner_of(chain, wisdom.rounded(x.shape[0]), x.dtype, torch.get_num_threads(), backend, wisdom.version())


@lru_cache(maxsize=4096)
def _runner_of(chain: Chain, rows: int, dtype: torch.dtype, threads: int, backend: str, version: int) -> Runner | None:
    plan = _plan_of(chain, rows, dtype, "cpu", False, False, threads, 1, backend, version)
    chosen = BACKENDS[plan.backend]
    return None if plan.merged or chosen.native else chosen.runner(plan.task)


def plan_for(task: Task, backend: str = "auto") -> Plan:
    """The plan that `multiply` follows for this task, its rows rounded up to a power of two.

    Raises `ValueError` for an unknown backend, or a named one that does not support the task, with its reason.

    >>> plan_for(Task(Chain.butterfly(1024), rows=256), "bmm").backend
    'bmm'
    """
    rows = wisdom.rounded(task.rows)
    return _plan_for(task if rows == task.rows else replace(task, rows=rows), backend, wisdom.version())


@lru_cache(maxsize=4096)
def _plan_for(task: Task, backend: str, _: int) -> Plan:
    known = wisdom.lookup(task)
    names = list(BACKENDS) if backend == "auto" else [backend]
    times: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name in names:
        why = BACKENDS[name].unsupported_because(task)
        if why is None and backend == "auto" and name in NEVER_CHOSEN:
            why = "the definition, for comparison: runs when it is named"
        if why is None and backend == "auto" and name == "dense" and task.dtype in NARROW:
            why = f"the matrix may leave the range of {cost.dtype_name(task.dtype)}: runs when it is named"
        if why is not None:
            skipped[name] = why
        else:
            times[name] = known.get(name, 0.0) or _prediction(BACKENDS[name], task)
    chosen = backend
    while times:
        chosen = min(times, key=lambda name: times[name])
        why = BACKENDS[chosen].fails_because(task)  # of all that could run, only what is chosen compiles
        if why is None:
            break
        skipped[chosen] = why
        del times[chosen]
    if backend != "auto":
        if backend in skipped:
            usable = [n for n in BACKENDS if BACKENDS[n].unsupported_because(task) is None]
            raise ValueError(
                f"backend {backend!r} cannot multiply this: {skipped[backend].removesuffix('.')}. "
                f"Rule: a backend that supports it, here {', '.join(usable)}, or backend='auto'."
            )
        reason = "asked for by name"
    else:
        reason = "the shortest time of all backends that can run" if len(times) > 1 else "the only one that can run"
    merged = BACKENDS[chosen].merges(task)
    dense = known.get("F.linear", 0.0) or cost.dense_seconds(task)
    ordered = tuple(sorted(times.items(), key=lambda item: item[1]))
    return Plan(task, chosen, merged, times[chosen], dense, reason, ordered, tuple(skipped.items()), chosen in known)


def _prediction(backend: Backend, task: Task) -> float:
    calling, merged = cost.overhead_seconds(task, backend.native), backend.merges(task)
    if not merged:
        return calling + backend.seconds(task)
    running = backend.seconds(replace(task, chain=_merged_chain(task.chain, merged)))
    return calling + running + (0.0 if task.packed else cost.merging_seconds(task, merged))


@lru_cache(maxsize=1024)
def _merged_chain(chain: Chain, merged: tuple[int, ...]) -> Chain:
    if not merged:
        return chain
    if chain.chainable:
        return chain.merged(merged)
    return chain.T.merged(len(chain) - s for s in merged).T


def merged_factors(chain: Chain, factors: Any, merged: tuple[int, ...]) -> tuple[Num[torch.Tensor, "_ _ _"], ...]:
    """The factors with the neighbours at these splits multiplied together, in the order of `SparseProduct.merge`."""
    product = SparseProduct(chain, factors)
    for s in sorted(merged, reverse=True):
        product = product.merge(s - 1, s)
    return product.factors
