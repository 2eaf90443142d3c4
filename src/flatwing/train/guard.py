"""What the guard remembers of two layers: how large they are, and where their product goes."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import final

import torch
from jaxtyping import Float
from torch import nn

from ..structure.growth import Growth, diverging

FIRST = 8  # step of the first look
OCTAVE = 4  # looks until twice the step: powers of time are lines in its logarithm
SKETCH = 8  # random inputs that stand for the product, which is too large to be kept
LAST = 10  # looks that are left out of the fit: distances to the last one say little about the limit there


@final
class FactorWatch:
    """Norms of two linear layers, and their product on a few fixed inputs, at steps 8, 10, 12, 14, 16, 20, ...

    `first` and `second` are names of modules with a `weight` (out, in), the first applied first. Raises `ValueError`
    when it looks at a model without them, or whose sizes do not fit. Keeps out * 8 numbers a look, on the CPU.
    """

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second
        self._next = FIRST
        self._norms: list[float] = []
        self._sketches: list[Float[torch.Tensor, "out k"]] = []

    @torch.no_grad()
    def look(self, model: nn.Module, step: int) -> Growth | None:
        """What the run until this step tells; `None` between looks and before there are enough of them."""
        if step < self._next:
            return None
        looks = 0
        while self._next <= step:
            looks += 1
            self._next = ceil(round(FIRST * 2 ** (looks / OCTAVE), 6))
        inner, outer = (_weight(model, name) for name in (self.first, self.second))
        if outer.shape[1] != inner.shape[0]:
            sizes = f"{self.first!r} has {inner.shape[0]} outputs, {self.second!r} has {outer.shape[1]} inputs"
            raise ValueError(f"{sizes}. Rule: equal. Name neighbours, the one that is applied first first.")
        inputs = torch.randn(inner.shape[1], SKETCH, generator=torch.Generator().manual_seed(0)).to(inner)
        self._norms.append(float(inner.norm() + outer.norm()))
        self._sketches.append((outer @ (inner @ inputs)).double().cpu())
        return self.growth()

    def growth(self) -> Growth | None:
        """The fit over the second half of the looks, without the last ones; `None` if there are too few."""
        count = len(self._norms) - LAST
        half = count // 2
        if count < 2 or min(self._norms) == 0:
            return None
        distances = _distances(self._sketches)
        growth = diverging(self._norms[half:count], distances[half:count])
        return growth if growth.points == count - half else None


def _distances(sketches: Sequence[torch.Tensor]) -> list[float]:
    return [float((sketch - sketches[-1]).norm()) for sketch in sketches]


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    """The weight of a layer as it acts, masks applied; raises `ValueError` if there is none."""
    try:
        weight = model.get_submodule(name).weight
    except AttributeError:
        weight = None
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise ValueError(f"the model has no layer {name!r} with a matrix. Rule: the name of a linear layer.")
    mask = getattr(model.get_submodule(name), "weight_mask", None)
    latent = getattr(model.get_submodule(name), "weight_orig", None)  # the product is stale until the next forward
    return (latent * mask if mask is not None and latent is not None else weight).detach().float()
