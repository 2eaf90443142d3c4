"""numba: kernels compiled on this machine for its vector units; a tile of the batch meets all factors in cache."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, cast, final

import torch
from typing_extensions import override

from ...structure import Chain
from ..backend import BACKENDS, Gradients, Prepared, Runner, Task
from .compiled import Code, Compiled

_SHAPE = attrgetter("shape")
HALVES = (torch.bfloat16, torch.float16)
"""Types that are computed in float32."""


@final
class NumbaCPU(Compiled):
    """Dyadic butterflies and general blocks on the CPU, in real and complex numbers; uses torch's number of threads."""

    @override
    def refused_because(self, task: Task) -> str | None:
        return _route(task.chain, _computed(task.dtype), task.layout == "batch-last")[1]

    @override
    def code_of(self, task: Task) -> Code:
        dtype, last = _computed(task.dtype), task.layout == "batch-last"
        name, _ = _route(task.chain, dtype, last)
        example = _kernels(name).example(task.chain, task.rows, dtype, last, task.packed)
        return Code(name, dtype, task.train, task.packed, *example)

    @override
    def seconds(self, task: Task) -> float:
        dtype, last = _computed(task.dtype), task.layout == "batch-last"
        name, _ = _route(task.chain, dtype, last)
        kernels, vectors = _kernels(name), _kernels("vectors")
        found: float = kernels.seconds(task.chain, task.rows, dtype, last, task.train, task.threads)
        if vectors.suits(task.rows, task.chain.nnz, dtype, last) and not (task.packed and name == "dyadic"):
            # the forward that runs in place of theirs
            found -= kernels.seconds(task.chain, task.rows, dtype, last, False, task.threads)
            found += vectors.seconds(task.chain, task.rows, dtype)
        if task.packed:
            found -= kernels.preparing_seconds(task.chain, dtype)
        if dtype != task.dtype:  # casts of what comes in and out
            calls, numbers = (0, 0) if task.packed else (len(task.chain), task.chain.nnz)
            numbers += task.rows * sum(task.chain.shape)
            found += 6e-6 + (1.2e-6 * calls + 1.1e-10 * numbers) * (3 if task.train else 1)
        return found

    @override
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        if x.dtype in HALVES:
            return self.forward(x.float(), [w.float() for w in factors], depths, last).to(x.dtype)
        kernels = _chosen(tuple(depths), list(map(_SHAPE, factors)), x.dtype, last)
        return kernels.forward(x, factors, depths, last, torch.get_num_threads())

    @override
    def runner(self, task: Task) -> Runner:
        chain, dtype, last = task.chain, task.dtype, task.layout == "batch-last"
        if dtype in HALVES:
            return super().runner(task)
        if not last and _kernels("vectors").suits(task.rows, chain.nnz, dtype):
            return cast(Runner, _kernels("vectors").runner(chain))
        kernels, depths = _kernels(_route(chain, dtype, last)[0]), tuple(chain.depths)
        return lambda x, factors: kernels.forward(x, factors, depths, last, torch.get_num_threads())

    @override
    def prepared(self, factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Prepared:
        if factors[0].dtype in HALVES:
            dtype, run = factors[0].dtype, self.prepared([w.float() for w in factors], depths)
            return lambda x, threads: run(x.float(), threads).to(dtype)
        kernels = _chosen(tuple(depths), list(map(_SHAPE, factors)), factors[0].dtype, False)
        return cast(Prepared, kernels.prepared(factors, depths))

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
        if x.dtype in HALVES:
            wide = [w.float() for w in factors]
            gx, gw = self.backward(x.float(), wide, depths, grad.float(), last, need_x, need_factors)
            return Gradients(gx if gx is None else gx.to(x.dtype), gw if gw is None else [g.to(x.dtype) for g in gw])
        kernels = _chosen(tuple(depths), list(map(_SHAPE, factors)), x.dtype, last)
        return kernels.backward(x, factors, depths, grad, last, need_x, need_factors, torch.get_num_threads())


def _computed(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALVES else dtype


@cache
def _kernels(name: str) -> Any:
    """The module of kernels; the first call imports numba."""
    return importlib.import_module(f"..cpu.{name}", __package__)


def _route(chain: Chain, dtype: torch.dtype, last: bool) -> tuple[str, str | None]:
    """Which kernels compute it, and why they do not."""
    if _kernels("dyadic").unsupported_because(chain, dtype, 1, last) is None:
        return "dyadic", None
    return "blocks", _kernels("blocks").unsupported_because(chain, dtype, 1, last)


def _chosen(depths: tuple[int, ...], shapes: list[torch.Size], dtype: torch.dtype, last: bool) -> Any:
    """The kernels for factors of these shapes; on the way of every call."""
    found = None if last else _dyadic_shapes(depths, shapes[0][0], dtype)
    return _kernels("dyadic") if shapes == found else _kernels("blocks")


@lru_cache(maxsize=1024)
def _dyadic_shapes(depths: tuple[int, ...], blocks: int, dtype: torch.dtype) -> list[torch.Size] | None:
    """The shapes of factors with these depths that the dyadic kernels take, if the first has so many blocks."""
    if any(blocks % d for d in depths):
        return None
    chain = Chain([(blocks // d, 2, 2, d) for d in depths])
    name, _ = _route(chain, dtype, False)
    return [torch.Size((blocks, 2, 2))] * len(depths) if name == "dyadic" else None


BACKENDS.register("numba")(NumbaCPU())
