"""How sharp the loss is in each block of a network, and what learning rates that suggests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from typing_extensions import override

from ..core import require_number, require_whole
from .blocks import Blocks, Entry, Part, classify_blocks
from .curvature import Forward, sampled_diagonal
from .rows import local_rows
from .sharded import SUM, local, over_shards

EXPONENT, CAP = 0.5, 10.0


@final
@dataclass(frozen=True, slots=True)
class BlockSharpness:
    """The average sharpness of each block: the mean diagonal entry of the Gauss-Newton matrix over its parameters.

    `mean` is in loss per squared unit of a weight; `error` is the standard error over label draws, None for one draw.
    Blocks without parameters are absent. Prints as a table, the sharpest block first.
    """

    mean: dict[str, float]
    error: dict[str, float | None]
    draws: int

    @override
    def __str__(self) -> str:
        ratios = ratios_of(self.mean) if any(self.mean.values()) else dict.fromkeys(self.mean, 1.0)
        lines = [f"{'block':<6}{'sharpness':>12}{'std. error':>12}{'ratio':>8}   ({self.draws} label draws)"]
        for block, mean in sorted(self.mean.items(), key=lambda item: -item[1]):
            error = self.error[block]
            shown = "unknown" if error is None else f"{error:.1e}"
            lines.append(f"{block:<6}{mean:>12.3e}{shown:>12}{ratios[block]:>8.2f}")
        return "\n".join(lines)


def block_sharpness(
    model: nn.Module,
    forward: Forward | Sequence[Forward],
    *,
    draws: int = 20,
    seed: int = 0,
    blocks: Blocks | None = None,
) -> BlockSharpness:
    """S(block) = N |g|^2 / #block with labels drawn from the model, as a mean over draws with its standard error.

    `forward` returns logits (..., classes) of one batch, as for `sampled_diagonal`; N is the number of their rows. At
    initialisation the order of the blocks says little: measure after a few per cent of training, with a batch of
    training data. Weights, gradients, buffers and the random state are left as they were.
    Raises what `sampled_diagonal` and `classify_blocks` raise. Cost: `draws` forward and backward passes.
    Source: Wang et al. 2025, "The Sharpness Disparity Principle in Transformers" (arXiv:2502.19002).

    >>> layer = nn.Linear(2, 3)
    >>> list(block_sharpness(layer, lambda: layer(torch.ones(4, 2))).mean)
    ['ffn']
    """
    blocks = classify_blocks(model) if blocks is None else blocks
    params = [entry.parameter for entry in blocks]
    require_whole("draws", draws, good=20)
    found: dict[str, list[float]] = {block: [] for block, count in blocks.counts.items() if count}
    for draw in range(draws):
        diagonal = sampled_diagonal(forward, params, seed=seed, step=draw, model=model)
        for block, values in found.items():
            owners, sums = [], []
            for entry, values_of_entry in zip(blocks, diagonal, strict=True):
                parts = [part for part in entry.parts if part.block == block]
                owners += [entry.parameter] * len(parts)
                sums += [part_of(local(values_of_entry), entry, part).double().sum() for part in parts]
            values.append(float(over_shards(owners, sums, SUM)) / blocks.counts[block])
    mean = {block: sum(values) / draws for block, values in found.items()}
    error: dict[str, float | None] = dict.fromkeys(found)
    if draws > 1:
        for block, values in found.items():
            variance = sum((value - mean[block]) ** 2 for value in values) / (draws - 1)
            error[block] = math.sqrt(variance / draws)
    return BlockSharpness(mean, error, draws)


def ratios_of(sharpness: Mapping[str, float], *, exponent: float = EXPONENT, cap: float = CAP) -> dict[str, float]:
    """Learning rate of each block over that of the sharpest: min(cap, (largest sharpness / sharpness)^exponent).

    Why 1/2: Adam divides by the root of the second moment of the gradient, which is proportional to the sharpness S of
    a block, so along it the loss seen by Adam has curvature S / sqrt(S), and a step is stable up to a learning rate
    proportional to S^(-1/2). On the sharpness that Wang et al. (2025) print for a LLaMA of 0.25 billion parameters the
    rule gives emb 6.0, qk 4.5, ffn 3.3, vo 2.4, norm 1; their hand-tuned ratios 10, 8, 6, 4, 1 are steeper (exponent
    0.64 to 0.80). For SGD, which does not divide, exponent 1 is the stability limit. The cap is their largest ratio.
    Raises `ValueError` for sharpness that is negative or not finite, or zero throughout.

    >>> ratios_of({"norm": 16.0, "ffn": 4.0, "emb": 0.0})
    {'norm': 1.0, 'ffn': 2.0, 'emb': 10.0}
    """
    require_number("exponent", exponent, 0, good=EXPONENT)
    require_number("cap", cap, 1, good=CAP)
    for block, value in sharpness.items():
        require_number(f"sharpness of {block}", value, 0, good=1.0, advice="Measure on a stable model.")
    top = max(sharpness.values(), default=0.0)
    if top == 0:
        raise ValueError("sharpness is 0 in all blocks. Rule: one above 0. Measure where the loss has a gradient.")
    return {block: min(cap, (top / value) ** exponent) if value else cap for block, value in sharpness.items()}


def part_of(tensor: torch.Tensor, entry: Entry, part: Part) -> torch.Tensor:
    """The rows of a part in what this rank holds of a tensor in the shape of the entry's parameter; a view."""
    if len(entry.parts) == 1:
        return tensor
    start, stop = local_rows(entry.parameter, entry.dim, entry.name)
    first, last = (min(max(bound, start), stop) - start for bound in (part.start, part.stop))
    return tensor.narrow(entry.dim, first, last - first)
