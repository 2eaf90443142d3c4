"""numba: kernels compiled on this machine for its vector units; a tile of the batch meets all factors in cache."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from operator import attrgetter
from typing import Any, NamedTuple, cast, final

import torch
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import override

from ...core import compiling
from ...structure import Chain
from ..backend import BACKENDS, Backend, Gradients, Prepared, Runner, Task
from ..cost import dtype_name

_SHAPE = attrgetter("shape")
HALVES = (torch.bfloat16, torch.float16)
"""Types that are computed in float32."""


@final
class NumbaCPU(Backend):
    """Dyadic butterflies and general blocks on the CPU, in real and complex numbers; uses torch's number of threads.

    Numba is imported when the first plan is made. Kernels are compiled when they are first chosen for a type of
    numbers: seconds once per machine, tenths of a second later. What fails then is remembered as long as the process
    lives.
    """

    def __init__(self) -> None:
        self._verdicts: dict[_Code, str | None] = {}

    @override
    def unsupported_because(self, task: Task) -> str | None:
        if task.device != "cpu":
            return f"numba runs on the CPU, not on {task.device}"
        if find_spec("numba") is None:
            return "numba is not installed. Try `pip install numba`."
        dtype, last = _computed(task.dtype), task.layout == "batch-last"
        try:
            _, reason = _route(task.chain, dtype, last)
        except Exception as error:  # whatever an import may raise
            return f"numba does not work here: {_first_line(error)}. See `python -c 'import numba'`."
        return reason or self._verdicts.get(_code(task))

    @override
    def fails_because(self, task: Task) -> str | None:
        """None if the kernels compile, which a small product finds out, else why not; found out once."""
        code = _code(task)
        if code not in self._verdicts:
            what = f"kernels of {code.name} for {dtype_name(code.dtype)}"
            with compiling(what, lambda: importlib.import_module("..cpu.simd", __package__).folder()):
                try:
                    _try(code)
                    self._verdicts[code] = None
                except Exception as error:  # compilers have many ways to fail
                    why = f"numba could not compile the kernels of {code.name}: {_first_line(error)}"
                    self._verdicts[code] = why
        return self._verdicts[code]

    @override
    def seconds(self, task: Task) -> float:
        dtype, last = _computed(task.dtype), task.layout == "batch-last"
        name, _ = _route(task.chain, dtype, last)
        kernels, vectors = _kernels(name), _kernels("vectors")
        found: float = kernels.seconds(task.chain, task.rows, dtype, last, task.train, task.threads)
        prepared: float = kernels.preparing_seconds(task.chain, dtype) if task.packed else 0.0
        if vectors.suits(task.rows, task.chain.nnz, dtype) and not (task.packed and name == "dyadic"):
            if task.train:
                found -= kernels.seconds(task.chain, task.rows, dtype, last, False, task.threads)
            else:
                found = 0.0
            found += vectors.seconds(task.chain, task.rows, dtype)
            prepared = vectors.preparing_seconds(task.chain) if task.packed else 0.0
        found -= prepared
        if dtype != task.dtype:  # casts of what comes in and out
            found += 5e-6 + 1e-10 * task.rows * sum(task.chain.shape) * (3 if task.train else 1)
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


class _Code(NamedTuple):
    """What is compiled at once."""

    name: str
    dtype: torch.dtype
    train: bool
    packed: bool
    chain: Chain
    """An example that needs it, and its number of rows."""
    rows: int


def _code(task: Task) -> _Code:
    dtype, last = _computed(task.dtype), task.layout == "batch-last"
    name, _ = _route(task.chain, dtype, last)
    example = _kernels(name).example(task.chain, task.rows, dtype, last, task.packed)
    return _Code(name, dtype, task.train, task.packed, *example)


def _try(code: _Code) -> None:
    chain, dtype = code.chain, code.dtype
    kernels = _kernels(code.name)
    # the first call may come from inside a transform or a fake mode, where even new tensors have no memory
    with _disable_current_modes(), torch._C._DisableFuncTorch(), torch.no_grad():
        x = torch.ones(code.rows, chain.shape[1], dtype=dtype, device="cpu")
        factors = [torch.ones(p.blocks, p.b, p.c, dtype=dtype, device="cpu") for p in chain]
        if code.packed:
            kernels.prepared(factors, chain.depths)(x, 1)
        else:
            kernels.forward(x, factors, chain.depths, False, 1)
        if code.train:
            kernels.backward(x, factors, chain.depths, x, False, True, True, 1)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


BACKENDS.register("numba")(NumbaCPU())
