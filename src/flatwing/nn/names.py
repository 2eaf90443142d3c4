"""Which modules of a model are linear layers, under which names, and which of them must stay as they are, and why."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import final

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from .base import StructuredLayer, linear_of

HEADS = frozenset(
    {"classifier", "decoder", "embed_out", "head", "heads", "lm_head", "output_projection", "qa_outputs", "score"}
)
# of these, only a module right below the model or its head is the last layer; inside blocks the word means other things
_ONLY_OUTSIDE = frozenset({"decoder", "head", "heads", "score"})


@final
@dataclass(frozen=True, slots=True)
class LinearInfo:
    """One linear layer of a model, however it is stored.

    `weight` is a view (out_features, in_features), also where the module stores the transpose (`transposed`: Conv1D of
    transformers). `aliases` are other names of the same module; `tied_to` other names of the same weight in other
    modules, as parameters (`"embed.weight"`). `skip` says why the layer must stay as it is; None if it may be replaced.
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int
    weight: torch.Tensor
    bias: torch.Tensor | None
    transposed: bool
    aliases: tuple[str, ...]
    is_head: bool
    tied_to: tuple[str, ...]
    skip: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the module, the first one first."""
        return (self.name, *self.aliases)

    @property
    def weights(self) -> frozenset[str]:
        """All names of the weight as a parameter, in this module and in others; equal for tied layers."""
        return frozenset((*self.tied_to, *(f"{name}.weight".lstrip(".") for name in self.names)))

    def as_linear(self) -> nn.Linear:
        """An `nn.Linear` that shares weight, bias, training mode and requires_grad with the layer.

        >>> info = linear_layers(nn.Sequential(nn.Linear(3, 2)))["0"]
        >>> info.as_linear() is info.module
        True
        """
        if isinstance(self.module, nn.Linear):
            return self.module
        weight = nn.Parameter(self.weight.detach(), requires_grad=self.weight.requires_grad)
        return linear_of(weight, self.bias, self.module.training)


def linear_layers(model: nn.Module) -> dict[str, LinearInfo]:
    """Every layer of a model that holds a matrix, once, by its first name; what cannot be replaced has a `skip` reason.

    Beside `nn.Linear` and Conv1D these are embeddings, the packed projections of `nn.MultiheadAttention`, and quantized
    or foreign layers, so that a report can say why they are left alone. A module with several names is listed once.

    >>> class Tied(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embed, self.lm_head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    ...         self.lm_head.weight = self.embed.weight
    >>> info = linear_layers(Tied())["lm_head"]
    >>> info.tied_to, info.skip
    (('embed.weight',), 'its weight is also embed.weight, which is not a linear layer')
    """
    names: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
        modules[id(module)] = module
    owners: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[_identity(parameter)].append(name)
    readers = {
        id(child): module
        for module in modules.values()
        if isinstance(module, nn.MultiheadAttention) or getattr(module, "reads_weights_of_children", False)
        for child in module.children()
    }
    found: dict[str, LinearInfo] = {}
    for key, module in modules.items():
        matrix = _matrix(module)
        if matrix is None:
            continue
        weight, bias, transposed, reason = matrix
        own = {f"{name}.{attribute}".lstrip(".") for name in names[key] for attribute in ("weight", "in_proj_weight")}
        tied = tuple(n for n in owners[_identity(weight)] if n not in own)
        reason = reason or _read_by(readers.get(key)) or _behaviour(module)
        m, n = weight.shape if weight.ndim == 2 else (0, 0)
        if transposed:
            weight, m, n = weight.mT, n, m
        first, *others = names[key]
        found[first] = LinearInfo(
            first, module, n, m, weight, bias, transposed, tuple(others), _is_head(first), tied, reason
        )
    return _with_ties(_last_heads_only(found))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` at every place of the model where the module called `name` stands.

    Raises `ValueError` for an unknown name (naming the nearest) and for the model itself, which nothing holds.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> model.append(model[0])[2] is model[0]
    True
    >>> replace_module(model, "0", nn.Identity())
    >>> model[0], model[2] is model[0]
    (Identity(), True)
    """
    known = dict(model.named_modules(remove_duplicate=False))
    if name not in known:
        raise ValueError(f"the model has no module {name!r}.{_near(name, known)}")
    old = known[name]
    if old is model:
        raise ValueError("the model itself is this layer, so nothing holds it. Assign the new layer to your variable.")
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def matching(infos: Mapping[str, LinearInfo], globs: str | Iterable[str], what: str = "where") -> set[str]:
    """The first names of the layers that one of the globs matches under any of their names.

    Raises `ValueError` for a glob that matches nothing, naming the layers with the nearest names.

    >>> sorted(matching(linear_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), "[01]"))
    ['0', '1']
    """
    if isinstance(globs, str):
        globs = [globs]
    chosen: set[str] = set()
    every = [name for info in infos.values() for name in info.names]
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(f"{what} holds a {type(glob).__name__}. Rule: globs over dotted names, such as '*.mlp.*'.")
        hits = {info.name for info in infos.values() if any(fnmatchcase(name, glob) for name in info.names)}
        if not hits:
            raise ValueError(f"{what}={glob!r} matches none of the {len(infos)} linear layers.{_near(glob, every)}")
        chosen |= hits
    return chosen


def _near(name: str, known: Iterable[str]) -> str:
    known = [other for other in known if other]
    near = difflib.get_close_matches(name.replace("*", ""), known, n=3, cutoff=0.3) or known[:3]
    return f" The nearest names: {', '.join(near)}." if near else " It has no layers."


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors with the same values in the same memory."""
    if is_lazy(tensor) or tensor.is_meta or type(tensor.data) is not torch.Tensor or not tensor.numel():
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()


def _matrix(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None, bool, str | None] | None:
    """Weight, bias, whether the weight is stored transposed, and why it must stay; None for what holds no matrix."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.weight, None, False, "an embedding is a table that is looked up, not a matrix that is applied"
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is None:
            return None  # three bare parameters q_proj_weight, ...: no one matrix
        return module.in_proj_weight, None, False, "in_proj_weight is a parameter of MultiheadAttention, not a layer"
    if isinstance(module, nn.Linear):
        if is_parametrized(module, "weight"):
            return module.weight, module.bias, False, "its weight is parametrized; use remove_parametrizations first"
        if "weight" not in module._parameters:
            return module.weight, module.bias, False, "its weight is computed from others (weight norm, pruning)"
        return module.weight, module.bias, False, None
    if isinstance(module, StructuredLayer) or module._modules:
        return None  # done, or made of others
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(weight, torch.Tensor):
        return weight, getattr(module, "bias", None), True, None
    if isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int):
        shape = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
        kind = type(module).__name__
        return torch.empty(shape, device="meta"), None, False, f"a {kind} (quantized or foreign) is not an nn.Linear"
    return None


