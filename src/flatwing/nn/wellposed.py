"""Which neighbouring layers of a network have supports on which a training problem may have no solution."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import nn

from ..structure import Support, Verdict, wellposedness
from .linear import StructuredLinear

Layer = nn.Linear | StructuredLinear
Neighbours = tuple[str, Layer, tuple[str, ...], str, Layer]
BETWEEN = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU),
    *(nn.Hardswish, nn.Sigmoid, nn.Softplus, nn.Tanh, nn.Dropout, nn.Identity),
)
"""Modules that act on each number alone: layers before and after them are neighbours."""
LINEAR = ("Dropout", "Identity")


@final
@dataclass(frozen=True, slots=True, eq=False)
class LayerPair:
    """Two linear layers, `first` applied before `second`, what is `between` them, and the verdict on their supports.

    The verdict is about the product of the two matrices.
    """

    first: str
    second: str
    between: tuple[str, ...]
    verdict: Verdict

    @property
    def meaning(self) -> str:
        """What the verdict says about training these layers."""
        if all(name in LINEAR for name in self.between):
            return {
                "closed": "every matrix has a best approximation by their product",
                "not closed": "some matrices have no best approximation by their product: weights run away",
                "undecided": "whether every matrix has a best approximation by their product is not known",
            }[self.verdict.status]
        name = next(name for name in self.between if name not in LINEAR)
        if self.verdict.status == "not closed":
            told = "a ReLU network with these supports has finite training sets without best weights"
            return told if name == "ReLU" else f"{told}; for {name} nothing is proved"
        return f"with {name} between them it promises no best weights; no training set without them is known from here"

    def __str__(self) -> str:
        middle = " - ".join((self.first, *self.between, self.second))
        return f"{middle}: {self.verdict.status}, {self.verdict.reason}"


def layer_pairs(model: nn.Module | Any, pairs: Iterable[Any] | None = None) -> tuple[LayerPair, ...]:
    """The verdict of `wellposedness` on neighbouring linear layers of a model, (second matrix) @ (first matrix).

    Args:
        model: masks are those of `torch.nn.utils.prune` (buffers `weight_mask`), else the non-zeros of a weight of
            `nn.Linear`, and the chains of `StructuredLinear`.
        pairs: names (first, second) of layers; by default neighbours in containers `nn.Sequential`, with nothing but
            modules that act on each number alone between them. Elsewhere (attention, a `forward` of one's own) the
            order is not known from the modules: name them. Masked or structured layers in no pair give a `UserWarning`.

    Raises `ValueError` if there are no neighbours, for names that are no such layers and sizes that do not fit;
    `TypeError` for what is no module, or no pair of names. Biases do not matter: they move the outputs, not which
    matrices there are. Cost: that of `wellposedness` per pair; the weights are copied to the CPU.

    >>> import torch
    >>> import torch.nn.utils.prune as prune
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> lower = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> for layer, mask in ((net[0], lower.T), (net[2], lower)):
    ...     _ = prune.custom_from_mask(layer, "weight", mask)
    >>> print(layer_pairs(net)[0].verdict.status, "-", layer_pairs(net)[0].meaning)
    not closed - a ReLU network with these supports has finite training sets without best weights
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is {type(model).__name__}. Rule: an nn.Module. For masks: wellposedness(supports).")
    if pairs is None:
        found = list(_neighbours(model))
        _say_what_is_left(model, found)
    else:
        named = dict(model.named_modules())
        found = [(a, _layer(named, a), (), b, _layer(named, b)) for a, b in pair_names(pairs)]
    results = []
    for first, inner, between, second, outer in found:
        if outer.in_features != inner.out_features:
            raise ValueError(
                f"{first!r} has {inner.out_features} outputs, {second!r} has {outer.in_features} inputs. "
                "Rule: equal. Name neighbours, the one that is applied first first."
            )
        supports = [*layer_supports(outer, second), *layer_supports(inner, first)]
        results.append(LayerPair(first, second, between, wellposedness(supports)))
    return tuple(results)


def layer_supports(layer: Layer, name: str = "the layer") -> tuple[Support, ...]:
    """Where the matrix of a layer, or the factors of its product, may be non-zero; leftmost factor first.

    Raises `ValueError` for NaN, and for a layer without a single non-zero weight.
    """
    try:
        if isinstance(layer, StructuredLinear):
            return _of_chain(layer)
        mask = getattr(layer, "weight_mask", None)
        return (Support.non_zeros(layer.weight.detach() if mask is None else mask),)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _of_chain(layer: StructuredLinear) -> tuple[Support, ...]:
    masks = [Support(pattern).array for pattern in layer.chain]
    if layer.perm_in is not None:  # column j of the chain is applied to input perm_in[j]
        masks[-1] = masks[-1][:, np.argsort(layer.perm_in.numpy(force=True))]
    if layer.perm_out is not None:
        masks[0] = masks[0][np.argsort(layer.perm_out.numpy(force=True))]
    return tuple(map(Support, masks))


def _say_what_is_left(model: nn.Module, found: Sequence[Neighbours]) -> None:
    """Raise if there are no neighbours; warn of layers with masks or structure that are in no pair."""
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear | StructuredLinear)}
    paired = {name for first, _, _, second, _ in found for name in (first, second)}
    left = [name for name, layer in layers.items() if name not in paired and _restricted(layer)]
    if found and not left:
        return
    fits = [(a, b) for a in layers for b in layers if a != b and layers[a].out_features == layers[b].in_features]
    # the better example: layers of interest, of one block, and not just square ones side by side
    example = max(fits, key=lambda pair: _promise(layers, left, *pair), default=("a", "b"))
    step = f"Name pairs that follow each other, such as layer_pairs(model, pairs=[{example!r}])."
    if found:
        warnings.warn(f"in no pair of neighbours: {_shown(left)} (masked or structured). {step}", stacklevel=3)
    elif len(layers) < 2:
        raise ValueError(f"the model has {len(layers)} linear layers ({_shown(layers)}). Rule: two or more.")
    else:
        which = (
            f"masked or structured are {_shown(left)}" if left else f"there are {_shown(layers)}, none of them masked"
        )
        raise ValueError(
            "no two linear layers follow each other in an nn.Sequential with only elementwise modules between them; "
            f"{which}. {step}"
        )


