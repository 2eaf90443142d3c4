"""How good a model is on held-out data, with standard errors, by one process or several."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .distributed import rank, ranks, total
from .portions import take_rows, to_device


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Any], device: torch.device | None = None) -> dict[str, Any]:
    """Mean cross-entropy in nats, and accuracy, of logits (rows, ..., classes) against targets (rows, ...).

    Returns {"loss": {"value", "stderr"}, "accuracy": {"value", "stderr"}, "samples"}; errors are taken over rows, a
    text being one row, whose positions are not independent. The model is measured in the mode that it is in. Ranks
    share the rows of each batch; all must call this with the same batches. Raises `ValueError` without any row.

    >>> exact = measure(nn.Identity(), [(torch.eye(4) * 50, torch.arange(4))])
    >>> exact["accuracy"], exact["samples"]
    ({'value': 1.0, 'stderr': 0.0}, 4)
    """
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for batch in batches:
        rows = torch.arange(len(batch[1]))[rank() :: ranks()]
        counted = len(rows) > 0
        # a rank without a row computes one all the same, for sharded models talk to each other while they compute
        inputs, targets = to_device(take_rows(batch, rows if counted else torch.zeros(1, dtype=torch.long)), device)
        logits = model(inputs)
        losses = F.cross_entropy(logits.float().movedim(-1, 1), targets, reduction="none").double()
        right = (logits.argmax(-1) == targets).double()
        loss, hit = (x.flatten(1).mean(1) if x.ndim > 1 else x for x in (losses, right))
        parts = (loss.sum(), loss.square().sum(), hit.sum(), hit.square().sum(), torch.ones_like(loss).sum())
        sums += torch.stack(parts) * counted
    loss, loss2, hit, hit2, count = total(sums).tolist()
    if count == 0:
        raise ValueError("there is nothing to measure on. Rule: at least one sample. Give more data.")
    return {"loss": _mean(loss, loss2, count), "accuracy": _mean(hit, hit2, count), "samples": int(count)}


def _mean(first: float, second: float, count: float) -> dict[str, float]:
    value = first / count
    variance = max(0.0, second / count - value * value) / max(1.0, count - 1)
    return {"value": value, "stderr": sqrt(variance)}
