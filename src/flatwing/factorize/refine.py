"""Refinement: alternating least squares in canonical form."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .problem import Problem


def refine_factors(
    problem: Problem,
    factors: list[torch.Tensor],
    sweeps: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[torch.Tensor]:
    raise ValueError("pending")
