"""Blockwise learning rates: flat blocks of a transformer take larger steps than sharp ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..core import require_number
from .block_rows import BlockRows
from .blocks import Blocks, Entry, Rules, classify_blocks
from .check import require_flag
from .curvature import Forward
from .groups import Groups, make_group
from .registry import Method, add
from .sharpness import block_sharpness, ratios_of

# for LLaMA and GPT-2 with vocabularies of 32 000 and more; the head's is that of the authors' script, other is ours
PUBLISHED = {"emb": 10.0, "qk": 8.0, "ffn": 6.0, "vo": 4.0, "norm": 1.0, "head": 1.0, "other": 1.0}
FUSED_WAYS = ("refuse", "min", "rows")


def blockwise_lr(
    model: nn.Module,
    lr: float,
    ratios: str | Mapping[str, float] = "published",
    *,
    weight_decay: float | None = None,
    decouple_wd: bool = False,
    fused: str = "refuse",
    params: Iterable[nn.Parameter] | None = None,
    forward: Forward | Sequence[Forward] | None = None,
    rules: Rules | None = None,
) -> Groups:
    """Parameter groups for any optimizer, one per block, each with its own learning rate `ratio * lr`.

    Args:
        lr: learning rate of a block of ratio 1, in the unit of the optimizer that takes the groups; for the published
            ratios, the one that is best for plain AdamW.
        ratios: "published": emb 10, qk 8, ffn 6, vo 4, norm 1, head 1, tuned on language models with large
            vocabularies, and wrong where the embedding is not flat, as on bytes it need not be; "measured":
            `ratios_of` the `block_sharpness` of this model now, which needs `forward`; or a mapping from blocks to
            ratios.
        weight_decay: "weight_decay" of every group; not mentioned if None.
        decouple_wd: divide it by the ratio. AdamW decays by lr * weight_decay, so a block of ratio r decays r times as
            fast; decoupled, all decay equally fast.
        fused: what happens to a tensor that holds rows of blocks with different ratios (fused queries, keys, values):
            "refuse"; "min", its smallest ratio; "rows", its largest ratio, with the rest left to `BlockRows`, which
            must then go around the optimizer.
        params: only these, for instance what Muon leaves to AdamW; all trainable ones by default.
        forward: for "measured": a function that returns logits of a batch, as for `block_sharpness`; under DDP or FSDP2
            it calls their module, so that all ranks measure the same.
        rules: as for `classify_blocks`.

    Each group has "params", "param_names", "block" ("qk+vo" for a fused tensor), "lr" and "ratio"; `blockwise_schedule`
    reads the last. With all ratios 1 training is bit for bit as with one group, for optimizers that treat weights
    alike. Gradient clipping is by global norm and knows nothing of blocks.
    Raises `ValueError` for ratios that are not positive and finite or that miss a block, for "measured" without
    `forward`, for complex parameters, where `classify_blocks` does, and for fused tensors as said.
    Cost: none; "measured", 20 forward and backward passes, once.
    Source: Wang et al. 2025, "The Sharpness Disparity Principle in Transformers" (arXiv:2502.19002).

    >>> class Tiny(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embed, self.norm, self.head = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5)
    >>> groups = blockwise_lr(Tiny(), 1e-3)
    >>> {group["block"]: group["lr"] for group in groups}
    {'emb': 0.01, 'norm': 0.001, 'head': 0.001}
    >>> optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    """
    _check(lr, weight_decay, decouple_wd, fused)
    for name, p in model.named_parameters():
        if p.is_complex() and p.requires_grad:
            raise ValueError(f"{name} is complex. Rule: real, as the sharpness of blocks is defined for real weights.")
    blocks = classify_blocks(model, rules)
    table = ratio_table(model, blocks, ratios, forward)
    only = None if params is None else set(params)
    if only is not None and (missing := only - {entry.parameter for entry in blocks}):
        shape = tuple(next(iter(missing)).shape)
        raise ValueError(
            f"params has one of shape {shape} that is not in the model. Rule: trainable ones of the model."
        )
    members: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in blocks:
        if only is None or entry.parameter in only:
            members[entry.blocks].append(entry)
    groups = Groups()
    for names, entries in members.items():
        own = [table[block] for block in names]
        mixed = len(set(own)) > 1
        if mixed and (fused == "refuse" or (decouple_wd and fused == "rows")):
            raise ValueError(
                f"{entries[0].name} holds rows of {', '.join(f'{b} (ratio {table[b]:g})' for b in names)}. "
                + "Rule: one learning rate per tensor"
                + (", and rows cannot decay at rates of their own. Write " if fused == "rows" else ". Write ")
                + ("" if decouple_wd else "fused='rows' and put flatwing.optim.BlockRows around the optimizer, or ")
                + "fused='min' for the smaller ratio, or split the layer."
            )
        ratio = min(own) if fused == "min" else max(own)
        settings: dict[str, Any] = {"block": "+".join(names), "lr": ratio * lr, "ratio": ratio}
        if weight_decay is not None:
            settings["weight_decay"] = weight_decay / ratio if decouple_wd else weight_decay
        if mixed and fused == "rows":
            settings |= {"row_blocks": names, "row_ratios": tuple(own), "row_scales": tuple(r / ratio for r in own)}
        groups.append(make_group(((entry.name, entry.parameter) for entry in entries), **settings))
    return groups


def ratio_table(
    model: nn.Module, blocks: Blocks, ratios: str | Mapping[str, float], forward: Forward | Sequence[Forward] | None
) -> dict[str, float]:
    """The ratio of every block that the model has, from what `blockwise_lr` was given."""
    present = [block for block, count in blocks.counts.items() if count]
    if isinstance(ratios, str):
        if ratios not in ("published", "measured"):
            raise ValueError(
                f"ratios is {ratios!r}. Rule: 'published', 'measured', or a mapping from blocks to numbers."
            )
        if ratios == "measured":
            if forward is None:
                raise ValueError(
                    "ratios='measured' needs a batch. Pass forward=lambda: model(x), which returns logits."
                )
            return ratios_of(block_sharpness(model, forward, blocks=blocks).mean)
        return {block: PUBLISHED[block] for block in present}
    for block, ratio in ratios.items():
        if block not in PUBLISHED:
            raise ValueError(f"ratios has the block {block!r}. Known: {', '.join(PUBLISHED)}.")
        require_number(f"the ratio of {block}", ratio, above=0, good=1.0, advice="Or freeze the block.")
    if absent := [block for block in present if block not in ratios]:
        raise ValueError(
            f"ratios has no {', '.join(absent)}. Rule: every block of the model. Add {{{absent[0]!r}: 1.0}}; "
            f"the first such tensor is {blocks[absent[0]][0].name}."
        )
    return {block: float(ratios[block]) for block in present}


def _check(lr: Any, weight_decay: Any, decouple_wd: bool, fused: str) -> None:
    for name, value in {"lr": lr, "weight_decay": weight_decay or 0.0}.items():
        require_number(name, value, 0.0, good=1e-3 if name == "lr" else 0.1)
    require_flag("decouple_wd", decouple_wd)
    if decouple_wd and weight_decay is None:
        raise ValueError("decouple_wd needs weight_decay. Rule: the groups then carry it. Write weight_decay=0.1.")
    if fused not in FUSED_WAYS:
        raise ValueError(f"fused is {fused!r}. Known: {', '.join(map(repr, FUSED_WAYS))}.")


def _make(model: nn.Module, base: Callable[[Any], Optimizer], lr: float | None = None, **settings: Any) -> Optimizer:
    rate = base([nn.Parameter(torch.zeros(1, 1))]).defaults["lr"] if lr is None else lr
    return BlockRows(base(blockwise_lr(model, rate, fused="rows", **settings)), model)


add(
    Method(
        name="blockwise_lr",
        summary="a learning rate per block: embeddings, queries and keys, feed-forward, values and outputs, norms",
        paper="Wang et al. 2025, The Sharpness Disparity Principle in Transformers, arXiv:2502.19002",
        lr_unit="the base's, for a block of ratio 1",
        passes=1.0,
        bytes=0.0,
        memory="a copy of fused tensors, during the step only",
        make=_make,
        off={"ratios": dict.fromkeys(PUBLISHED, 1.0)},
    )
)
