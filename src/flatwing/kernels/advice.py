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

    `wins` are the intervals (first, last) of batches in which it is, `equals` those in which both take about as long,
    out of those in `tried`, which are powers of two; `source` tells how the times of these are known, a key of `BE`.
    `choice` says why it is this chain. `alternatives`, the chosen one first, are those of a budget.
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
    equals: tuple[tuple[int, int], ...] = ()
    source: str = "predicted"

    @property
    def verdict(self) -> str:
        """What to take: "structure", "dense" or "equal" if it is that at every batch, else "depends".

        Dense it is, too, if the chain is faster nowhere and slower somewhere, or does not save a single parameter.
        """
        whole = ((self.tried[0], self.tried[-1]),)
        if self.chain.density >= 1:
            return "dense"
        if not self.wins:
            return "equal" if self.equals == whole else "dense"
        return "structure" if self.wins == whole else "depends"

    @property
    def break_even(self) -> int | None:
        """The smallest batch that was looked at and at which the chain wins; None if it never does."""
        return self.wins[0][0] if self.wins else None

    @property
    def sentence(self) -> str:
        """The answer in words."""
        share, be = f"with {percent(self.chain.density)} of the parameters", BE[self.source]
        every = self._span(self.tried[0], self.tried[-1], "at every power of two from batch", "at batch")
        equal = " and ".join(self._span(low, high, "from", "") for low, high in self.equals)
        if self.chain.density >= 1:
            said = f"Keep dense: the chain has {percent(self.chain.density)} of its parameters ({self._ratios()})."
        elif self.verdict == "equal":
            said = (
                f"About equal: {every} neither {be} faster ({self._ratios()}), {share}. No reason to change for speed."
            )
        elif self.verdict == "structure":
            said = f"Use the chain: {every} it {be} faster than dense ({self._ratios()}), {share}."
        elif self.verdict == "dense" and not equal:
            said = f"Keep dense: {every} it {be} faster than this chain ({self._ratios()})."
        elif self.verdict == "dense":
            said = (
                f"Keep dense: it {be} faster than this chain, but about equal for batches {equal} ({self._ratios()})."
            )
        else:
            where = " and ".join(self._span(low, high, "from", "") for low, high in self.wins)
            others = [f"about equal for {equal}"] if equal else []
            others += ["keep dense for the others"] if self._count(self.wins + self.equals) < len(self.tried) else []
            said = f"Use the chain for batches {where}, where it {be} faster, {share}; {'; '.join(others)} "
            said += f"({self._ratios()}{'; powers of two were looked at' if self._is_grid() else ''})."
        return said + self._rounded()

    def _is_grid(self) -> bool:
        """Whether other batches were looked at than those that were asked for."""
        return len(self.tried) > len({row.rows for row in self.rows})

    def _count(self, runs: tuple[tuple[int, int], ...]) -> int:
        return sum(low <= batch <= high for batch in self.tried for low, high in runs)

    def _span(self, low: int, high: int, between: str, among: str) -> str:
        """The batches from low to high; only those that were asked for where no others were looked at."""
        own = [batch for batch in self.tried if low <= batch <= high]
        if len(own) > 1 and self._is_grid():
            return f"{between} {low} to {high}".strip()
        return f"{among} {_listed(own)}".strip()

    def _ratios(self) -> str:
        shown = (self.rows[0], self.rows[-1]) if len(self.rows) > 1 else self.rows
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
            "batches": [row.as_dict() for row in self.rows],
            "wins": [list(interval) for interval in self.wins],
            "equals": [list(interval) for interval in self.equals],
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
