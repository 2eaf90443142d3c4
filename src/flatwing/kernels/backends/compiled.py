"""What backends have in common whose kernels numba compiles on the user's machine."""

from __future__ import annotations

import abc
import importlib
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import override

from ...core import compiling
from ...structure import Chain
from ..backend import Backend, Task
from ..cost import dtype_name


class Code(NamedTuple):
    """What is compiled at once, and an example that needs it."""

    name: str
    dtype: torch.dtype
    train: bool
    packed: bool
    chain: Chain
    rows: int

    @override
    def __str__(self) -> str:
        return f"kernels of {self.name} for {dtype_name(self.dtype)}"


class Compiled(Backend):
    """Kernels for the CPU that are compiled when they are first chosen.

    Numba is imported when the first plan is made. Compiling takes seconds once per machine, tenths of a second later.
    What fails then is remembered as long as the process lives.
    """

    def __init__(self) -> None:
        self._verdicts: dict[Code, str | None] = {}

    @abc.abstractmethod
    def refused_because(self, task: Task) -> str | None:
        """None if the kernels compute it on a CPU, else why not."""

    @abc.abstractmethod
    def code_of(self, task: Task) -> Code:
        """What has to be compiled for a task that is not refused."""

    @override
    def unsupported_because(self, task: Task) -> str | None:
        if task.device != "cpu":
            return f"numba runs on the CPU, not on {task.device}"
        if find_spec("numba") is None:
            return "numba is not installed. Try `pip install numba`."
        try:
            reason = self.refused_because(task)
        except Exception as error:  # whatever an import may raise
            return f"numba does not work here: {_first_line(error)}. See `python -c 'import numba'`."
        return reason or self._verdicts.get(self.code_of(task))

    @override
    def fails_because(self, task: Task) -> str | None:
        """None if the kernels compile, which a small product finds out, else why not; found out once."""
        code = self.code_of(task)
        if code not in self._verdicts:
            with compiling(str(code), lambda: importlib.import_module("..cpu.simd", __package__).folder()):
                try:
                    self._try(code)
                    self._verdicts[code] = None
                except Exception as error:  # compilers have many ways to fail
                    self._verdicts[code] = f"numba could not compile the {code}: {_first_line(error)}"
        return self._verdicts[code]

    def _try(self, code: Code) -> None:
        chain, dtype = code.chain, code.dtype
        # the first call may come from inside a transform or a fake mode, where even new tensors have no memory
        with _disable_current_modes(), torch._C._DisableFuncTorch(), torch.no_grad():
            x = torch.ones(code.rows, chain.shape[1], dtype=dtype, device="cpu")
            factors = [torch.ones(p.blocks, p.b, p.c, dtype=dtype, device="cpu") for p in chain]
            if code.packed:
                self.prepared(factors, chain.depths)(x, 1)
            else:
                self.forward(x, factors, chain.depths, False)
            if code.train:
                self.backward(x, factors, chain.depths, x, False)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
