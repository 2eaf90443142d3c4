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
from ..structure.product import ORDINARY

_VERSION = attrgetter("_version")
_pointer = torch.Tensor.data_ptr


@final
class PackedLayer:
    """A packed copy of the weights of a layer, and what tells whether they are still the same.

    Raises `ValueError` for weights whose changes torch does not count.
    """

    def __init__(self, product: SparseProduct, tensors: Sequence[torch.Tensor | None]) -> None:
        self._given = list(tensors)
        self._tensors = [t for t in tensors if t is not None]
        if any(type(t) not in ORDINARY for t in self._tensors):
            kinds = ", ".join(sorted({type(t).__name__ for t in self._tensors}))
            raise ValueError(
                f"the weights are {kinds}. Rule: ordinary parameters; pack before sharding, or not at all."
            )
        if any(t.is_inference() for t in self._tensors):
            raise ValueError(
                "the weights are inference tensors, whose changes torch does not count. Rule: make or load a layer "
                "that is packed outside of torch.inference_mode(); it may run inside."
            )
        self.product = Packed(product)
        self._memory = [t.detach() for t in self._tensors]  # kept, so that no other weights can come to lie there
        self._state = self._now()

    def is_of(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """Whether these are the tensors that were packed, whatever they hold by now."""
        return len(tensors) == len(self._given) and all(map(is_, tensors, self._given))

    def is_fresh(self) -> bool:
        """Whether the tensors have not changed since."""
        return self._now() == self._state

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
