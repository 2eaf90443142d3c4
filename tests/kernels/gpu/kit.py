"""What tests of GPU kernels share: the kernels in Triton's interpreter, data, and results in float64."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from flatwing.structure import Pattern
from flatwing.structure.factor import apply_factor

# rounding of the result; the interpreter cuts bfloat16 off instead of rounding it, twice for a pair
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

ROOM = "flatwing.kernels.gpu"
HOLD_KERNELS = ("language", "factor", "pair", "pair_weights", "weights", "launch", "run")


class Modules(NamedTuple):
    launch: Any
    run: Any


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Modules]:
    """Modules imported with the interpreter on; before and after, other tests see them without it."""
    pytest.importorskip("triton", reason="triton is not installed")
    for name in HOLD_KERNELS:
        importlib.import_module(f"{ROOM}.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in HOLD_KERNELS:
            patch.delitem(sys.modules, f"{ROOM}.{name}")
            patch.delattr(sys.modules[ROOM], name)
        for name in HOLD_KERNELS:
            importlib.import_module(f"{ROOM}.{name}")
        fresh = {name: sys.modules[f"{ROOM}.{name}"] for name in HOLD_KERNELS}
        assert fresh["language"].interpreted(fresh["pair"].pair)
        yield Modules(fresh["launch"], fresh["run"])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def values(pattern: Pattern, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(pattern.blocks, pattern.b, pattern.c).to(dtype)


def vectors(rows: int, n: int, dtype: torch.dtype, last: bool) -> torch.Tensor:
    """(rows, n); in memory rows, or columns if `last`."""
    return torch.randn(n, rows).to(dtype).T if last else torch.randn(rows, n).to(dtype)


def unwritten(rows: int, n: int, dtype: torch.dtype, last: bool) -> torch.Tensor:
    """(rows, n) of NaN, with more of them behind: what is not written stays visible, and what should not be, too."""
    if last:
        return torch.full((n + 64, rows), torch.nan, dtype=dtype)[:n].T
    return torch.full((rows + 64, n), torch.nan, dtype=dtype)[:rows]


def only_inside(y: torch.Tensor) -> bool:
    """Whether nothing was written behind the end of what `unwritten` gave."""
    assert y._base is not None
    return int((~y._base.isnan()).sum()) <= y.numel()


def product(x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int]) -> torch.Tensor:
    """x (K_1 ... K_L)^T in float64, by definition."""
    y = x.double().T
    for w, d in list(zip(factors, depths, strict=True))[::-1]:
        y = apply_factor(w.double(), y, d)
    return y.T


def gradients(
    x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], grad: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients for x and the factors in float64, by autograd."""
    leaves = [t.detach().double().requires_grad_() for t in (x, *factors)]
    return torch.autograd.grad(product(leaves[0], leaves[1:], depths), leaves, grad.double())
