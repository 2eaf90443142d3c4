"""Rows of data as batches: texts, and rows of any other shape, in parts to fit on, to choose on and to report on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .batch import Batch
from .evaluate import IGNORED
from .source import Source

ROWS = 8192  # positions per batch
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the classes end whose outputs predict the next token
SPLIT = 0.7  # of the user's rows that may be fitted; one half of the rest is held out to choose by, one reported on


def as_batch(item: Any, source: Source | None = None) -> Batch:
    """A `Batch` from a tensor, (inputs, targets), or a dictionary of arguments (with "labels" as targets).

    The "labels" of a dictionary mean what they mean to the network of `source`; see `from_labels`.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, torch.Tensor):
        return Batch((item,))
    if isinstance(item, Mapping):
        kwargs = {key: value for key, value in item.items() if key != "labels"}
        mask, labels = kwargs.get("attention_mask"), item.get("labels")
        batch = Batch((), kwargs, labels, None if mask is None or mask.ndim != 2 else mask.bool())
        if source is None or not isinstance(labels, torch.Tensor):
            return batch
        return replace(batch, targets=from_labels(source, batch.inputs, labels))
    if isinstance(item, Sequence) and len(item) == 2 and all(isinstance(x, torch.Tensor) for x in item):
        return Batch((item[0],), {}, item[1])
    raise TypeError(f"a batch is a {type(item).__name__}. Rule: a tensor, (inputs, targets), or a dictionary.")


def from_labels(source: Source, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The target at each position, of labels as transformers takes them: causal models shift those by themselves.

    So labels of the inputs' shape move one place to the left for a causal language model of transformers, and for any
    other language model where they repeat its inputs. The last position has no target (-100).

    >>> from_labels(Source("", torch.nn.Identity(), "lm", {"kind": "module"}), *[torch.tensor([[5, 6, 7]])] * 2)
    tensor([[   6,    7, -100]])
    """
    if source.task != "lm" or labels.ndim != 2 or labels.shape != inputs.shape:
        return labels
    repeated = bool((labels == inputs)[labels != IGNORED].all())
    of_transformers = source.architecture["kind"] == "transformers"
    if not (type(source.model).__name__.endswith(CAUSAL) if of_transformers else repeated):
        return labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)


def spread_over(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the rows at equal distances: the first ones would be of one text."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def row_parts(count: int, samples: int, mixed: bool = False) -> list[torch.Tensor]:
    """Row numbers of three parts, each in order; at most `samples` of the first.

    The parts of a text are contiguous, for neighbours are alike. Other rows are `mixed`, always in the same way: files
    are often sorted by class, and the last classes would not be fitted.
    """
    first = max(1, min(int(count * SPLIT), count - 2))
    second = max(1, (count - first) // 2)
    rest = max(64, samples // 2)
    ends = ((0, first, samples), (first, first + second, max(64, samples // 4)), (first + second, count, rest))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)) if mixed else torch.arange(count)
    return [spread_over(order[lo:hi].sort().values, limit) for lo, hi, limit in ends]


def token_batches(
    source: Source, ids: torch.Tensor, mask: torch.Tensor | None, targets: torch.Tensor | None
) -> list[Batch]:
    """Batches of texts; networks of transformers get keywords, and never a cache of keys and values."""
    if source.architecture["kind"] != "transformers":
        return text_batches(ids, mask, targets)
    if source.task == "lm" and not type(source.model).__name__.endswith(CAUSAL):
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
