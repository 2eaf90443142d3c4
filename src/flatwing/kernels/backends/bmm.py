"""bmm: batched GEMM of the vendor's library, without permutations where strides can say the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import final

import torch
from typing_extensions import override

from ...structure import Chain
from .. import native
from ..backend import BACKENDS, NARROW, Backend, Task
from ..cost import call_seconds, factor_seconds, merge_seconds, native_seconds


@final
class Bmm(Backend):
    """One `torch.bmm` per factor; any device and dtype that torch multiplies, and everything torch does with them."""

    native = True

    @override
    def unsupported_because(self, task: Task) -> str | None:
        return None

    @override
    def seconds(self, task: Task) -> float:
        # what is merged to one matrix is for `dense`, which does not loop over factors
        return native_seconds(task) + (call_seconds(task, 1) if task.packed else 0.0)

    @override
    def merges(self, task: Task) -> tuple[int, ...]:
        return best_merges(task)

    @override
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        return native.forward(x, factors, depths, last).contiguous()


@lru_cache(maxsize=1024)
def best_merges(task: Task) -> tuple[int, ...]:
    """The splits whose merging makes batched GEMM fastest, merging included: a shortest path over runs of factors."""
    patterns = task.chain.patterns
    if not (task.chain.chainable or task.chain.T.chainable) or task.dtype in NARROW:
        return ()
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for hi in range(1, len(patterns) + 1):
        options = []
        for lo in range(hi):
            run = Chain(patterns[lo:hi])
            whole = run.pattern if run.chainable else run.T.pattern.T
            inside = merge_seconds(task, patterns[lo:hi]) if hi - lo > 1 and not task.packed else 0.0
            seconds = best[lo][0] + inside + factor_seconds(whole, task)
            options.append((seconds, (*best[lo][1], *range(lo + 1, hi))))
        best.append(min(options))
    return best[-1][1]


BACKENDS.register("bmm")(Bmm())
