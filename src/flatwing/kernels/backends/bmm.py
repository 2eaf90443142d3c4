"""bmm: batched GEMM of the vendor's library, without permutations where strides can say the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from typing_extensions import override

from .. import native
from ..backend import BACKENDS, Backend, Task
from ..cost import native_seconds


@final
class Bmm(Backend):
    """One `torch.bmm` per factor; any device and dtype that torch multiplies, and everything torch does with them."""

    native = True

    @override
    def unsupported_because(self, task: Task) -> str | None:
        return None

    @override
    def seconds(self, task: Task) -> float:
        return native_seconds(task)

    @override
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        return native.forward(x, factors, depths, last).contiguous()


BACKENDS.register("bmm")(Bmm())
