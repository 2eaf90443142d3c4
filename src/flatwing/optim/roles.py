"""What a parameter does in its network, read from the name, the kind of its module and the modules around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..nn import StructuredLayer

# queries, keys, values and the projection after them; fused ones lie one after another, or interleaved per group of
# heads that share keys: the queries of the group, its key, its value
FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "qkv-per-head": ("q", "k", "v")}
BLOCK_OF = {"q": "qk", "k": "qk", "v": "vo", "o": "vo"}

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WORDS = {
    **dict.fromkeys(("q", "wq", "query", "queries", "linear_q"), "q"),
    **dict.fromkeys(("k", "wk", "key", "keys", "linear_k"), "k"),
    **dict.fromkeys(("v", "wv", "value", "values", "linear_v"), "v"),
    **dict.fromkeys(("qkv", "wqkv"), "qkv"),
    **dict.fromkeys(("kv", "wkv", "key_value"), "kv"),
    "query_key_value": "qkv-per-head",
}
_DECORATION = re.compile(r"^(to|linear)_(?=.)|(?<=.)(_(proj|projection|lin|linear|attn|layer|weight|bias))+$")
_AFTER_ATTENTION = {
    *("o", "wo", "o_proj", "out_proj", "out_lin", "c_proj", "proj", "proj_out", "to_out", "linear_out", "dense"),
    *("out", "output", "output_proj"),
}
_ROUTER = re.compile(r"router|expert_gate")
_NORM = re.compile(r"norm|layrnorm|^ln(_|\d|$)")
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$|^cls_token$|^mask_token$|^class_token$|^positions$|^pos_emb|^shared$")
_HEAD = re.compile(r"^(lm_head|embed_out|output_projection|classifier|pre_classifier|score|qa_outputs|pooler|cls)$")
_TOP_HEAD = re.compile(r"^(head|heads|fc|out|output|decoder)$")  # in a block these words mean other things
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|experts?$")
_MATRIX_KINDS = {"Conv1D"}  # of transformers: a linear layer that stores the transpose


@final
@dataclass(frozen=True, slots=True)
class Site:
    """Where a parameter stands: the names from the model down to it, and the modules they lead through.

    `modules[i]` holds what `names[i]` calls; the last name is the parameter's own. Names that only wrappers add
    (compilation, DDP, FSDP1, activation checkpointing) are left out.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    parameter: nn.Parameter

    @property
    def name(self) -> str:
        """The full name, dotted."""
        return ".".join(self.names)

    @property
    def layer(self) -> nn.Module:
        """The outermost module on the way that is one layer, else the one that holds the parameter."""
        return next((module for module in self.modules[1:] if is_linear(module)), self.modules[-1])


