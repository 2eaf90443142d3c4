"""Layers whose weights are prepared once for inference, as long as they stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter, is_
from typing import cast, final

import torch
from torch import nn

from ..kernels import Packed
from ..structure import SparseProduct

_VERSION, _NEEDS_GRAD = attrgetter("_version"), attrgetter("requires_grad")
_pointer = torch.Tensor.data_ptr


@final
class PackedLayer:
    """A packed copy of the weights of a layer, and what tells whether they are still the same."""

    def __init__(self, product: SparseProduct, tensors: Sequence[torch.Tensor | None]) -> None:
        self.product = Packed(product)
        self._given = list(tensors)
        self._tensors = [t for t in tensors if t is not None]
        if any(t.is_inference() for t in self._tensors):
            raise ValueError(
                "the weights are inference tensors, whose changes torch does not count. Rule: make or load a "
                "layer that is packed outside of torch.inference_mode(); it may run inside."
            )
        self._state = self._now()

    def holds(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """Whether the copy may stand for these tensors: it is theirs, and no gradients of them are to be recorded."""
        return (
            not torch.compiler.is_compiling()
            and not (torch.is_grad_enabled() and any(map(_NEEDS_GRAD, self._tensors)))
            and self.is_of(tensors)
        )

    def is_of(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """Whether the copy is that of these tensors as they are now."""
        same = len(tensors) == len(self._given) and all(map(is_, tensors, self._given))
        return same and self._now() == self._state

    def _now(self) -> tuple[list[int], list[int]]:
        return list(map(_VERSION, self._tensors)), list(map(_pointer, self._tensors))


def values_of(factors: nn.ParameterList) -> list[torch.Tensor]:
    """The tensors of a list of parameters, which itself takes a microsecond to find each of them."""
    found = factors._parameters
    if torch.compiler.is_compiling() or tuple(found) != _names(len(factors)):  # parametrized, pruned
        return list(factors)
    return cast("list[torch.Tensor]", list(found.values()))


@lru_cache(maxsize=256)
def _names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
