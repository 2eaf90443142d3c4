"""triton: kernels for CUDA devices, fused pairs of factors, tensor cores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import final

import torch
from typing_extensions import override

from ..backend import BACKENDS, Backend, Gradients, Task
from ..gpu.device import device_of
from ..gpu.groups import backward_grouped, grouped, merges
from ..gpu.tiles import arithmetic

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (7, 5)


@final
class TritonGPU(Backend):
    """The kernels of `gpu`, which are imported when the first one runs. Sums are in float32 whatever the dtype."""

    @override
    def unsupported_because(self, task: Task) -> str | None:
        if task.device != "cuda":
            return f"only for CUDA devices, not {task.device}"
        if torch.version.hip is not None:
            return "only for CUDA devices of NVIDIA: on ROCm its kernels were never compiled"
        if task.dtype not in DTYPES:
            return f"only for {', '.join(str(t).removeprefix('torch.') for t in DTYPES)}"
        if not _installed():
            return "triton is not installed; it comes with the CUDA builds of torch, else `pip install triton`"
        if torch.cuda.is_available() and device_of(None).capability < OLDEST:
            return "only for devices of compute capability 7.5 or newer"
        return None

    @override
    def seconds(self, task: Task) -> float:
        last, numbers = task.layout == "batch-last", arithmetic(task.dtype)
        setup = (task.chain.patterns, max(task.rows, 1), numbers, last, device_of(None))
        return grouped(*setup)[0] + (backward_grouped(*setup)[0] if task.train else 0.0)

    @override
    def merges(self, task: Task) -> tuple[int, ...]:
        """The splits (1-based) whose sides should be multiplied together first: see `groups.merges`."""
        return merges(task, device_of(None))

    @override
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        from ..gpu import run

        return run.forward(x.T, factors, depths, last).T if last else run.forward(x, factors, depths, last)

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
        from ..gpu import run

        x, grad = (x.T, grad.T) if last else (x, grad)
        gx, gw = None, None
        if need_factors:
            gx, gw = run.backward(x, factors, depths, grad, last, need_x)
        elif need_x:
            gx = run.input_gradient(factors, depths, grad, last)
        return Gradients(gx if gx is None or not last else gx.T, gw)


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


BACKENDS.register("triton")(TritonGPU())
