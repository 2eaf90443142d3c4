"""Prices: what the layers cost, asked for once, so that a resumed run decides with the numbers that it began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, final

from .candidates import Candidate
from .costs import Cost
from .explore import Explored
from .plan import LayerPlan


@final
class Prices:
    """A cost that is remembered: a latency that is measured again is another one.

    >>> asked = []
    >>> price = Prices(lambda name, candidate: asked.append(name) or 2.0)
    >>> price("a", None), price("a", None), asked
    (2.0, 2.0, ['a'])
    """

    def __init__(self, cost: Cost) -> None:
        self.cost = cost
        self.known: dict[tuple[str, Candidate | None], float] = {}

    def __call__(self, name: str, candidate: Candidate | None) -> float:
        """The price of a layer, dense (None) or with a structure."""
        key = name, candidate
        if key not in self.known:
            self.known[key] = self.cost(name, candidate)
        return self.known[key]

    def learn(self, explored: Sequence[Explored]) -> None:
        """Take over the prices of the options that were explored before an interruption."""
        self.known.update(((own.name, option.candidate), option.cost) for own in explored for option in own.options)

    def keep(self, plans: Sequence[LayerPlan]) -> list[dict[str, Any]]:
        """Plans with their prices as plain data for JSON."""
        return [{"plan": asdict(plan), "cost": self(plan.name, plan.candidate)} for plan in plans]

    def recall(self, kept: Sequence[Mapping[str, Any]]) -> list[LayerPlan]:
        """Inverse of `keep`, of what JSON made of it; their prices are known from then on."""
        plans = []
        for entry in kept:
            data = dict(entry["plan"])
            if (own := data["candidate"]) is not None:
                data["candidate"] = Candidate(own["family"], tuple(own["shape"]), tuple(own["blocks"]), own["rank"])
            plan = LayerPlan(**{**data, "shape": tuple(data["shape"]), "spectrum": tuple(data["spectrum"])})
            self.known[plan.name, plan.candidate] = entry["cost"]
            plans.append(plan)
        return plans
