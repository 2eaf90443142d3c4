"""Which rows of a tensor this rank holds."""

from __future__ import annotations

import torch

from .sharded import is_distributed


def local_rows(tensor: torch.Tensor, dim: int, name: str = "a parameter") -> tuple[int, int]:
    """First and last + 1 of the indices along `dim` that this rank has of a DTensor; all of them for other tensors.

    Counts as `torch.chunk` cuts, uneven shards too. Raises `ValueError` for a placement that is neither `Shard` nor
    `Replicate`, such as the strided shards of FSDP2 over tensor parallelism.

    >>> local_rows(torch.zeros(5, 3), 0)
    (0, 5)
    """
    start, size = 0, tensor.shape[dim] if tensor.ndim else 1
    if not is_distributed(tensor):
        return start, start + size
    for axis, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ != "Shard":
            raise ValueError(
                f"{name} is placed as {type(placement).__name__}. Rule: Shard or Replicate, whose rows lie together. "
                "Leave that tensor to an optimizer that works entry by entry, such as AdamW."
            )
        if placement.is_shard(dim % tensor.ndim):
            world, rank = tensor.device_mesh.size(axis), tensor.device_mesh.get_local_rank(axis)
            chunk = -(-size // world)
            first = min(rank * chunk, size)
            start, size = start + first, min(chunk, size - first)
    return start, start + size
