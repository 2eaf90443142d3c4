"""Advice: the answer to "will this chain be faster than a dense matrix?", for programs and in words."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Any, final

import torch

from ..structure import Chain
from . import wisdom
from .cost import dtype_name


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
    def break_even(self) -> int | None:
        """The smallest batch that was looked at and at which the chain wins; None if it never does."""
        return self.wins[0][0] if self.wins else None

    @property
    def sentence(self) -> str:
        """The answer in words."""
        share = f"with {self.chain.density:.2%} of the parameters"
        every = self._span(self.tried[0], self.tried[-1], "at every batch from", "at batch")
        if self.verdict == "dense":
            return f"Keep dense: {every} it is faster than this chain ({self._ratios()})."
        if self.verdict == "structure":
            return f"Use the chain: {every} it is faster than dense ({self._ratios()}), {share}."
        where = " and ".join(self._span(low, high, "from", "") for low, high in self.wins)
        return f"Use the chain for batches {where}, {share}; keep dense for the others ({self._ratios()})."

    def _span(self, low: int, high: int, between: str, among: str) -> str:
        """The batches from low to high; only those that were asked for where no others were looked at."""
        own = [batch for batch in self.tried if low <= batch <= high]
        if len(own) > 1 and len(self.tried) > len(self.rows):
            return f"{between} {low} to {high}".strip()
        return f"{among} {', '.join(map(str, own[:-1]))}{' and ' * (len(own) > 1)}{own[-1]}".strip()

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
            "break_even": self.break_even,
            "tried": list(self.tried),
            "verdict": self.verdict,
            "sentence": self.sentence,
            "alternatives": [other.as_dict() for other in self.alternatives],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return self.sentence


def round_to_two(value: int | float) -> str:
    """A ratio for people: two digits, never in powers of ten.

    >>> round_to_two(0.0467), round_to_two(4.67), round_to_two(1583.9)
    ('0.047', '4.7', '1,600')
    """
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"
