"""GradPower: the gradient, entry by entry, to a power before any optimizer sees it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf
from typing import Any, final

import torch
from jaxtyping import Inexact
from torch.optim import Optimizer
from typing_extensions import override

from ..core import require_number
from .boost import pieces, step_piece
from .memory import compiled, room
from .registry import Method, add
from .sharded import SUM, local, over_shards
from .shell import Wrapper


def power(
    g: Inexact[torch.Tensor, "*shape"],
    p: float,
    unit: float = 1.0,
    *,
    out: Inexact[torch.Tensor, "*shape"] | None = None,
) -> Inexact[torch.Tensor, "*shape"]:
    """unit sign(g) |g / unit|^p, entry by entry: an entry of size `unit` keeps its size. `out`, or a new tensor.

    Odd in g; p = 1 is a bit-exact copy, p = 0 is unit sign(g), and c g goes to c^p times what g goes to. A complex
    entry keeps its phase. float16 and bfloat16 are computed in float32 and rounded once.
    Raises `ValueError` for a p that is negative or not finite, or a unit that is not above 0 and finite.

    >>> power(torch.tensor([-4.0, 0.0, 0.25]), 0.5)
    tensor([-2.0000,  0.0000,  0.5000])
    """
    _check(p, unit)
    out = torch.empty_like(g, requires_grad=False) if out is None else out
    if p == 1:
        return out.copy_(g)
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    if p == 0:  # 0 to the power 0 would be 1
        return out.copy_(wide.sgn() * unit)
    if fast := compiled(g, out):
        fast.power(g, p, unit, out)
        return out
    size = wide.abs().div_(unit).pow_(p).mul_(unit)
    return out.copy_(size * wide.sgn() if g.is_complex() else size.copysign_(wide))


@final
class GradPower(Wrapper):
    """Any optimizer, stepping along sign(g) |g|^p instead of the gradient g.

    `lr` has the unit of the base's; with SGD, and only there, the length of a step changes with p. Whether p > 1 helps
    depends on the tails of the gradient's noise: `diagnose` measures them, and predicts no help where they are those
    of a Gaussian or heavier. Adam divides by each coordinate's own size, so there a power does not favour small
    coordinates over large ones: it weighs the steps of one coordinate against each other.

    `p` and `unit` are entries of the groups. `unit` is the size of an entry that the power leaves as it is. None takes
    the group's own `eps` where the base has one number of that name, so that eps cuts off entries of the same size as
    before, float16 does not underflow, and Adam or Muon step as with unit 1 but for their eps; without eps it is 1.

    Comes after everything linear: accumulation, all-reduce, unscaling, then clipping. `.grad` is the gradient again
    after the step, the same tensor. A step whose powers overflow is skipped, with a warning.
    Raises `ValueError` for a bad p or unit. Cost: three passes over memory, and while it steps the powers: of some
    parameters at a time where the base treats each on its own (torch's own, but Adafactor and LBFGS), else of all.
    Source: GradPower (arXiv:2505.24275), algorithm 1.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = GradPower(torch.optim.SGD([w], lr=1.0), p=2.0)
    >>> w.grad = torch.tensor([3.0, -0.5])
    >>> optimizer.step()
    >>> w.data, w.grad
    (tensor([-9.0000,  0.2500]), tensor([ 3.0000, -0.5000]))
    """

    name = "GradPower"

    def __init__(self, base: Optimizer | Sequence[Optimizer], p: float = 1.2, *, unit: float | None = None) -> None:
        super().__init__(base, {"p": p, "unit": unit})

    @override
    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        _check(group["p"], 1.0 if group["unit"] is None else group["unit"])

    @override
    def update(self) -> None:
        """Step the base along the powers, some parameters at a time, each of which then has its gradient again."""
        if self._overflows():
            return self._skip()
        for optimizer, groups in pieces(self.base):
            turn = _turn(groups)
            try:
                for (q, gradient, p, unit), powered in zip(turn, room([each[1] for each in turn]), strict=True):
                    power(local(gradient), p, unit, out=local(powered))
                    q.grad = powered
                step_piece(optimizer, groups)
            finally:
                for q, gradient, _, _ in turn:
                    q.grad = gradient
        return None

    def _overflows(self) -> bool:
        """Whether the power of any entry is beyond the numbers of its dtype; over all shards."""
        turn = _turn(self.param_groups)
        if not turn:
            return False
        owners = [gradient for _, gradient, _, _ in turn]
        for wrong in (_may_overflow, _does_overflow):  # a bound is quick, and seldom not enough
            flags = (wrong(local(gradient), p, unit) for _, gradient, p, unit in turn)
            if not over_shards(owners, flags, SUM):
                return False
        return True

    def _skip(self) -> None:
        if not self.skipped:
            warnings.warn(
                "a power of the gradient overflows: the step is skipped, nothing changed. Clip first, or take a "
                "larger unit.",
                stacklevel=6,
            )
        self.skipped += 1


def _turn(groups: list[dict[str, Any]]) -> list[tuple[torch.Tensor, torch.Tensor, float, float]]:
    """Parameters whose gradient a power changes, with the gradient, the power and its unit."""
    return [
        (q, q.grad, group["p"], unit_of(group))
        for group in groups
        if group["p"] != 1
        for q in group["params"]
        if q.grad is not None
    ]


def _may_overflow(g: torch.Tensor, p: float, unit: float) -> torch.Tensor:
    """1 unless the power of the norm, and so that of any entry, is well within the numbers of the dtype."""
    norm = torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
    return (~(power(norm, p, unit) <= torch.finfo(g.dtype).max / 2)).to(torch.int32)


def _does_overflow(g: torch.Tensor, p: float, unit: float) -> torch.Tensor:
    return (~power(g, p, unit).isfinite().all()).to(torch.int32)


def unit_of(group: dict[str, Any]) -> float:
    """The unit that `power` has for a group of an optimizer: its `unit`, else its `eps`, else 1.

    >>> unit_of({"unit": None, "eps": 1e-8}), unit_of({"unit": None, "lr": 0.1})
    (1e-08, 1.0)
    """
    unit, eps = group.get("unit"), group.get("eps")
    if unit is not None:
        return unit
    return eps if isinstance(eps, float) and 0 < eps < inf else 1.0


def _check(p: Any, unit: Any) -> None:
    require_number("p", p, 0.0, good=1.2)
    require_number("unit", unit, above=0, good=1.0, advice="It is a size of gradient entries.")


add(
    Method(
        name="GradPower",
        summary="the gradient to a power, entry by entry, before any optimizer",
        paper="GradPower: Powering Gradients for Faster Language Model Pre-Training (arXiv:2505.24275)",
        lr_unit="the base's",
        passes=1.0,
        bytes=4.0,
        memory="a copy of the gradients, during the step only",
        make=lambda model, base, **settings: GradPower(base(model.parameters()), **settings),
        off={"p": 1.0},
        refuses=frozenset(),
    )
)
