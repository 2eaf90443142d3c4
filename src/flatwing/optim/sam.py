"""SAM and ASAM: any optimizer, stepping along the gradient where the loss nearby is worst."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from ..core import require_number
from .check import require_model
from .perturb import Reach, moved
from .registry import Method, add
from .shell import Closure, Wrapper

RECIPE = (
    "Write optimizer.step(closure), with a closure that zeroes the gradients, computes the loss, calls backward and "
    "returns the loss. With GradScaler, or in a loop without closures: loss.backward(), then a second backward inside "
    "`with perturbed(model, rho):`, then the step of the optimizer inside."
)


class SharpnessAware(Wrapper, ABC):
    """What SAM and ASAM have in common: two calls of the closure per step, the second at the perturbed weights."""

    needs_closure = True

    def __init__(
        self, base: Optimizer | Sequence[Optimizer], settings: Mapping[str, Any], model: nn.Module | None
    ) -> None:
        if model is not None:
            require_model(model)
        super().__init__(base, settings)
        self.model = model

    @override
    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        require_number("rho", group["rho"], 0.0, good=0.05 if "eta" not in group else 0.5)
        require_number("eta", group.get("eta", 0.0), 0.0, good=0.01)

    @torch.no_grad()
    @override
    def step(self, closure: Closure | None = None) -> Any:
        """One step of the base along the gradient at the perturbed weights; returns the loss at the weights.

        `closure` zeroes the gradients, computes the loss and calls backward; it is called twice, or once where every
        group has rho = 0. Raises `ValueError` without one.
        """
        if closure is None:
            raise ValueError(f"{type(self).__name__} steps with a closure, and goes outermost. {RECIPE}")
        self._check()
        with torch.enable_grad():
            loss = closure()
        if not self._usable():
            return loss
        reach: dict[torch.Tensor, Reach] = {}
        for group in self.param_groups:
            reach |= dict.fromkeys(group["params"], Reach(group["rho"], group.get("eta")))
        if any(rho > 0 for rho, _ in reach.values()):
            with moved(reach, self.model), torch.enable_grad():
                closure()
            if not self._usable():
                return loss
        self.update()
        return loss

    @override
    def update(self) -> None:
        """Step the base along the gradients that are there."""
        self.base.step()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "model": None}  # a copy of an optimizer is not one of the model


@final
class SAM(SharpnessAware):
    """Any optimizer, stepping along the gradient at w + rho g / |g|: towards flat minima, at twice the cost.

    With BatchNorm write SAM(base, model=model): each batch passes the network twice, and without `model` the running
    statistics count it twice, the second time at the perturbed weights.

    `lr` has the unit of the base's, `rho` that of the weights: it is the distance moved, over all parameters and all
    shards together. It is an entry of every group; where groups differ, each moves by its own rho along the common
    direction. `model`, if given, keeps all its buffers through the second pass.

    step(closure) calls the closure twice; rho = 0 is the base, bit for bit, and calls it once. A closure may loop over
    micro-batches; both passes then are over all of them. Without a closure take `perturbed`, which also says what
    holds with `GradScaler`, DDP and FSDP2. A step whose first or second gradient is not finite is skipped.
    Other methods go inside: SAM(IRE(base)). Only in the last part of training: `late`.
    Raises `ValueError` for a negative rho. Cost: two passes per step, a copy of the weights during the second.
    Source: Foret et al. 2021 (arXiv:2010.01412), algorithm 1.

    >>> w = nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (w**2).sum()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)
    >>> w.data  # 1 - 0.1 * 2 (1 + 0.5)
    tensor([0.7000])
    """

    name = "SAM"

    def __init__(
        self, base: Optimizer | Sequence[Optimizer], rho: float = 0.05, *, model: nn.Module | None = None
    ) -> None:
        super().__init__(base, {"rho": rho}, model)


@final
class ASAM(SharpnessAware):
    """SAM in a metric of the weights' own sizes: w moves by rho T^2 g / |T g| with T = |w| + eta.

    What SAM says holds, but rho has no unit: rescaling a layer against the next one does not change the neighbourhood
    (for eta = 0). `rho` and `eta`, in the unit of the weights, are entries of every group.
    Source: Kwon et al. 2021 (arXiv:2102.11600), eq. 7, where only weights are scaled; here biases are, too.

    >>> w = nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = ASAM(torch.optim.SGD([w], lr=0.1), rho=0.5, eta=0.0)
    >>> _ = optimizer.step(lambda: (w**2).sum().backward())
    >>> w.data  # 2 - 0.1 * 2 (2 + 0.5 * 2)
    tensor([1.4000])
    """

    name = "ASAM"

    def __init__(
        self,
        base: Optimizer | Sequence[Optimizer],
        rho: float = 0.5,
        eta: float = 0.01,
        *,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, {"rho": rho, "eta": eta}, model)


def _method(kind: type[SAM | ASAM], summary: str, paper: str) -> Method:
    return Method(
        name=kind.name,
        summary=summary,
        paper=paper,
        lr_unit="the base's",
        passes=2.0,
        bytes=4.0,
        memory="a copy of the weights, during the second pass only",
        make=lambda model, base, **settings: kind(base(model.parameters()), model=model, **settings),
        off={"rho": 0.0},
        refuses=frozenset(),
    )


add(
    _method(
        SAM,
        "the gradient where the loss nearby is worst",
        "Sharpness-Aware Minimization for Efficiently Improving Generalization (arXiv:2010.01412)",
    )
)
add(
    _method(
        ASAM,
        "the gradient where the loss nearby is worst, nearby in the weights' own sizes",
        "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning (arXiv:2102.11600)",
    )
)
