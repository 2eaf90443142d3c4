"""advise: will this structure be faster than a dense matrix, here, for these batches? An honest answer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, final

import torch

from ..structure import Chain
from . import candidates, wisdom
from .backend import Task
from .cost import dtype_name
from .plan import Plan, plan_for
from .race import DENSE, Timing, race

BATCHES = (1, 16, 256, 4096)
GRID = tuple(1 << i for i in range(17))  # where the break-even batch is looked for
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
DEVICES = ("cpu", "cuda")

Progress = Callable[[str, int, int], object]


@final
@dataclass(frozen=True)
class Row:
    """The answer for one batch. Times are seconds per call, the interval is that of the quartiles if measured now."""

    batch: int
    backend: str
    seconds: float
    dense_seconds: float
    measured: bool
    interval: tuple[float, float] | None
    dense_interval: tuple[float, float] | None
    times: tuple[tuple[str, float], ...]

    @property
    def speedup(self) -> float:
        """Time of the dense layer over that of the chain; above 1 the chain wins."""
        return self.dense_seconds / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "batch": self.batch,
            "backend": self.backend,
            "seconds": self.seconds,
            "interval": self.interval and list(self.interval),
            "dense_seconds": self.dense_seconds,
            "dense_interval": self.dense_interval and list(self.dense_interval),
            "speedup": self.speedup,
            "measured": self.measured,
            "times": dict(self.times),
        }


@final
@dataclass(frozen=True)
class Alternative:
    """Another chain within the budget: the text for `Chain.parse`, its parameters, its predicted speed-ups by batch."""

    spec: str
    parameters: int
    speedups: tuple[tuple[int, float], ...]

    @property
    def speedup(self) -> float:
        """Geometric mean over the batches."""
        return exp(sum(log(value) for _, value in self.speedups) / len(self.speedups))

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        batches = {str(batch): value for batch, value in self.speedups}
        return {"spec": self.spec, "parameters": self.parameters, "speedup": self.speedup, "speedups": batches}


@final
@dataclass(frozen=True)
class Advice:
    """Whether a chain is faster than the dense matrix of its shape; immutable.

    `wins` are the intervals (first, last) of batches in which it is, out of those in `tried`; `choice` says why it is
    this chain. `alternatives`, the chosen one first, are those of a budget.
    """

    chain: Chain
    choice: str
    dtype: torch.dtype
    device: str
    threads: int
    train: bool
    rows: tuple[Row, ...]
    wins: tuple[tuple[int, int], ...]
    tried: tuple[int, ...]
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What wins: "structure" if the chain does at every batch, "dense" if at none, else "depends"."""
        if not self.wins:
            return "dense"
        return "structure" if self.wins == ((self.tried[0], self.tried[-1]),) else "depends"

    @property
    def sentence(self) -> str:
        """The answer in words."""
        first, last = self.tried[0], self.tried[-1]
        every = f"at batch {first}" if first == last else f"at every batch from {first} to {last}"
        share = f"with {self.chain.density:.2%} of the parameters"
        if self.verdict == "dense":
            return f"Keep dense: {every} it is faster than this chain ({self._ratios()})."
        if self.verdict == "structure":
            return f"Use the chain: {every} it is faster than dense ({self._ratios()}), {share}."
        where = " and ".join(f"{low} to {high}" if low < high else f"{low}" for low, high in self.wins)
        return f"Use the chain for batch {where}, {share}; keep dense for the others ({self._ratios()})."

    def _ratios(self) -> str:
        shown = (self.rows[0], self.rows[-1]) if len(self.rows) > 1 else self.rows
        return ", ".join(f"{round_to_two(row.speedup)}x at batch {row.batch}" for row in shown)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        m, n = self.chain.shape
        return {
            "shape": [m, n],
            "chain": str(self.chain),
            "patterns": [list(pattern) for pattern in self.chain],
            "choice": self.choice,
            "parameters": self.chain.nnz,
            "dense_parameters": m * n,
            "density": self.chain.density,
            "flops": self.chain.flops,
            "dense_flops": 2 * m * n,
            "dtype": dtype_name(self.dtype),
            "device": self.device,
            "machine": wisdom.machine(self.device),
            "threads": self.threads,
            "train": self.train,
            "batches": [row.as_dict() for row in self.rows],
            "wins": [list(interval) for interval in self.wins],
            "tried": list(self.tried),
            "verdict": self.verdict,
            "sentence": self.sentence,
            "alternatives": [other.as_dict() for other in self.alternatives],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return self.sentence


def advise(
    m: int | None = None,
    n: int | None = None,
    *,
    chain: Chain | str | None = None,
    budget: int | float | None = None,
    batches: Sequence[int] = BATCHES,
    dtype: torch.dtype | str = torch.float32,
    device: str = "cpu",
    threads: int | None = None,
    train: bool = False,
    measure: bool = False,
    progress: Progress | None = None,
) -> Advice:
    """Whether a chain with m rows and n columns multiplies faster than the dense matrix, for each number of vectors.

    Args:
        m: rows, the outputs of a layer; may be left out with a chain, as n may.
        n: columns, the inputs of a layer.
        chain: a chain or the text of one; by default the one of the budget, or a Monarch chain.
        budget: take the chain that is predicted to be fastest among a few families with at most this share of the
            dense parameters, and at least half of it if there are such; the best of each family are the alternatives.
        batches: numbers of vectors.
        dtype: of the vectors and the factors: float32, float64, bfloat16, float16, complex64 or complex128.
        device: "cpu", "cuda".
        threads: of torch, on the CPU; by default as many as it uses now.
        train: count both gradients in.
        measure: time it here and now, beside the dense layer, and store the times for later plans. Otherwise times
            are those stored, or predicted by a model, without allocating anything.
        progress: called as progress(what, done, total).

    Raises `ValueError` or `TypeError` for what is not of these kinds, for a chain of another shape, and for measuring
    what does not fit in memory. Cost: milliseconds, and about two seconds per batch to measure.

    >>> advice = advise(1024, 1024, chain="butterfly(1024)", batches=[256])
    >>> advice.chain.nnz, advice.rows[0].batch
    (20480, 256)
    """
    batches, dtype, threads = _batches(batches), _dtype(dtype), _threads(threads)
    _require_device(device)
    if chain is not None and budget is not None:
        raise ValueError("a chain and a budget were given. Rule: at most one of them; the budget chooses a chain.")
    given = Chain.parse(chain) if isinstance(chain, str) else chain
    m, n = _sizes(m, n, given)

    def task(chain: Chain, batch: int) -> Task:
        return Task(chain, batch, dtype, device, train=train, threads=threads)

    alternatives: tuple[Alternative, ...] = ()
    if given is not None:
        choice = "as given"
    elif budget is None:
        spec, choice = candidates.sensible(m, n)
        given = Chain.parse(spec)
        choice = f"{spec}: {choice}"
    else:
        alternatives = _alternatives(m, n, budget, batches, task)
        given = Chain.parse(alternatives[0].spec)
        choice = f"{alternatives[0].spec}: of {len(alternatives)} families, each within {budget:.3g} of the dense "
        choice += "parameters, the one predicted to be fastest"
    rows, notes = [], []
    for done, batch in enumerate(batches):
        own = task(given, batch)
        if not measure:
            rows.append(_predicted(plan_for(own)))
            continue
        if progress is not None:
            progress(f"batch {batch}", done, len(batches))
        timings = race(own)
        try:
            wisdom.store(own, {name: timing.seconds for name, timing in timings.items()})
        except (OSError, ValueError) as error:
            notes.append(f"the times of batch {batch} are not kept for later plans: {error}")
        rows.append(_timed(batch, timings))
    if measure:  # between what was measured nothing is claimed
        points = {row.batch: row.speedup > 1 for row in rows}
    else:
        points = {batch: plan_for(task(given, batch)).speedup > 1 for batch in {*GRID, *batches}}
    tried = tuple(sorted(points))
    return Advice(
        given,
        choice,
        dtype,
        device,
        threads,
        train,
        tuple(rows),
        _runs(tried, points),
        tried,
        alternatives,
        tuple(dict.fromkeys(notes)),
    )


def round_to_two(value: int | float) -> str:
    """A ratio for people: two digits, never in powers of ten.

    >>> round_to_two(0.0467), round_to_two(4.67), round_to_two(1583.9)
    ('0.047', '4.7', '1,600')
    """
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def _predicted(plan: Plan) -> Row:
    return Row(plan.task.rows, plan.backend, plan.seconds, plan.dense_seconds, plan.measured, None, None, plan.times)


def _timed(batch: int, timings: dict[str, Timing]) -> Row:
    own = {name: timing for name, timing in timings.items() if name != DENSE}
    best = min(own, key=lambda name: own[name].seconds)
    intervals = [(timing.low, timing.high) for timing in (own[best], timings[DENSE])]
    times = tuple(sorted(((name, t.seconds) for name, t in own.items()), key=lambda item: item[1]))
    return Row(batch, best, own[best].seconds, timings[DENSE].seconds, True, intervals[0], intervals[1], times)


def _runs(tried: Sequence[int], points: dict[int, bool]) -> tuple[tuple[int, int], ...]:
    """First and last batch of every run of batches at which the chain wins.

    >>> _runs((1, 2, 4, 8), {1: True, 2: True, 4: False, 8: True})
    ((1, 2), (8, 8))
    """
    runs: list[tuple[int, int]] = []
    previous = False
    for batch in tried:
        if points[batch]:
            runs.append((runs.pop()[0], batch) if previous else (batch, batch))
        previous = points[batch]
    return tuple(runs)


def _alternatives(
    m: int, n: int, budget: int | float, batches: Sequence[int], task: Callable[[Chain, int], Task]
) -> tuple[Alternative, ...]:
    """The fastest chain of each family within the budget, fastest first; last those that leave most of it unused."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise ValueError(
            f"budget={budget}. Rule: a share of the dense parameters, above 0 and at most 1, such as 0.25."
        )
    found = []
    for specs in candidates.within(m, n, budget).values():
        members = []
        for spec in specs:
            chain = Chain.parse(spec)
            speedups = tuple((batch, plan_for(task(chain, batch)).speedup) for batch in batches)
            members.append(Alternative(spec, chain.nnz, speedups))
        found.append(max(members, key=lambda member: member.speedup))
    rich = candidates.USED * budget * m * n
    return tuple(sorted(found, key=lambda member: (member.parameters < rich, -member.speedup)))


def _sizes(m: int | None, n: int | None, chain: Chain | None) -> tuple[int, int]:
    if chain is not None:
        rows, columns = chain.shape
        if m not in (None, rows) or n not in (None, columns):
            wanted = f"{rows if m is None else m} x {columns if n is None else n}"
            raise ValueError(
                f"the chain has shape {rows} x {columns}, wanted is {wanted}. Rule: outputs x inputs, the shape of "
                f"the weight of a linear layer; leave the sizes out to take those of the chain."
            )
        return rows, columns
    for name, value in (("m (outputs)", m), ("n (inputs)", n)):
        if value is None:
            raise ValueError(f"{name} is missing. Rule: both sizes of the matrix, or a chain, which has them.")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= candidates.LARGEST:
            raise ValueError(f"{name} is {value!r}. Rule: a whole number from 1 to {candidates.LARGEST}, such as 1024.")
    assert m is not None
    assert n is not None
    return m, n


def _batches(batches: Sequence[int]) -> tuple[int, ...]:
    for batch in batches:
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= candidates.LARGEST:
            raise ValueError(f"batch {batch!r}. Rule: a whole number of vectors, at least 1, such as 16.")
    if not batches:
        raise ValueError("no batch was given. Rule: at least one number of vectors, such as 16.")
    return tuple(dict.fromkeys(batches))


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    known = {dtype_name(d): d for d in DTYPES}
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype_name(dtype)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown dtype {name!r}{hint} Rule: one of {', '.join(known)}.")
    return known[name]


def _require_device(device: str) -> None:
    if device not in DEVICES:
        near = difflib.get_close_matches(device, DEVICES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown device {device!r}{hint} Rule: one of {', '.join(DEVICES)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch sees no CUDA device here. Rule: a device of this machine; take 'cpu'.")


def _threads(threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads={threads!r}. Rule: a whole number of at least 1; the default is what torch uses.")
    return threads
