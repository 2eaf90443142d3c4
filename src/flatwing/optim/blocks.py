"""The parameters of a network by block: embeddings, head, norms, queries and keys, values and outputs, feed-forward."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import final

from torch import nn
from torch.nn.parameter import is_lazy
from typing_extensions import override

from ..nn import StructuredLayer
from .check import require_model, require_rules
from .roles import BLOCK_OF, FUSED, Site, heads_of, is_linear, role_of, sites, word

BLOCKS = ("emb", "head", "norm", "qk", "vo", "ffn", "other")
Rules = Sequence[tuple[str, str]]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """The rows `start` ... `stop` of a parameter, counted along the output dimension, and the block they are in.

    `heads` is the number of attention heads in them, where they are whole heads of queries or keys; else None.
    """

    block: str
    start: int
    stop: int
    heads: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One trainable parameter: its name without wrappers, where else it stands, and which rows are in which block.

    `dim` is the dimension of the outputs: 0, or 1 for a layer that stores the transpose (Conv1D of transformers), or
    the last but one of stacked experts. `parts` cover it exactly once, in order. `reason` is the rule that decided.
    """

    name: str
    aliases: tuple[str, ...]
    parameter: nn.Parameter
    dim: int
    parts: tuple[Part, ...]
    reason: str

    @property
    def fused(self) -> bool:
        """Whether rows of several blocks share this parameter."""
        return len(set(self.blocks)) > 1

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks of the rows, each once, in order of appearance."""
        return tuple(dict.fromkeys(part.block for part in self.parts))

    @property
    def block(self) -> str:
        """The one block; raises `ValueError` where rows of several share the parameter."""
        if self.fused:
            raise ValueError(f"{self.name} holds rows of {', '.join(self.blocks)}. Rule: one block. Use its parts.")
        return self.parts[0].block

    def count(self, block: str) -> int:
        """Number of entries of the parameter that are in a block."""
        rows = sum(part.stop - part.start for part in self.parts)
        mine = sum(part.stop - part.start for part in self.parts if part.block == block)
        return self.parameter.numel() * mine // rows if rows else 0


@final
@dataclass(frozen=True, slots=True)
class Blocks:
    """Which block each trainable parameter is in; iterates over the entries, prints as a table.

    `frozen` counts the numbers that do not require grad; they are in no block.
    """

    entries: tuple[Entry, ...]
    frozen: int = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, block: str) -> tuple[Entry, ...]:
        """The entries that are in a block, wholly or in part; raises `ValueError` for an unknown block."""
        _require_block(block)
        return tuple(entry for entry in self if block in entry.blocks)

    @property
    def counts(self) -> dict[str, int]:
        """Number of parameters per block, in the order of `BLOCKS`."""
        return {block: sum(entry.count(block) for entry in self) for block in BLOCKS}

    @override
    def __str__(self) -> str:
        total = max(1, sum(self.counts.values()))
        lines = [f"{'block':<7}{'parameters':>14}{'share':>8}  tensors"]
        for block, count in self.counts.items():
            if names := [entry.name for entry in self[block]]:
                shown = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
                lines.append(f"{block:<7}{count:>14,}{100 * count / total:>7.1f}%  {len(names)}: {shown}")
        lines += [f"{'frozen':<7}{self.frozen:>14,}"] if self.frozen else []
        lines += [f"split by rows: {entry.name} into {', '.join(entry.blocks)}" for entry in self if entry.fused]
        lines += [f"tied: {entry.name} is also {', '.join(entry.aliases)}" for entry in self if entry.aliases]
        return "\n".join(lines)


def classify_blocks(model: nn.Module, rules: Rules | None = None) -> Blocks:
    """Put every trainable parameter of a model into one of the blocks emb, head, norm, qk, vo, ffn and other.

    Args:
        model: any module; wrappers (DDP, FSDP, `torch.compile`) do not change the answer.
        rules: pairs (regex, block), tried in order with `re.search` on the name without wrappers, before the built-in
            rules. A block may also be how a fused projection lies: "qkv" or "kv", one after another, or "qkv-per-head".

    Built-in rules, first match wins: routers and relative positions are other; norms; heads; embeddings (also of
    positions and patches); queries and keys, values and outputs of attention; feed-forward layers and any linear layer
    outside attention; convolutions and vectors of no layer are other. A bias is in the block of its layer. A fused
    projection has parts, so have its heads. A tensor with several names (tied embeddings) is one entry; it is emb if
    any of its names is. The rule of Wang et al. 2025 (arXiv:2502.19002) for LLaMA, extended to other networks.

    Raises `ValueError` for a rule that matches no parameter, for a parameter that no rule matches, and for a fused
    projection whose layout is unknown; each with a rule that would help. Cost: names only, no tensor is read.

    >>> print(classify_blocks(nn.TransformerEncoderLayer(8, 2, 16)))
    block      parameters   share  tensors
    norm               32    5.3%  4: norm1.weight, norm1.bias, ...
    qk                144   24.0%  2: self_attn.in_proj_weight, self_attn.in_proj_bias
    vo                144   24.0%  4: self_attn.in_proj_weight, self_attn.in_proj_bias, ...
    ffn               280   46.7%  4: linear1.weight, linear1.bias, ...
    split by rows: self_attn.in_proj_weight into qk, vo
    split by rows: self_attn.in_proj_bias into qk, vo
    """
    require_model(model)
    require_rules(rules or (), "[('embed', 'emb')]")
    rules = list(rules or ())
    for _, block in rules:
        if not (isinstance(block, str) and block in FUSED):
            _require_block(block)
    places: dict[nn.Parameter, list[Site]] = defaultdict(list)
    for site in sites(model):
        places[site.parameter].append(site)
    lazy = next((same[0].name for p, same in places.items() if is_lazy(p)), None)
    if lazy:
        raise ValueError(f"{lazy} has no shape yet. Rule: an initialised model. Run one batch through it first.")
    used: set[str] = set()
    entries = [entry for same in places.values() if (entry := _entry(same, rules, used))]
    for pattern, _ in rules:
        if pattern not in used:
            names = [site.name for same in places.values() for site in same]
            raise ValueError(
                f"rule {pattern!r} matched no parameter. Rule: each one matches; the first match wins. "
                f"{nearest(pattern, names)}"
            )
    frozen = sum(p.numel() for p in places if not p.requires_grad)
    return Blocks(tuple(entries), frozen)


def nearest(pattern: str, names: Sequence[str]) -> str:
    """A hint for a pattern that matches none of `names`: the names that look most like it."""
    words = re.sub(r"[^\w.]+", "", pattern)
    close = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, words, name).ratio())[:3]
    return f"Names look like {', '.join(close)}." if close else "The model has no parameters."


def _require_block(block: str) -> None:
    if block not in BLOCKS:
        close = difflib.get_close_matches(str(block), (*BLOCKS, *FUSED), n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown block {block!r}. {hint}Known: {', '.join(BLOCKS)}.")


def _entry(same: Sequence[Site], rules: Rules, used: set[str]) -> Entry | None:
    """The entry of one parameter that stands at several sites; None if it is frozen. Notes the rules it used."""
    answers: list[tuple[str, str, Site]] = []
    for site in same:
        rule = next(((pattern, block) for pattern, block in rules if re.search(pattern, site.name)), None)
        if rule:
            used.add(rule[0])
            answers.insert(0, (rule[1], f"rule {rule[0]!r}", site))
            break
        if builtin := role_of(site):
            answers.append((*builtin, site))
    first = same[0]
    if not first.parameter.requires_grad:
        return None
    if not answers:
        raise ValueError(
            f"{first.name} of shape {tuple(first.parameter.shape)} in a {type(first.modules[-1]).__name__} matches no "
            f"rule. Rule: every parameter is in one block of {', '.join(BLOCKS)}. "
            f"Say in which: rules=[({re.escape(first.name)!r}, 'other')]."
        )
    # the other uses of a tied table are products with it as a whole; that rows are looked up is what makes it flat
    by_name = answers[0][1].startswith("rule")
    role, reason, site = answers[0] if by_name else next((a for a in answers if a[0] == "emb"), answers[0])
    dim = _output_dim(site)
    names = [other.name for other in same]
    return Entry(
        site.name, tuple(n for n in names if n != site.name), site.parameter, dim, _parts(site, role, dim), reason
    )


def _output_dim(site: Site) -> int:
    p = site.parameter
    transposed = "Conv1D" in {kind.__name__ for kind in type(site.modules[-1]).__mro__}
    return 1 if p.ndim == 3 or (p.ndim == 2 and transposed) else 0


def _parts(site: Site, role: str, dim: int) -> tuple[Part, ...]:
    rows = site.parameter.shape[dim] if site.parameter.ndim else 1
    heads = heads_of(site)
    if role not in FUSED:
        own = {"q": 0, "k": 1}.get(role)
        count = heads[own] if heads and own is not None and _stores_rows(site) else None
        return (Part(BLOCK_OF.get(role, role), 0, rows, count if count and rows % count == 0 else None),)
    layout = _layout(site, role, rows, heads) if _stores_rows(site) else None
    if layout is None:
        depth = next((i for i, holder in enumerate(site.modules) if word(site.names[i], holder)), len(site.names))
        layer = re.escape(".".join(site.names[: depth + 1]))
        raise ValueError(
            f"{site.name} of shape {tuple(site.parameter.shape)} is a fused projection of unknown rows. "
            "Rule: the rows of queries, keys and values, with a number of heads on a module around or its config. "
            f"Put it into one block: rules=[({layer!r}, 'vo')], or set num_heads on the module."
        )
    bounds = pairwise([0, *accumulate(size for _, size, _ in layout)])
    return tuple(
        Part(BLOCK_OF[role], a, b, count) for (role, _, count), (a, b) in zip(layout, bounds, strict=True) if a < b
    )


def _stores_rows(site: Site) -> bool:
    """Whether the parameter is the matrix or bias itself, not a factor of it."""
    holder, own = site.modules[-1], site.names[-1]
    dense = is_linear(holder) and own in (("bias",) if isinstance(holder, StructuredLayer) else ("weight", "bias"))
    direct = re.fullmatch(r"(in|[qkv])_proj_(weight|bias)", own) is not None  # nn.MultiheadAttention has no layers
    return site.parameter.ndim <= 2 and (direct or (dense and word(site.names[-2], site.modules[-2]) is not None))


def _layout(
    site: Site, role: str, rows: int, heads: tuple[int, int] | None
) -> list[tuple[str, int, int | None]] | None:
    """Role, number of rows and heads of each piece of a fused projection, in order; None if the sizes do not fit."""
    if role == "kv":
        return None if rows % 2 else [("k", rows // 2, _fits(rows // 2, heads and heads[1])), ("v", rows // 2, None)]
    if heads is None:
        thirds = role == "qkv" and rows == 3 * _inputs(site)
        return [(one, rows // 3, None) for one in FUSED[role]] if thirds else None
    q, k = heads
    width, rest = divmod(rows, q + 2 * k)
    if rest or q % k:
        return None
    if role == "qkv":
        return [("q", q * width, q), ("k", k * width, k), ("v", k * width, None)]
    return [("q", q // k * width, q // k), ("k", width, 1), ("v", width, None)] * k


def _fits(rows: int, heads: int | None) -> int | None:
    return heads if heads and rows % heads == 0 else None


def _inputs(site: Site) -> int:
    """The number of inputs of the layer, 0 if it cannot be told."""
    weight = getattr(site.modules[-1], "weight", getattr(site.modules[-1], "in_proj_weight", None))
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        return 0
    return min(weight.shape)
