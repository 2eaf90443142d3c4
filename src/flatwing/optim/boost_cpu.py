"""What `boost` does to a parameter, compiled for CPUs: one pass over memory. Imported only when it is needed.

A mask of bool costs torch more time on a CPU than all arithmetic of the boost, because it is converted first.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
import torch

from ..kernels.cpu.simd import compiled
from ..kernels.cpu.workers import run, split, useful

SECONDS = 0.4e-9  # of one thread, per entry


@compiled
@no_type_check
def _of_move(p, old, flat, kappa, shrink):
    for i in range(p.size):
        q = p[i] + kappa * ((p[i] - old[i]) + shrink * old[i])
        p[i] = q if flat[i] else p[i]


@compiled
@no_type_check
def _of_adam(p, m, v, flat, a, b, eps):
    for i in range(p.size):
        q = p[i] + (a * (m[i] / (np.sqrt(v[i]) + eps)) + b * p[i])
        p[i] = q if flat[i] else p[i]


def of_move(p: torch.Tensor, old: torch.Tensor, flat: torch.Tensor, kappa: float, shrink: float) -> None:
    """As `boost.of_move`."""
    _run(_of_move, (p, old, flat), (kappa, shrink))


def of_adam(
    p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, flat: torch.Tensor, a: float, b: float, eps: float
) -> None:
    """As `boost.of_adam`."""
    _run(_of_adam, (p, m, v, flat), (a, b, eps))


def _run(kernel: Any, tensors: tuple[torch.Tensor, ...], numbers: tuple[float, ...]) -> None:
    arrays = [tensor.detach().reshape(-1).numpy() for tensor in tensors]
    scalars = [np.float32(number) for number in numbers]
    size = arrays[0].size
    threads = useful(torch.get_num_threads(), size * SECONDS)
    run(lambda i, j: kernel(*[array[i:j] for array in arrays], *scalars), split(size, threads, unit=1024))
