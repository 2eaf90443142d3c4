"""Rows of data as batches: texts, and rows of any other shape, in parts to fit on, to choose on and to report on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .batch import Batch
from .source import Source

ROWS = 8192  # positions per batch
SPLIT = 0.7  # of the user's rows that may be fitted; one half of the rest is held out to choose by, one reported on


def as_batch(item: Any) -> Batch:
    """A `Batch` from a tensor, (inputs, targets), or a dictionary of arguments (with "labels" as targets)."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, torch.Tensor):
        return Batch((item,))
    if isinstance(item, Mapping):
        kwargs = {key: value for key, value in item.items() if key != "labels"}
        mask = kwargs.get("attention_mask")
        return Batch((), kwargs, item.get("labels"), None if mask is None or mask.ndim != 2 else mask.bool())
    if isinstance(item, Sequence) and len(item) == 2 and all(isinstance(x, torch.Tensor) for x in item):
        return Batch((item[0],), {}, item[1])
    raise TypeError(f"a batch is a {type(item).__name__}. Rule: a tensor, (inputs, targets), or a dictionary.")


def spread_over(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the rows at equal distances: the first ones would be of one text."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def row_parts(count: int, samples: int) -> list[torch.Tensor]:
    """Row numbers of three contiguous parts, for neighbours are alike; at most `samples` of the first."""
    first = max(1, min(int(count * SPLIT), count - 2))
    second = max(1, (count - first) // 2)
    rest = max(64, samples // 2)
    ends = ((0, first, samples), (first, first + second, max(64, samples // 4)), (first + second, count, rest))
    return [spread_over(torch.arange(lo, hi), limit) for lo, hi, limit in ends]


def token_batches(
    source: Source, ids: torch.Tensor, mask: torch.Tensor | None, targets: torch.Tensor | None
) -> list[Batch]:
    """Batches of texts; networks of transformers get keywords, and never a cache of keys and values."""
    if source.architecture["kind"] != "transformers":
        return text_batches(ids, mask, targets)
    if source.task == "lm" and not type(source.model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        targets = None  # a masked language model predicts no next token
    if source.task == "other" or (source.task == "classification" and targets is not None and targets.ndim > 1):
        targets = None  # the next token is no class
    extra = {"use_cache": False} if hasattr(getattr(source.model, "config", None), "use_cache") else {}
    batches = []
    for rows in _chunks(len(ids), max(1, ROWS // ids.shape[1])):
        kwargs: dict[str, Any] = {"input_ids": ids[rows], **extra}
        own = None if mask is None else mask[rows]
        if own is not None:
            kwargs["attention_mask"] = own.long()
        batches.append(Batch((), kwargs, None if targets is None else targets[rows], own))
    return batches


def text_batches(
    ids: torch.Tensor, mask: torch.Tensor | None = None, targets: torch.Tensor | None = None
) -> list[Batch]:
    """Batches of texts for networks that are called with tokens alone."""
    return [
        Batch((ids[rows],), {}, None if targets is None else targets[rows], None if mask is None else mask[rows])
        for rows in _chunks(len(ids), max(1, ROWS // ids.shape[1]))
    ]


def row_batches(x: torch.Tensor, y: torch.Tensor | None = None, key: str | None = None) -> list[Batch]:
    """Batches of rows of any shape."""
    batches = []
    for rows in _chunks(len(x), 256):
        own = None if y is None else y[rows]
        batches.append(Batch((x[rows],), {}, own) if key is None else Batch((), {key: x[rows]}, own))
    return batches


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
