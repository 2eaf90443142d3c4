"""Learning rates of rows: what moves the rows of one tensor at different rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from .blocks import Blocks, Entry, classify_blocks
from .sharded import local
from .sharpness import part_of
from .shell import Wrapper


@final
class BlockRows(Wrapper):
    """Around an optimizer of `blockwise_lr(..., fused="rows")`: rows of a fused tensor move at their block's rate.

    The base steps with the group's learning rate; then the move of the rows of block number i of "row_blocks" is
    multiplied by "row_scales"[i], both entries of the group. Rows of scale 1 are untouched, bit for bit. Whatever the
    base adds to a weight is scaled, its weight decay included. Rows of DTensors may be on any rank.

    Args: the optimizer, or several, and the model or its `classify_blocks`. Raises `ValueError` if a group has
    "row_blocks" for a tensor that is not fused so. Cost: a copy of the fused tensors while it steps.

    >>> from flatwing.optim import blockwise_lr
    >>> model = nn.TransformerEncoderLayer(8, 2, 16)
    >>> groups = blockwise_lr(model, 1e-3, fused="rows")
    >>> optimizer = BlockRows(torch.optim.AdamW(groups), model)
    >>> [group["row_scales"] for group in optimizer.param_groups if group["block"] == "qk+vo"]
    [(1.0, 0.5)]
    """

    name = "block_rows"

    def __init__(self, base: Optimizer | Sequence[Optimizer], blocks: Blocks | nn.Module) -> None:
        found = classify_blocks(blocks) if isinstance(blocks, nn.Module) else blocks
        self.entries = {entry.parameter: entry for entry in found if entry.fused}
        super().__init__(base, {"row_blocks": (), "row_ratios": (), "row_scales": ()})

    @override
    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        for p in group["params"] if group["row_blocks"] else ():
            held = self.entries[p].blocks if p in self.entries else ()
            if held != tuple(group["row_blocks"]) or len(group["row_scales"]) != len(held):
                raise ValueError(
                    f"a group has row_blocks {group['row_blocks']} for a tensor of shape {tuple(p.shape)} that holds "
                    f"{held or 'no blocks that this wrapper knows'}. Rule: the same. Pass the model of the groups."
                )

    @override
    def update(self) -> None:
        """Step the base and scale the moves of rows."""
        before: list[tuple[torch.Tensor, Entry, dict[str, float], torch.Tensor]] = []
        for group in self.param_groups:
            scales = dict(zip(group["row_blocks"], group["row_scales"], strict=True))
            if any(scale != 1 for scale in scales.values()):
                before += [
                    (p, self.entries[p], scales, local(p).clone()) for p in group["params"] if p.grad is not None
                ]
        self.base.step()
        for p, entry, scales, old in before:
            move = local(p) - old
            for part in entry.parts:
                if scales[part.block] != 1:
                    rows = part_of(local(p), entry, part)
                    rows.add_(part_of(move, entry, part), alpha=scales[part.block] - 1)