def _restricted(layer: Layer) -> bool:
    """Whether some entry of the matrix stays zero."""
    if isinstance(layer, StructuredLinear) or hasattr(layer, "weight_mask"):
        return True
    return bool((layer.weight == 0).any())


def _promise(layers: dict[str, Layer], left: list[str], first: str, second: str) -> tuple[int, bool, bool, bool]:
    """How good an example is: as few square ones side by side as possible, first wider, then narrower."""
    block = first.rpartition(".")[0] == second.rpartition(".")[0]
    sizes = [(layers[name].in_features, layers[name].out_features) for name in (first, second)]
    return len({first, second} & set(left)), block, sizes[0] != sizes[1], sizes[0][0] < sizes[0][1]


def _shown(names: Iterable[str]) -> str:
    known = list(names)
    return (", ".join(known[:8]) or "none") + (f" and {len(known) - 8} more" if len(known) > 8 else "")


def pair_names(pairs: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """Names (first, second) of pairs of layers, from a list of such names and of `LayerPair`s.

    Raises `TypeError` for what is no list of pairs, a single name or two included, `ValueError` for a layer and itself.

    >>> pair_names([["up", "down"]])
    (('up', 'down'),)
    """
    found = list(pairs) if isinstance(pairs, Iterable) and not isinstance(pairs, str) else [pairs]
    if len(found) == 2 and all(isinstance(name, str) for name in found):
        raise TypeError(f"pairs is {pairs!r}. Rule: a list of pairs. Write pairs=[({found[0]!r}, {found[1]!r})].")
    return tuple(map(_names, found))


def _names(pair: Any) -> tuple[str, str]:
    """Two names, or those of a `LayerPair`."""
    if isinstance(pair, LayerPair):
        return pair.first, pair.second
    if isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(name, str) for name in pair):
        first, second = pair
        if first == second:
            raise ValueError(f"the pair {pair!r} is a layer and itself. Rule: two layers, each with its own weights.")
        return first, second
    raise TypeError(f"pairs has {pair!r}. Rule: (first, second), two names of layers. Write pairs=[('0', '2')].")


def _neighbours(model: nn.Module) -> Iterator[Neighbours]:
    """Linear layers that follow each other in a container, containers in containers included."""
    inside = {child for module in model.modules() if isinstance(module, nn.Sequential) for child in module.children()}
    for prefix, root in model.named_modules():
        if not isinstance(root, nn.Sequential) or root in inside:
            continue
        before: tuple[str, Layer] | None = None
        between: list[str] = []
        for name, module in _flat(prefix, root):
            if isinstance(module, nn.Linear | StructuredLinear):
                if before is not None and before[1].out_features == module.in_features:
                    yield (*before, tuple(between), name, module)
                before, between = (name, module), []
            elif isinstance(module, BETWEEN):
                between.append(type(module).__name__)
            else:
                before = None


def _flat(prefix: str, container: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    for name, child in container.named_children():
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.Sequential):
            yield from _flat(full, child)
        else:
            yield full, child


def _layer(named: dict[str, nn.Module], name: str) -> Layer:
    layer = named.get(name)
    if isinstance(layer, nn.Linear | StructuredLinear):
        return layer
    layers = [known for known, module in named.items() if isinstance(module, nn.Linear | StructuredLinear)]
    near = difflib.get_close_matches(name, layers, n=1)
    what = "is no module" if layer is None else f"is a {type(layer).__name__}"
    hint = f" Did you mean {near[0]!r}?" if near else f" They are {_shown(layers)}."
    raise ValueError(f"{name!r} {what} of the model. Rule: nn.Linear or StructuredLinear.{hint}")
