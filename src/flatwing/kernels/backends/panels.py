"""panels: kernels compiled on this machine for large real blocks, whose vectors stay rows of the batch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, cast, final

import torch
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import override

from ...core import compiling
from ...structure import Chain
from ..backend import BACKENDS, Backend, Gradients, Prepared, Task
from ..cost import dtype_name


@final
class Panels(Backend):
    """Blocks with whole vectors of numbers, on a CPU with AVX-512; uses torch's number of threads.

    What the backend "numba" transposes to tiles, because any block is welcome there, stays as it is: training with
    blocks of 16 and more takes less time, and weights may be larger than the caches. Kernels are compiled as there.
    """

    def __init__(self) -> None:
        self._verdicts: dict[tuple[torch.dtype, bool], str | None] = {}

    @override
    def unsupported_because(self, task: Task) -> str | None:
        if task.device != "cpu":
            return f"panels run on the CPU, not on {task.device}"
        if find_spec("numba") is None:
            return "numba is not installed. Try `pip install numba`."
        try:
            reason = _kernels().unsupported_because(task.chain, task.dtype, task.layout == "batch-last")
        except Exception as error:  # whatever an import may raise
            return f"numba does not work here: {_first_line(error)}. See `python -c 'import numba'`."
        return reason or self._verdicts.get((task.dtype, task.train))

    @override
    def fails_because(self, task: Task) -> str | None:
        """None if the kernels compile, which a small product finds out, else why not; found out once."""
        code = task.dtype, task.train
        if code not in self._verdicts:
            what = f"panels for {dtype_name(task.dtype)}"
            with compiling(what, lambda: importlib.import_module("..cpu.simd", __package__).folder()):
                try:
                    _try(*code)
                    self._verdicts[code] = None
                except Exception as error:  # compilers have many ways to fail
                    self._verdicts[code] = f"numba could not compile panels: {_first_line(error)}"
        return self._verdicts[code]

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


def _try(dtype: torch.dtype, train: bool) -> None:
    chain, kernels = Chain.monarch(256, 256, blocks=16), _kernels()
    # the first call may come from inside a transform or a fake mode, where even new tensors have no memory
    with _disable_current_modes(), torch._C._DisableFuncTorch(), torch.no_grad():
        x = torch.ones(4, chain.shape[1], dtype=dtype, device="cpu")
        factors = [torch.ones(p.blocks, p.b, p.c, dtype=dtype, device="cpu") for p in chain]
        kernels.forward(x, factors, chain.depths, 1)
        if train:
            kernels.backward(x, factors, chain.depths, x, True, True, 1)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


BACKENDS.register("panels")(Panels())
