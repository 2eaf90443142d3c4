"""Which entries of a tensor share one number of Adam-mini's second moment, and their mean squares, over shards too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch.distributed import ProcessGroup, all_reduce

from .blocks import Entry
from .rows import local_rows
from .sharded import is_distributed, local, shard_groups


@final
@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """How the entries of one tensor share numbers of the second moment.

    Entries that agree along the dimensions `keep` share one, where `index` is None. Else `keep` is one dimension, and
    `index[r]` says which of `count` numbers row r belongs to; an empty `keep` is one number for the whole tensor.
    """

    name: str
    shape: tuple[int, ...]
    keep: tuple[int, ...] = ()
    index: Int[torch.Tensor, " rows"] | None = None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the second moment: (parts, 1) for heads, (rows, 1) for rows, () for a whole tensor."""
        if not self.keep:
            return ()
        if self.index is not None:
            return tuple(self.count if d == self.keep[0] else 1 for d in range(len(self.shape)))
        return tuple(n if d in self.keep else 1 for d, n in enumerate(self.shape))

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return int(self.index[-1]) + 1 if self.index is not None else math.prod(self.shape[d] for d in self.keep)

    def index_of(self, p: torch.Tensor) -> Int[torch.Tensor, " rows"]:
        """`index` of the rows of a DTensor that this rank has, on the tensor's device."""
        assert self.index is not None
        start, stop = local_rows(p, self.keep[0], self.name)
        return self.index.to(p.device)[start:stop]


def partition_of(entry: Entry) -> Partition:
    """The partition of Adam-mini: heads of queries and keys, rows of other matrices, whole vectors.

    One number per output row for values, outputs, feed-forward layers, embeddings and heads of the network, and for
    queries and keys whose number of heads is unknown; one per tensor for norms, vectors and the block other.
    """
    shape = tuple(entry.parameter.shape)
    if len(shape) < 2 or entry.name.endswith("bias") or {"norm", "other"} & set(entry.blocks):
        return Partition(entry.name, shape)
    if any(part.heads for part in entry.parts):
        index: list[torch.Tensor] = []
        for part in entry.parts:
            rows, first = torch.arange(part.stop - part.start), int(index[-1][-1]) + 1 if index else 0
            index.append(first + (rows // (len(rows) // part.heads) if part.heads else rows))
        return Partition(entry.name, shape, (entry.dim,), torch.cat(index))
    # stacked experts and positions (1, length, width) have their rows in the second dimension
    stacked = len(shape) == 3 and (entry.block == "ffn" or shape[0] == 1)
    return Partition(entry.name, shape, (0, 1) if stacked else (entry.dim if len(shape) == 2 else 0,))


def mean_squares(gradients: Sequence[tuple[torch.Tensor, Partition]]) -> list[torch.Tensor]:
    """The mean of g^2 over each part: a float32 tensor of the partition's `state_shape` per gradient.

    Gradients may be DTensors; means of parts that one rank has whole are DTensors too, others are on every rank.
    Cost: one pass over memory, and one all-reduce per set of process groups for all parts that are spread over ranks.
    """
    results: list[torch.Tensor] = []
    spread_out: dict[tuple[ProcessGroup, ...], list[torch.Tensor]] = {}
    for gradient, partition in gradients:
        result = _partial(gradient, partition)
        if not is_distributed(result) and (groups := shard_groups(gradient)):
            spread_out.setdefault(groups, []).append(result)
        results.append(result)
    for groups, parts in spread_out.items():
        flat = torch.cat([part.reshape(-1) for part in parts])
        for group in groups:
            all_reduce(flat, group=group)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))
    return results


def _partial(gradient: torch.Tensor, partition: Partition) -> torch.Tensor:
    """What this rank adds to the means of the parts; whole means where its parts are on no other rank."""
    mine, keep, shape = local(gradient), partition.keep, partition.state_shape
    others = [d for d in range(mine.ndim) if d not in keep]
    per = math.prod(partition.shape[d] for d in others)
    norms = torch.linalg.vector_norm(mine, dim=others, keepdim=True, dtype=torch.float32) if others else mine.float()
    sums = norms.square() / per
    if not keep:
        return sums.sum()
    if partition.index is None:
        if not is_distributed(gradient):
            return sums
        cut = [placement.dim for placement in gradient.placements if not placement.is_replicate()]  # pyright: ignore[reportAttributeAccessIssue]
        if set(cut) <= set(keep):
            from torch.distributed.tensor import DTensor  # costs more than torch itself, and is imported by now

            whole = torch.empty(shape, device="meta")
            return DTensor.from_local(
                sums, gradient.device_mesh, gradient.placements, shape=whole.shape, stride=whole.stride()
            )
    total = sums.new_zeros(shape)
    if partition.index is None:
        if keep[1:]:
            raise ValueError(
                f"{partition.name} of shape {partition.shape} is sharded inside its rows. Rule: along dimension "
                f"{' or '.join(map(str, keep))}. Shard it so, or leave it to AdamW."
            )
        start, stop = local_rows(gradient, keep[0], partition.name)
        total.narrow(keep[0], start, stop - start).add_(sums)
        return total
    sizes = torch.bincount(partition.index.to(mine.device))
    total.view(-1).index_add_(0, partition.index_of(gradient), sums.reshape(-1))
    return total.div_(sizes.view(shape))


def spread(second: torch.Tensor, partition: Partition, p: torch.Tensor) -> torch.Tensor:
    """The second moment of the entries of a parameter that this rank has, so that it broadcasts to them."""
    if not partition.keep:
        return second
    if partition.index is not None:
        return second.index_select(partition.keep[0], partition.index_of(p))
    dim = partition.keep[0]
    start, stop = local_rows(p, dim, partition.name)
    mine = second.shape[dim] == stop - start  # else all rows are on every rank
    return second if mine else second.narrow(dim, start, stop - start)
