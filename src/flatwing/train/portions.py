"""A global batch cut into the portions that one rank computes one after the other, with their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch

Portion = tuple[Any, float]


def portions(batch: Any, micro_batch: int | None = None, rank: int = 0, ranks: int = 1) -> list[Portion]:
    """The micro-batches of this rank, each with its share of the rows of the global batch.

    The batch is a tensor, or tuples, lists and dicts of tensors, with one row per sample; rank r takes every `ranks`-th
    row from row r on, in as many micro-batches as the rank with the most rows needs so that none has more than
    `micro_batch` rows. Mean losses times these weights, summed over all micro-batches of all ranks, are the mean loss
    of the global batch, also where the last ones are smaller. A batch that is not to be cut may be anything.

    Raises `ValueError` if a micro-batch would be empty or rows cannot be told.

    >>> [(rows.tolist(), weight) for rows, weight in portions(torch.arange(5), micro_batch=2)]
    [([0, 1], 0.4), ([2, 3], 0.4), ([4], 0.2)]
    """
    if micro_batch is None and ranks == 1:
        return [(batch, 1.0)]
    total = rows_of(batch)
    most = ceil(total / ranks)
    count = ceil(most / (micro_batch or most or 1))
    if total // ranks < count or total == 0:
        raise ValueError(
            f"a batch of {total} rows for {ranks} ranks with {count} micro-batches each. Rule: a row for each. "
            f"Nearest good value: a batch of {ranks * max(count, 1)}, or fewer ranks."
        )
    own = torch.arange(rank, total, ranks)
    # all ranks need the same number of micro-batches, because each of them talks to the others
    return [(take_rows(batch, part), len(part) / total) for part in torch.tensor_split(own, count)]


def rows_of(batch: Any) -> int:
    """Number of rows of all tensors of a batch; raises `ValueError` where they differ or there is none.

    >>> rows_of((torch.zeros(3, 2), {"y": torch.zeros(3)}))
    3
    """
    sizes = {len(tensor) if tensor.ndim else None for tensor in _tensors(batch)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"a batch of type {type(batch).__name__} has rows {sorted(map(str, sizes))}. Rule: tensors with one row "
            "per sample. Draw a tensor or a tuple of tensors, or leave out micro_batch and ranks."
        )
    return next(iter(sizes)) or 0


def take_rows(batch: Any, rows: torch.Tensor) -> Any:
    """These rows of all tensors of a batch.

    >>> take_rows((torch.arange(4), torch.arange(4) * 2), torch.tensor([3]))
    (tensor([3]), tensor([6]))
    """
    return _each(batch, lambda tensor: tensor[rows.to(tensor.device)])


def to_device(batch: Any, device: torch.device) -> Any:
    """All tensors of a batch on a device.

    >>> to_device([torch.ones(1)], torch.device("cpu"))
    [tensor([1.])]
    """
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each(batch: Any, change: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _each(value, change) for key, value in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        changed = [_each(value, change) for value in batch]
        if hasattr(batch, "_fields"):
            return type(batch)(*changed)  # a named tuple
        return changed if isinstance(batch, list) else tuple(changed)
    return batch


def _tensors(batch: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _each(batch, found.append)
    return found
