"""Random numbers per weight that depend on the weight's place in its tensor and on nothing else."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64

from .curvature import seed_of
from .sharded import is_distributed, local

WORD = 0xFFFFFFFF
CHUNK = 1 << 16  # entries whose numbers are computed together, in the cache


def random_scores(p: torch.Tensor, key: tuple[int, ...]) -> torch.Tensor:
    """Numbers uniform in [0, 1), one per entry of `p`: float32, a DTensor where `p` is one.

    The number of an entry is a function of `key` and of the entry's place in the whole tensor, so every sharding on
    every number of ranks has the same ones, and no generator is used. Memory: 8 bytes more per entry, for a moment.

    >>> p = torch.zeros(2, 2)
    >>> torch.equal(random_scores(p, (0, 1)), random_scores(p, (0, 1)))
    True
    """
    scores = torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
    places, seed = _places(p).reshape(-1), seed_of(key)
    parts = [_uniform(some, seed) for some in places.split(CHUNK)]
    local(scores).copy_(torch.cat(parts).view(local(scores).shape))
    return scores


def _places(p: torch.Tensor) -> Int64[torch.Tensor, "..."]:
    """The number of each local entry in the whole tensor, counted along rows."""
    shape, offsets = tuple(p.shape), (0,) * p.ndim
    if is_distributed(p):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape, offsets = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    places = torch.zeros((), dtype=torch.int64, device=local(p).device)
    for size, offset, length in zip(shape, offsets, p.shape, strict=True):
        places = places.unsqueeze(-1) * length + torch.arange(offset, offset + size, device=places.device)
    return places


def _uniform(places: Int64[torch.Tensor, "..."], seed: int) -> Float[torch.Tensor, "..."]:
    """A hash of whole numbers, of which 24 bits become a float: rounds of multiplying and folding, in 32 bits."""
    x = (places ^ (seed & WORD)).add_(places >> 32).bitwise_and_(WORD)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, (seed >> 32) * 2 + 1)):
        # factors below 2^31, so that no product overflows 63 bits
        x.bitwise_xor_(x >> shift).mul_(factor & 0x7FFFFFFF | 1).bitwise_and_(WORD)
    return x.bitwise_xor_(x >> 15).bitwise_right_shift_(8).float().mul_(2.0**-24)
