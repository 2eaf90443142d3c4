"""What makes passes over memory fast: compiled code where it is worth its import, and copies in large pages."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from .sharded import is_distributed

WORTH = 1 << 16
"""Entries from which on compiled code is asked for: importing the compiler takes a second."""

KINDS = (torch.float32, torch.int32, torch.bool)


def compiled(*tensors: torch.Tensor) -> Any:
    """The module of compiled twins if they apply to these tensors, which are of one size; else None.

    They apply on a CPU, to contiguous memory, to float32, int32 and bool.

    >>> compiled(torch.ones(3)) is None, compiled(torch.ones(1 << 16, dtype=torch.float64)) is None
    (True, True)
    """
    fast = tensors[0].numel() >= WORTH and all(
        tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype in KINDS for tensor in tensors
    )
    return importlib.import_module(".compiled", __package__) if fast else None


def room(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """As many tensors like these, not filled. Where all are of one dtype on a CPU, they are parts of one allocation.

    The system gives fresh memory page by page, which costs several times what filling it does; for one large
    allocation it can be asked for large pages. The memory is free again when the last part is.

    >>> [part.shape for part in room([torch.ones(2, 3), torch.ones(4)])]
    [torch.Size([2, 3]), torch.Size([4])]
    """
    if any(
        is_distributed(t) or t.device.type != "cpu" or not t.is_contiguous() or t.dtype != tensors[0].dtype
        for t in tensors
    ):
        return [torch.empty_like(tensor, requires_grad=False) for tensor in tensors]
    ends = list(accumulate((tensor.numel() for tensor in tensors), initial=0))
    block = torch.empty(ends[-1], dtype=tensors[0].dtype if tensors else None)
    workers = importlib.import_module("flatwing.kernels.cpu.workers")
    workers.expect(block.data_ptr(), block.nbytes)
    return [block[i : i + t.numel()].view(t.shape) for i, t in zip(ends, tensors, strict=False)]
