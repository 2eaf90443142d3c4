"""The order in which samples are visited: computed from place and seed, never stored, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

from ..core import require_whole

ROUNDS = 10  # measured on orders of five samples: places are uneven by 12 % with 4 rounds, by 1 % with 10
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: multiples of it spread over all 64 bits
WORD = (1 << 64) - 1


def visits(first: int, count: int, size: int, seed: int = 0) -> Int[torch.Tensor, " count"]:
    """Sample numbers in 0 ... size - 1 at the places first ... first + count - 1 of an endless shuffled sequence.

    The sequence is epoch after epoch: each `size` places from a multiple of `size` on visit every sample exactly once,
    in an order drawn by (seed, epoch). A pure function: a run that goes on at place p needs to know only p, and ranks
    that cut one range of places among them share no sample within an epoch. Raises `ValueError` for a negative place or
    a size or count below 1. Cost: O(count) time and memory whatever the size; 16 places take about 0.5 ms.

    The order of an epoch is a Feistel network over the bits of the place; places that it sends beyond `size` are sent
    on until they fall inside (Black and Rogaway, Ciphers with arbitrary finite domains, 2002: cycle walking).

    >>> visits(0, 5, size=5).sort().values.tolist(), torch.equal(visits(3, 4, 9), visits(0, 9, 9)[3:7])
    ([0, 1, 2, 3, 4], True)
    """
    for name, value, least in (("first", first, 0), ("count", count, 1), ("size", size, 1)):
        require_whole(name, value, least)
    places = np.arange(first, first + count, dtype=np.uint64)
    epochs, inside = np.divmod(places, np.uint64(size))
    keys = _mix(_mix(np.full(count, seed & WORD, dtype=np.uint64)) + epochs * np.uint64(GOLDEN))
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    numbers = _encrypt(inside, keys, half)
    while (outside := np.flatnonzero(numbers >= size)).size:
        numbers[outside] = _encrypt(numbers[outside], keys[outside], half)
    return torch.from_numpy(numbers.astype(np.int64))


def _encrypt(x: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """A permutation of 0 ... 4^half - 1 for each key: every round can be undone, whatever `_mix` does."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> shift, x & mask
    for turn in range(1, ROUNDS + 1):
        left, right = right, left ^ (_mix(right + keys + np.uint64(turn * GOLDEN & WORD)) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Each output bit depends on each input bit: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