def _read_by(parent: nn.Module | None) -> str | None:
    if parent is None:
        return None
    return f"its parent {type(parent).__name__} reads its weight and does not call it"


def _behaviour(module: nn.Module) -> str | None:
    """What a replacement would silently lose."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        return f"a {type(module).__name__} has a forward of its own (quantized, adapted or foreign)"
    if "forward" in vars(module):
        return "its forward was replaced from outside"
    if isinstance(weight, torch.Tensor):
        if is_lazy(weight):
            return "it is lazy and has no shape yet; run the model once"
        if type(weight.data) is not torch.Tensor:
            return f"its weight is a {type(weight.data).__name__}; swap before sharding or quantizing"
        if not (weight.is_floating_point() or weight.is_complex()):
            return f"its weight is {weight.dtype}, not floating point"
        if not weight.numel():
            return "it is empty"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which would be lost; remove them first"
    return None


def _is_head(name: str) -> bool:
    words = [word for word in name.split(".") if not word.isdigit()]
    numbered = any(word.isdigit() for word in name.split(".")[:-1])
    return bool(words) and words[-1] in HEADS and not (words[-1] in _ONLY_OUTSIDE and numbered)


def _last_heads_only(found: dict[str, LinearInfo]) -> dict[str, LinearInfo]:
    """Of several layers below one head (classifier.0, classifier.3) only the last one makes the logits."""
    last: dict[str, str] = {}
    for name, info in found.items():
        if info.is_head:
            last[name.rstrip("0123456789").rstrip(".")] = name
    return {name: replace(info, is_head=name in last.values()) for name, info in found.items()}


def _with_ties(found: dict[str, LinearInfo]) -> dict[str, LinearInfo]:
    """Layers whose weight stands somewhere that is no replaceable layer of the same orientation must stay."""
    where = {f"{name}.weight": info for info in found.values() for name in info.names}

    def reason(info: LinearInfo) -> str | None:
        for other in info.tied_to:
            owner = where.get(other)
            if owner is None or (not isinstance(owner.module, nn.Linear) and not owner.transposed):
                return f"its weight is also {other}, which is not a linear layer"
            if owner.skip is not None or owner.transposed != info.transposed:
                return f"its weight is also {other}, which must stay: {owner.skip or 'it is stored transposed'}"
        return None

    return {name: replace(info, skip=info.skip or reason(info)) for name, info in found.items()}
