"""Numbered samples: a batch is asked for by its numbers, so any process can fetch its own part of it."""

from __future__ import annotations

import abc
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int, Integer, Shaped
from typing_extensions import override

from ..core import require_whole
from .order import visits

Batch = tuple[torch.Tensor, torch.Tensor]
Pieces = Sequence[np.ndarray]
"""A long row of tokens in parts, each of them an array in memory or mapped from a file."""


class Samples(abc.ABC):
    """The samples 0 ... len - 1 of one split.

    Law: `take` is a pure function, and row i of `take(indices)` depends on indices[i] alone. So the batch of a step is
    the same whether one process takes all of its indices or several take disjoint parts.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abc.abstractmethod
    def take(self, indices: Integer[torch.Tensor, " batch"]) -> Batch:
        """Inputs (batch, ...) and targets of these samples, on the CPU; raises `ValueError` for numbers out of range.

        The shapes are those of `Rows` or `Windows`.
        """

    def indices(self, step: int, batch_size: int, seed: int = 0) -> Int[torch.Tensor, " batch"]:
        """Numbers of the samples of a global batch: a pure function, each epoch visits every sample exactly once.

        Step k takes the places k * batch_size ... (k + 1) * batch_size - 1 of `visits`. Rank r of R ranks takes
        `indices[r::R]`; a run whose batch size changes counts samples, and calls `visits(seen, batch_size, ...)`.
        Raises `ValueError` for a negative step or a batch size below 1.
        """
        step, batch_size = require_whole("step", step, 0), require_whole("batch_size", batch_size)
        return visits(step * batch_size, batch_size, len(self), seed)

    def each(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """All samples in order, in batches of `batch_size` (the last may be smaller), for evaluation.

        With `limit` that many samples, spread evenly over all. Raises `ValueError` for sizes below 1, before the first
        batch is drawn.
        """
        batch_size = require_whole("batch_size", batch_size)
        count = len(self) if limit is None else min(require_whole("limit", limit), len(self))
        numbers = torch.arange(count) * len(self) // count
        return (self.take(part) for part in numbers.split(batch_size))

    def _checked(self, indices: torch.Tensor) -> torch.Tensor:
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise ValueError(f"there is no sample {int(outside[0])}. Rule: 0 ... {len(self) - 1}.")
        return indices.long()


@final
class Rows(Samples):
    """Rows of x (n, ...) with their labels y (n,): inputs (batch, ...), targets (batch,); copied when taken.

    Raises `ValueError` for unequal lengths or no rows.

    >>> Rows(torch.eye(3), torch.tensor([5, 6, 7])).take(torch.tensor([2, 0]))[1].tolist()
    [7, 5]
    """

    def __init__(self, x: Shaped[torch.Tensor, "n *shape"], y: Int[torch.Tensor, " k"]) -> None:
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"x has {len(x)} rows, y has {len(y)}. Rule: one label per row, and at least one row.")
        self.x, self.y = x, y

    @override
    def __len__(self) -> int:
        return len(self.y)

    @override
    def take(self, indices: Integer[torch.Tensor, " batch"]) -> Batch:
        """See `Samples.take`."""
        rows = self._checked(indices)
        return self.x[rows], self.y[rows]


@final
class Windows(Samples):
    """Windows of length + 1 tokens out of one long row: inputs are the first `length` of them, targets the last.

    Sample i begins at token i * stride: stride 1 trains at any place, stride `length` predicts each token but the first
    exactly once. Tokens from `vocab` - 1 on are read as `vocab` - 1, so that bytes fit a smaller vocabulary. Inputs and
    targets are int64 (batch, length). The row may lie in several arrays, also memory-mapped ones: only what is taken is
    read. Raises `ValueError` if a size is below 1 or the tokens do not fill one window.

    >>> inputs, targets = Windows([np.arange(9)], length=4, stride=4).take(torch.tensor([1]))
    >>> inputs.tolist(), targets.tolist()
    ([[4, 5, 6, 7]], [[5, 6, 7, 8]])
    """

    def __init__(self, pieces: Pieces, length: int, stride: int = 1, vocab: int = 256) -> None:
        for name, value in (("length", length), ("stride", stride), ("vocab", vocab)):
            require_whole(name, value)
        self.pieces = [piece for piece in pieces if len(piece)]
        self.ends = list(accumulate(len(piece) for piece in self.pieces))
        self.length, self.stride, self.vocab = length, stride, vocab
        if self.tokens < length + 1:
            near = f"Nearest good value: {self.tokens - 1}." if self.tokens > 1 else "Give a longer text."
            raise ValueError(f"length is {length} for {self.tokens} tokens. Rule: at most one less than tokens. {near}")

    @property
    def tokens(self) -> int:
        """Length of the whole row."""
        return self.ends[-1] if self.ends else 0

    @override
    def __len__(self) -> int:
        return (self.tokens - self.length - 1) // self.stride + 1

    @override
    def take(self, indices: Integer[torch.Tensor, " batch"]) -> Batch:
        """See `Samples.take`."""
        starts = (self._checked(indices) * self.stride).numpy()
        if len(self.pieces) == 1:
            found = self.pieces[0][starts[:, None] + np.arange(self.length + 1)]
        else:
            found = np.stack([self._window(start) for start in starts.tolist()])
        rows = torch.from_numpy(np.minimum(found.astype(np.int64), self.vocab - 1))
        return rows[:, :-1], rows[:, 1:]

    def _window(self, start: int) -> np.ndarray:
        stop, parts = start + self.length + 1, []
        k = bisect_right(self.ends, start)
        while start < stop:
            begin = self.ends[k] - len(self.pieces[k])
            parts.append(self.pieces[k][start - begin : stop - begin])
            start, k = self.ends[k], k + 1
        return np.concatenate(parts)


def cut(pieces: Pieces, start: int, stop: int) -> list[Any]:
    """The tokens start ... stop - 1 of a row in pieces, without a copy.

    >>> cut([np.arange(4), np.arange(4, 9)], 2, 6)
    [array([2, 3]), array([4, 5])]
    """
    found, begin = [], 0
    for piece in pieces:
        part = piece[max(start - begin, 0) : max(stop - begin, 0)]
        begin += len(piece)
        if len(part):
            found.append(part)
    return found
