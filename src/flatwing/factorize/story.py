"""Story: the squared errors that the cuts of one factorization made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import final

import numpy as np
from jaxtyping import Float, Int

# (split, place, shape) of each cut in the order in which they were made
Places = tuple[tuple[int, int, tuple[int, int]], ...]


@final
@dataclass(frozen=True, slots=True)
class Story:
    """Squared errors, block by block, of cuts in the order in which they were made; one after the other in `numbers`.

    >>> story = Story.of({2: np.ones((2, 1)), 1: np.zeros((1, 2))})
    >>> story.order, story[2].shape, story.sums(1).tolist()
    ((2, 1), (2, 1), [[2.0], [0.0]])
    """

    numbers: Float[np.ndarray, " numbers"]
    places: Places

    @classmethod
    def of(cls, tails: Mapping[int, Float[np.ndarray, "_ _"]]) -> Story:
        """The story that a mapping from splits to arrays tells; the arrays are copied."""
        places, used = [], 0
        for split, errors in tails.items():
            places.append((split, used, errors.shape))
            used += errors.size
        return cls(np.concatenate([np.empty(0), *(e.reshape(-1) for e in tails.values())]), tuple(places))

    @property
    def order(self) -> tuple[int, ...]:
        """The splits, in the order in which they were cut."""
        return tuple(place[0] for place in self.places)

    def __getitem__(self, split: int) -> Float[np.ndarray, "columns rows"]:
        _, at, shape = next(place for place in self.places if place[0] == split)
        return self.numbers[at : at + prod(shape)].reshape(shape)

    def __iter__(self) -> Iterator[Float[np.ndarray, "columns rows"]]:
        return (self.numbers[at : at + prod(shape)].reshape(shape) for _, at, shape in self.places)

    def sums(self, count: int) -> Float[np.ndarray, "splits batch"]:
        """Sum of each cut over its blocks, for each of `count` matrices."""
        if not self.places:
            return np.empty((0, count))
        starts, end = _starts(self.places, count)
        return np.add.reduceat(self.numbers[:end], starts).reshape(len(self.places), count)

    @property
    def shapes(self) -> Int[np.ndarray, "splits 2"]:
        """The shape of each array."""
        return _shapes(self.places)


@lru_cache(maxsize=256)
def _shapes(places: Places) -> Int[np.ndarray, "splits 2"]:
    return np.array([shape for _, _, shape in places], dtype=np.int64)


@lru_cache(maxsize=256)
def _starts(places: Places, count: int) -> tuple[Int[np.ndarray, " starts"], int]:
    """Where the numbers of each matrix begin within those of each cut, and where all of them end."""
    starts = [at + i * (prod(shape) // count) for _, at, shape in places for i in range(count)]
    return np.array(starts), max(at + prod(shape) for _, at, shape in places)
