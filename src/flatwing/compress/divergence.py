"""How far the outputs of a compressed network are from those of the original."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch.nn import functional as F

from .batch import Batch

TASKS = ("lm", "classification", "other")


def divergence(
    reference: Float[torch.Tensor, "*batch classes"],
    output: Float[torch.Tensor, "*batch classes"],
    batch: Batch,
    task: str,
) -> torch.Tensor:
    """One number per position: KL(reference || output) of the distributions, or the relative squared error (`other`).

    Differentiable in `output`; positions of padding are left out.

    >>> x = torch.tensor([[0.0, 1.0]])
    >>> divergence(x, x + 5.0, Batch((x,)), "classification").tolist()  # a shift of all logits changes nothing
    [0.0]
    """
    p, q = positions(reference, batch).float(), positions(output, batch).float()
    if task == "other":
        return (p - q).square().sum(-1) / p.square().sum(-1).mean().clamp_min(1e-30)
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def positions(output: torch.Tensor, batch: Batch) -> Float[torch.Tensor, "positions classes"]:
    """The output as rows, without positions of padding."""
    if batch.mask is not None and batch.mask.shape == output.shape[:-1]:
        return output[batch.mask]
    return output.reshape(-1, output.shape[-1])
