"""Plan: which structure each layer gets, and with how much of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from .candidates import Candidate


@final
@dataclass(frozen=True)
class Option:
    """One thing that can be done to a layer: what it costs, and what it is predicted to do to the outputs.

    `bound`, below which no error of this structure can be, is None where it was not computed.
    """

    candidate: Candidate | None  # None: the layer stays dense
    cost: float
    loss: float
    error: float = 0.0
    bound: float | None = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Option:
        """Inverse of `to_dict`."""
        return cls(**{**data, "candidate": _candidate(data["candidate"])})


@final
@dataclass(frozen=True)
class LayerPlan:
    """The decision for one layer. Errors are relative, in the norm of the data; `loss` is a divergence.

    `bound` is None where the rank was raised after the errors were measured: `error` is then that of a smaller rank.
    """

    name: str
    shape: tuple[int, int]
    candidate: Candidate | None
    parameters: int
    error: float
    bound: float | None
    loss: float
    sensitivity: float
    spectrum: tuple[float, ...] = ()

    @property
    def structure(self) -> str:
        """The candidate in words."""
        return "dense" if self.candidate is None else str(self.candidate)


def _candidate(data: Mapping[str, Any] | None) -> Candidate | None:
    if data is None:
        return None
    return Candidate(data["family"], tuple(data["shape"]), tuple(data["blocks"]), data["rank"])


def allocate(options: Mapping[str, Sequence[Option]], budget: float) -> dict[str, Option]:
    """One option per layer with the smallest total loss within `budget`, but for rounding of the last step.

    Along the lower convex hull of (cost, loss) of each layer, steps are taken in the order of loss saved per unit of
    cost; that is optimal for every budget at which a step ends. Raises `ValueError` for a budget that does not cover
    the cheapest options. Cost: O(options log options).

    >>> cheap, dear = Option(None, 1.0, 5.0), Option(None, 2.0, 1.0)
    >>> [o.cost for o in allocate({"a": [cheap, dear], "b": [cheap, Option(None, 2.0, 4.0)]}, 3.0).values()]
    [2.0, 1.0]
    """
    hulls = {name: hull(own) for name, own in options.items()}
    taken = dict.fromkeys(hulls, 0)
    spent = sum(own[0].cost for own in hulls.values())
    if spent > budget * (1 + 1e-9):
        raise ValueError(
            f"the budget is {budget:.6g} and the cheapest structures of all layers cost {spent:.6g}. "
            f"Rule: at least that much; give a larger --budget or compress fewer layers."
        )
    steps = sorted(
        ((_gain(own[i], own[i + 1]), name, i) for name, own in hulls.items() for i in range(len(own) - 1)),
        key=lambda step: (-step[0], step[1], step[2]),
    )
    stuck: set[str] = set()  # a layer whose next step does not fit takes no later one either
    for _, name, i in steps:
        more = hulls[name][i + 1].cost - hulls[name][i].cost
        if name in stuck or spent + more > budget * (1 + 1e-9):
            stuck.add(name)
            continue
        taken[name], spent = i + 1, spent + more
    return {name: hulls[name][i] for name, i in taken.items()}


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of (cost, loss), cheapest first; none costs more and loses more."""
    corners: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.loss)):
        if corners and option.loss >= corners[-1].loss:
            continue
        while corners and option.cost <= corners[-1].cost:
            corners.pop()
        while len(corners) > 1 and _gain(corners[-2], corners[-1]) <= _gain(corners[-1], option):
            corners.pop()
        corners.append(option)
    return corners


def _gain(a: Option, b: Option) -> float:
    return (a.loss - b.loss) / (b.cost - a.cost)


def fill(taken: dict[str, Option], budget: float, cost: Callable[[str, Candidate], float]) -> dict[str, Option]:
    """Spend what is left of the budget on the ranks of the layers that lose most, without crossing it.

    A raised rank keeps the error of the smaller one, the most it should be, and has no bound (None).
    """
    result = dict(taken)
    left = budget - sum(option.cost for option in result.values())
    for name, option in sorted(taken.items(), key=lambda item: (-item[1].loss, item[0])):
        if option.candidate is None or left <= 0:
            continue
        unit = cost(name, option.candidate) / option.candidate.parameters
        m, n = option.candidate.shape
        limit = min(option.candidate.parameters + left / unit, 0.98 * m * n)
        wider = option.candidate.within(limit)
        if wider is None or wider.rank <= option.candidate.rank:
            continue
        price = cost(name, wider)
        if price - option.cost <= left:
            left -= price - option.cost
            result[name] = Option(wider, price, option.loss, option.error, None)
    return result
