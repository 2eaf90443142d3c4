"""dense: the factors multiplied to one matrix first, then one GEMM: the judge of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from typing_extensions import override

from ...structure import SparseProduct
from .. import native
from ..backend import BACKENDS, Backend, Prepared, Task, chain_of
from ..cost import dense_seconds, merge_seconds


@final
class Dense(Backend):
    """`x @ product.dense().T`; any device and dtype. Cost: the matrix is made in every call, O(m n) memory."""

    native = True

    @override
    def unsupported_because(self, task: Task) -> str | None:
        return None

    @override
    def seconds(self, task: Task) -> float:
        return dense_seconds(task) + (0.0 if task.packed else merge_seconds(task))

    @override
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        if torch.compiler.is_compiling():  # compilers cannot follow the bookkeeping of merges
            n = factors[-1].shape[0] * factors[-1].shape[2]
            matrix = native.forward(torch.eye(n, dtype=x.dtype, device=x.device), factors, depths, last=True)
        else:
            matrix = SparseProduct(chain_of(factors, depths), factors).dense()
        return matrix @ x if last else torch.nn.functional.linear(x, matrix)

    @override
    def prepared(self, factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Prepared:
        matrix = SparseProduct(chain_of(factors, depths), factors).dense()
        return lambda x, threads: torch.nn.functional.linear(x, matrix)


BACKENDS.register("dense")(Dense())