def sites(model: nn.Module) -> Iterator[Site]:
    """Every parameter of a model at every place where it stands, tied ones several times.

    >>> [site.name for site in sites(nn.Sequential(nn.Linear(2, 2)))]
    ['0.weight', '0.bias']
    """
    for full, parameter in model.named_parameters(remove_duplicate=False):
        names: list[str] = []
        modules: list[nn.Module] = []
        module: Any = model
        for name in full.split("."):
            parallel = isinstance(module, DistributedDataParallel | DataParallel)
            if name not in _WRAPPERS and not parallel:
                names.append(name)
                modules.append(module)
            module = getattr(module, name)
        yield Site(tuple(names), tuple(modules), parameter)


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix, dense or structured.

    >>> is_linear(nn.Linear(2, 2)), is_linear(nn.Embedding(2, 2))
    (True, False)
    """
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return isinstance(module, nn.Linear | StructuredLayer) or bool(kinds & _MATRIX_KINDS)


def role_of(site: Site) -> tuple[str, str] | None:
    """What the parameter does and why we think so, None if no rule applies.

    The role is "q", "k", "v", "o", a key of `FUSED`, or "emb", "head", "norm", "ffn", "other". First rule that holds
    wins; normalisation comes before attention because of `q_norm`, heads before embeddings because of `embed_out`.
    """
    path = [name.lower() for name in site.names]
    *outer, leaf = path
    kind = type(site.modules[-1]).__name__
    if any(_ROUTER.search(name) for name in path) or _routes(site):
        return "other", "router of a mixture of experts"
    if "relative" in site.name.lower():
        return "other", "table of relative positions"
    small = site.parameter.ndim <= 1
    if (
        re.search(r"Norm\d?d?$", kind)
        or (small and outer and _NORM.search(outer[-1]))
        or (small and _NORM.search(leaf))
    ):
        return "norm", "normalisation"
    if any(_HEAD.search(name) for name in outer):
        return "head", "after the blocks"
    if found := attention_role(site):
        return found, "attention"
    numbered = any(name.isdigit() for name in path[1:])
    if outer and not numbered and _TOP_HEAD.search(outer[-1]):
        return "head", "after the blocks"
    if isinstance(site.modules[-1], nn.Embedding) or any(_EMBEDDING.search(name) for name in path):
        return "emb", "embedding"
    if any(_FEED_FORWARD.search(name) for name in outer):
        return "ffn", "feed-forward"
    if is_linear(site.layer):
        # what stands in attention and is not known there may be anything: the user has to say
        return None if _in_attention(site) and not small else ("ffn", "linear layer outside attention")
    if small or isinstance(site.modules[-1], nn.modules.conv._ConvNd):
        return "other", "convolution" if not small else "vector that belongs to no layer"
    return None


def attention_role(site: Site) -> str | None:
    """The role in attention of the deepest name that has one, where queries and keys stand next to it."""
    for depth in reversed(range(len(site.names))):
        name, holder = site.names[depth].lower(), site.modules[depth]
        around = {word(own, holder) for own in neighbours(holder)}
        attends = {"q", "k"} <= around or {"q", "kv"} <= around or bool({"qkv", "qkv-per-head"} & around)
        role = word(name, holder)
        if attends and role:
            return role
        if name in _AFTER_ATTENTION and (attends or "attention" in site.names[max(0, depth - 1) : depth]):
            return "o"
    return None


def word(name: str, holder: nn.Module) -> str | None:
    """The role that a name in an attention module says: "q", "k", "v" or fused, else None.

    >>> [word(name, nn.Module()) for name in ("q_proj", "to_kv", "Wqkv", "up")]
    ['q', 'kv', 'qkv', None]
    """
    name = name.lower()
    if name == "c_attn":
        return "kv" if getattr(holder, "is_cross_attention", False) else _big_code(holder)
    if name in ("in_proj_weight", "in_proj_bias"):
        return "qkv"
    if name in ("bias_k", "bias_v"):
        return name[-1]
    return _WORDS.get(name) or _WORDS.get(_DECORATION.sub("", name))


def neighbours(holder: nn.Module) -> list[str]:
    """The names of the modules and parameters that a module holds itself.

    >>> neighbours(nn.Linear(2, 2))
    ['weight', 'bias']
    """
    return [name for name, _ in (*holder.named_children(), *holder.named_parameters(recurse=False))]


def _big_code(holder: nn.Module) -> str:
    return "qkv" if getattr(holder, "multi_query", True) else "qkv-per-head"


def _routes(site: Site) -> bool:
    """Whether the parameter scores experts: a layer called gate next to them."""
    for name, holder in zip(site.names[:-1], site.modules, strict=False):
        if name.lower() in ("gate", "gating", "wg") and any("expert" in n.lower() for n, _ in holder.named_children()):
            return True
    return False


def _in_attention(site: Site) -> bool:
    return any(re.search(r"attn|attention", name.lower()) for name in site.names[-3:-1])


def heads_of(site: Site) -> tuple[int, int] | None:
    """The number of heads of queries and of keys, from the attributes of the modules around or their config."""
    for module in reversed(site.modules):
        for source in (module, getattr(module, "config", None)):
            heads = _number(source, "num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_q_heads")
            if heads:
                names = ("num_kv_heads", "num_key_value_heads", "n_kv_heads", "n_kv_head", "kv_heads")
                return heads, _number(module, *names) or _number(source, *names) or heads
    return None


def _number(source: object, *names: str) -> int | None:
    found = (getattr(source, name, None) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)
