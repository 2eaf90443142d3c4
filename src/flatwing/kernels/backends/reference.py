"""reference: the definition, one batched product per factor; what all others are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from typing_extensions import override

from ...structure.factor import apply_factor
from ..backend import BACKENDS, Backend, Task
from ..cost import native_seconds


@final
class Reference(Backend):
    """The definition; any device and dtype that torch multiplies."""

    native = True

    @override
    def unsupported_because(self, task: Task) -> str | None:
        return None

    @override
    def seconds(self, task: Task) -> float:
        return 1.5 * native_seconds(task)  # every factor moves its inputs and its outputs

    @override
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        y = x if last else x.mT
        for w, d in list(zip(factors, depths, strict=True))[::-1]:
            y = apply_factor(w, y, d)
        return y.contiguous() if last else y.mT.contiguous()


BACKENDS.register("reference")(Reference())
