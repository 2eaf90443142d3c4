"""Tensors that may be shards: what an optimizer needs to compute over all of a DTensor without gathering it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch.distributed import ProcessGroup, ReduceOp, all_reduce
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MAX, SUM = ReduceOp.MAX, ReduceOp.SUM


def is_distributed(tensor: torch.Tensor) -> TypeIs[DTensor]:
    """Whether it is a DTensor; where nobody imported their module, which takes longer than torch itself, none is.

    >>> is_distributed(torch.ones(2))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a DTensor that this rank holds, sharing its memory; any other tensor as it is.

    >>> local(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.to_local() if is_distributed(tensor) else tensor


def shard_groups(tensor: torch.Tensor) -> tuple[ProcessGroup, ...]:
    """The groups of ranks that hold the other parts of a DTensor, one per sharded dimension of its mesh.

    Ranks that hold copies are not among them. Raises `ValueError` for a tensor that is a partial sum, whose values
    are not known on any rank.
    """
    if not is_distributed(tensor):
        return ()
    for placement in tensor.placements:
        if placement.is_partial():
            raise ValueError(f"placement is {placement}. Rule: Shard or Replicate. Call .redistribute() first.")
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(dim) for dim, placement in enumerate(tensor.placements) if not placement.is_replicate())


def over_shards(owners: Iterable[torch.Tensor], values: Iterable[torch.Tensor], op: ReduceOp.RedOpType) -> torch.Tensor:
    """The sum (op=SUM) or maximum (op=MAX) of one small tensor per owner, each over all parts of its owner.

    `values` are computed from `local(owner)`, all of one shape; a replicated owner counts once. Every rank must call
    this with the same owners in the same order. Cost: one all-reduce of that shape per set of process groups.
    """
    buckets: dict[tuple[ProcessGroup, ...], torch.Tensor] = {}
    join = torch.maximum if op == MAX else torch.add
    for owner, value in zip(owners, values, strict=True):
        groups = shard_groups(owner)
        buckets[groups] = join(buckets[groups], value) if groups in buckets else value.clone()
    if not buckets:
        raise ValueError("there are no tensors. Rule: at least one. Pass the parameters that have a gradient.")
    for groups, value in buckets.items():
        for group in groups:
            all_reduce(value, op, group)
    first, *others = buckets.values()
    for value in others:
        first = join(first, value.to(first.device))
    return first


def global_norm(tensors: Iterable[torch.Tensor]) -> Float[torch.Tensor, ""]:
    """The Euclidean norm of all entries of all tensors, those of shards on other ranks included, in float64.

    Each tensor's own norm is computed in float32 at least, so gradients in float16 do not overflow.
    Raises `ValueError` if there are no tensors. Cost: one pass over memory and one all-reduce of a number.

    >>> global_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    tensor(5., dtype=torch.float64)
    """
    owners = list(tensors)
    return over_shards(owners, [norm.double().square() for norm in _norms(owners)], SUM).sqrt()


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no entry is NaN or infinite, on this rank and on those that hold the other parts.

    Cost: one pass over memory, one all-reduce of a number, and a wait for the device.

    >>> all_finite([torch.ones(3), torch.tensor([torch.nan])])
    False
    """
    owners = list(tensors)
    if not owners:
        return True
    parts = [local(owner).detach() for owner in owners]
    # a sum is finite only if all entries are, and takes a tenth of the time of looking at each; it may overflow, too
    totals = [part.sum(dtype=torch.promote_types(part.dtype, torch.float32)) for part in parts]
    sound = torch.stack([torch.isfinite(total).to(parts[0].device) for total in totals]).tolist()
    sound = [well or bool(torch.isfinite(part).all()) for well, part in zip(sound, parts, strict=True)]
    wrong = [part.new_full((), not well, dtype=torch.int32) for well, part in zip(sound, parts, strict=True)]
    return not over_shards(owners, wrong, SUM)


def _norms(owners: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    parts = [local(owner).detach() for owner in owners]
    return [torch.linalg.vector_norm(part, dtype=torch.promote_types(part.dtype, torch.float32)) for part in parts]
