"""Advice: the answer to "will this chain be faster than a dense matrix?", for programs and in words."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, floor, log, log10
from typing import Any, final

import torch

from ..structure import Chain
from . import wisdom
from .cost import dtype_name

PREDICTED = 1.3
"""Ratio of predicted times that may as well be 1: half of the predictions err by less, see `cost`."""

STORED = 1.1
"""The same for times that were measured some time ago, of which the medians are known."""

BE = {
    "predicted": "is predicted to be",
    "measured": "was measured to be",
    "in part measured": "is predicted, in part measured, to be",
}

WHO = {"structure": "the chain wins", "equal": "the two are about equal", "dense": "dense wins"}


@final
@dataclass(frozen=True)
class Row:
    """The answer for one batch. Times are seconds per call, the interval is that of the quartiles if measured now.

    Times are those of `rows` vectors, the power of two from the batch on: plans are made for these.
    """

    batch: int
    rows: int
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

    @property
    def outcome(self) -> str:
        """What is faster: "structure", "dense", or "equal" if the times do not tell.

        Intervals of what was measured now must not meet; other ratios must be above `PREDICTED` or `STORED`.
        """
        if self.interval is not None and self.dense_interval is not None:
            (low, high), (dense_low, dense_high) = self.interval, self.dense_interval
            return "structure" if high < dense_low else "dense" if dense_high < low else "equal"
        margin = STORED if self.measured else PREDICTED
        return "structure" if self.speedup > margin else "dense" if self.speedup < 1 / margin else "equal"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "batch": self.batch,
            "rows": self.rows,
            "outcome": self.outcome,
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

    `rows` are the answers for the batches that were asked for; `source` tells how their times are known, a key of `BE`.
    `outcomes` are those of all batches that were looked at, which are powers of two, in order. `choice` says why it is
    this chain. `alternatives`, the chosen one first, are those of a budget.
    """

    chain: Chain
    choice: str
    dtype: torch.dtype
    device: str
    threads: int
    train: bool
    packed: bool
    rows: tuple[Row, ...]
    outcomes: tuple[tuple[int, str], ...]
    source: str = "predicted"
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What to take at the batches that were asked for: "structure", "dense", "equal", or else it "depends".

        Dense it is, too, if the chain is faster at none and slower at some, or does not save a single parameter.
        """
        found = {row.outcome for row in self.rows}
        if not self._saves or found == {"dense", "equal"}:
            return "dense"
        return found.pop() if len(found) == 1 else "depends"

    @property
    def break_even(self) -> int | None:
        """The smallest batch looked at where the chain wins; None if it does at none, or saves no parameter."""
        wins = self.runs("structure")
        return wins[0][0] if wins and self._saves else None

    @property
    def tried(self) -> tuple[int, ...]:
        """The batches that were looked at."""
        return tuple(batch for batch, _ in self.outcomes)

    def runs(self, outcome: str) -> tuple[tuple[int, int], ...]:
        """First and last batch of every run of those looked at that have this outcome."""
        runs: list[tuple[int, int]] = []
        previous = ""
        for batch, found in self.outcomes:
            if found == outcome:
                runs.append((runs.pop()[0], batch) if found == previous else (batch, batch))
            previous = found
        return tuple(runs)

    @property
    def sentence(self) -> str:
        """The answer in words: first for the batches that were asked for, then for the others."""
        share, be = f"with {percent(self.chain.density)} of the parameters", BE[self.source]
        every = _at([row.batch for row in self.rows])
        at = {row.outcome: _at([r.batch for r in self.rows if r.outcome == row.outcome]) for row in self.rows}
        if not self._saves:
            said = f"Keep dense: the chain has {percent(self.chain.density)} of its parameters ({self._ratios()})."
        elif self.verdict == "equal":
            said = (
                f"About equal: {every} neither {be} faster ({self._ratios()}), {share}. No reason to change for speed."
            )
        elif self.verdict == "structure":
            said = f"Use the chain: {every} it {be} faster than dense ({self._ratios()}), {share}."
        elif self.verdict == "dense":
            but = f", {at['equal']} about as fast" if "equal" in at else ""
            said = f"Keep dense: {at['dense']} it {be} faster than this chain{but} ({self._ratios()})."
        else:
            others = [f"keep dense {at['dense']}"] if "dense" in at else []
            others += [f"about equal {at['equal']}"] if "equal" in at else []
            said = f"Use the chain {at['structure']}, where it {be} faster, {share}; {'; '.join(others)} "
            said += f"({self._ratios()})."
        return said + self._elsewhere() + self._rounded()

    @property
    def _saves(self) -> bool:
        return self.chain.density < 1

    def _elsewhere(self) -> str:
        """What holds at other batches, if others were looked at."""
        if not self._saves or len(self.outcomes) == len({row.rows for row in self.rows}):
            return ""
        told = [f"{who} {_spans(runs)}" for outcome, who in WHO.items() if (runs := self.runs(outcome))]
        powers = f"powers of two from {self.tried[0]} to {self.tried[-1]}"
        return f" So it is at all {powers}." if len(told) == 1 else f" Of the {powers}, {', '.join(told)}."

    def _ratios(self) -> str:
        if len(self.rows) == 1:
            return f"{round_to_two(self.rows[0].speedup)}x"
        shown = self.rows[0], self.rows[-1]
        return ", ".join(f"{round_to_two(row.speedup)}x at batch {row.batch}" for row in shown)

    def _rounded(self) -> str:
        others = {row.batch: row.rows for row in self.rows if row.batch != row.rows}
        if not others:
            return ""
        words = "Batch {} counts as {}" if len(others) == 1 else "Batches {} count as {}"
        return f" {words.format(_listed([*others]), _listed([*others.values()]))}, as plans are made for powers of two."

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
            "packed": self.packed,
            "batches": [row.as_dict() for row in self.rows],
            "wins": [list(run) for run in self.runs("structure")],
            "equals": [list(run) for run in self.runs("equal")],
            "source": self.source,
            "break_even": self.break_even,
            "tried": list(self.tried),
            "verdict": self.verdict,
            "sentence": self.sentence,
            "alternatives": [other.as_dict() for other in self.alternatives],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return self.sentence


def _at(batches: list[int]) -> str:
    """Batches in words.

    >>> _at([4]), _at([1, 4])
    ('at batch 4', 'at batches 1 and 4')
    """
    return f"at batch{'es' * (len(batches) > 1)} {_listed(batches)}"


def _spans(runs: tuple[tuple[int, int], ...]) -> str:
    """Runs of batches in words.

    >>> _spans(((1, 4), (16, 16)))
    'from 1 to 4 and at 16'
    """
    return " and ".join(f"at {low}" if low == high else f"from {low} to {high}" for low, high in runs)


def _listed(numbers: list[int]) -> str:
    """Numbers in words.

    >>> _listed([1, 4, 16])
    '1, 4 and 16'
    """
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def round_to_two(value: int | float) -> str:
    """A positive ratio for people: two digits, never in powers of ten.

    >>> round_to_two(0.0467), round_to_two(4.67), round_to_two(3.0), round_to_two(1583.9), round_to_two(3e-7)
    ('0.047', '4.7', '3', '1,600', '0.0000003')
    """
    text = _two_digits(value)
    return text.rstrip("0").removesuffix(".") if "." in text else text


def percent(share: int | float) -> str:
    """A positive share for people: two digits; what is not quite the whole is not called so.

    >>> percent(0.25), percent(0.0197), percent(3.21e-7), percent(0.9971), percent(2.0)
    ('25%', '2.0%', '0.000032%', 'over 99%', '200%')
    """
    return "over 99%" if 0.99 < share < 1 else f"{_two_digits(100 * share)}%"


def _two_digits(value: int | float) -> str:
    value = float(f"{value:.2g}")
    return f"{value:,.0f}" if value >= 10 else f"{value:.{1 - floor(log10(value))}f}"
