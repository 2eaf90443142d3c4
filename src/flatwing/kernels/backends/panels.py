"""panels: kernels compiled on this machine for large real blocks, whose vectors stay rows of the batch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, cast, final

import torch
from typing_extensions import override

from ...structure import Chain
from ..backend import BACKENDS, Gradients, Prepared, Task
from .compiled import Code, Compiled


@final
class Panels(Compiled):
    """Blocks with whole vectors of numbers, on a CPU with AVX-512; uses torch's number of threads.

    What the backend "numba" transposes to tiles, because any block is welcome there, stays as it is: training with
    blocks of 16 and more takes less time, and weights may be larger than the caches.
    """

    @override
    def refused_because(self, task: Task) -> str | None:
        return cast("str | None", _kernels().unsupported_because(task.chain, task.dtype, task.layout == "batch-last"))

    @override
    def code_of(self, task: Task) -> Code:
        return Code("panels", task.dtype, task.train, task.packed, Chain.monarch(256, 256, blocks=16), 4)

    @override
    def seconds(self, task: Task) -> float:
        return cast(float, _cost().seconds(task))

    @override
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        return cast(torch.Tensor, _kernels().forward(x, factors, depths, torch.get_num_threads()))

    @override
    def prepared(self, factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Prepared:
        return cast(Prepared, _kernels().prepared(factors, depths))

    @override
    def backward(
        self,
        x: torch.Tensor,
        factors: Sequence[torch.Tensor],
        depths: Sequence[int],
        grad: torch.Tensor,
        last: bool,
        need_x: bool = True,
        need_factors: bool = True,
    ) -> Gradients:
        threads = torch.get_num_threads()
        return cast(Gradients, _kernels().backward(x, factors, depths, grad, need_x, need_factors, threads))


@cache
def _kernels() -> Any:
    """The module of kernels; the first call imports numba."""
    return importlib.import_module("..cpu.panels_calls", __package__)


@cache
def _cost() -> Any:
    return importlib.import_module("..cpu.panels_cost", __package__)


BACKENDS.register("panels")(Panels())
