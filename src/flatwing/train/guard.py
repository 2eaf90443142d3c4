"""What the guard remembers of two layers: how large they are, and where their product goes."""

from __future__ import annotations

import difflib
from math import ceil, isfinite
from typing import final

import torch
from jaxtyping import Float
from torch import nn

from ..structure.growth import Growth, diverging

FIRST = 8  # step of the first look
OCTAVE = 4  # looks until twice the step: powers of time are lines in its logarithm
SKETCH = 8  # random inputs that stand for the product, which is too large to be kept
WINDOW = 16  # looks of a fit: 16-fold time, longer than the first fit to a target takes
IN_A_ROW = 4  # looks whose fits agree


@final
class FactorWatch:
    """Norms of two linear layers, and their product on a few fixed inputs, at steps 8, 10, 12, 14, 16, 20, ...

    `first` and `second` are names of modules with a `weight` (out, in), the first applied first. Raises `ValueError`
    when it looks at a model without them, or whose sizes do not fit. Keeps out * 8 numbers a look, on the CPU.

    Measured on two 2 x 2 layers with the masks of LU, 24 seeds each with SGD (lr 0.02) and with AdamW (lr 0.01): of
    runs of 10000 steps to [[0, 1], [1, 0]], which no LU attains, 23 were `certain` with SGD (at step 862 to 8192,
    median 3445) and 24 with AdamW (at 1024 to 6889, median 1723); of 4000 steps whose lr falls to 0 as a cosine, 13
    and 22. Of runs to [[1, 1], [1, 2]] and to random L U (5000 steps), and of 16-24-4 networks, 80 % pruned, on random
    labels (1500 steps), 48 seeds each, none that came to its target was, and one that ran away elsewhere, at loss 0.66.
    """

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second
        self._next = FIRST
        self._norms: list[float] = []
        self._sketches: list[Float[torch.Tensor, "out k"]] = []
        self._agreed = 0

    @property
    def certain(self) -> bool:
        """Whether the last four looks in a row said that the factors run away: one may be the path to a far target."""
        return self._agreed >= IN_A_ROW

    def require(self, model: nn.Module) -> tuple[Float[torch.Tensor, "mid in"], Float[torch.Tensor, "out mid"]]:
        """The two matrices; raises `ValueError` if the model has none of these names, or their sizes do not fit."""
        inner, outer = (_weight(model, name) for name in (self.first, self.second))
        if outer.shape[1] != inner.shape[0]:
            sizes = f"{self.first!r} has {inner.shape[0]} outputs, {self.second!r} has {outer.shape[1]} inputs"
            raise ValueError(f"{sizes}. Rule: equal. Name neighbours, the one that is applied first first.")
        return inner, outer

    @torch.no_grad()
    def look(self, model: nn.Module, step: int) -> Growth | None:
        """What the run until this step tells; `None` between looks and before there are enough of them."""
        if step < self._next:
            return None
        looks = 0
        while self._next <= step:
            looks += 1
            self._next = ceil(round(FIRST * 2 ** (looks / OCTAVE), 6))
        inner, outer = self.require(model)
        inputs = torch.randn(inner.shape[1], SKETCH, generator=torch.Generator().manual_seed(0)).to(inner)
        self._norms.append(float(inner.norm() + outer.norm()))
        self._sketches.append((outer @ (inner @ inputs)).double().cpu())
        growth = self.growth()
        self._agreed = self._agreed + 1 if growth is not None and growth.diverging else 0
        return growth

    def growth(self) -> Growth | None:
        """The fit over the last 16 looks that have one at twice their step; `None` if there are fewer.

        The residual is how far the product moves until then: of a power of time that is a multiple of the distance to
        the limit, which is not known.
        """
        if len(self._norms) < WINDOW + OCTAVE:
            return None
        norms = self._norms[-WINDOW - OCTAVE : -OCTAVE]
        sketches = self._sketches[-WINDOW - OCTAVE :]
        moves = [float((late - early).norm()) for early, late in zip(sketches, sketches[OCTAVE:], strict=False)]
        if min(norms) == 0 or not all(map(isfinite, (*norms, *moves))):
            return None
        growth = diverging(norms, moves)
        return growth if growth.points == WINDOW else None


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    """The weight of a layer as it acts, masks applied; raises `ValueError` if there is none."""
    try:
        weight = model.get_submodule(name).weight
    except AttributeError:
        weight = None
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        near = difflib.get_close_matches(name, [known for known, _ in model.named_modules() if known], n=1)
        hint = f" Did you mean {near[0]!r}?" if near and near[0] != name else ""
        raise ValueError(f"the model has no layer {name!r} with a matrix. Rule: the name of a linear layer.{hint}")
    mask = getattr(model.get_submodule(name), "weight_mask", None)
    latent = getattr(model.get_submodule(name), "weight_orig", None)  # the product is stale until the next forward
    return (latent * mask if mask is not None and latent is not None else weight).detach().float()
