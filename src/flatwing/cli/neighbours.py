"""Which matrices of a model follow each other, as far as names and shapes tell: pure, nothing is read here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

Shapes = Mapping[str, tuple[int, ...]]
APART = re.compile("emb|norm|expert|head", re.IGNORECASE)  # tables, scales, and layers side by side
SHOWN = 8


def neighbours(shapes: Shapes) -> tuple[list[tuple[str, str]], str]:
    """Pairs (first, second) of matrices that are applied one after the other, and a sentence on those in no pair.

    Layers are neighbours if their names differ in one number, none with a number between them has parameters, each is
    nothing but one matrix and a bias, and the shapes multiply: "net.0.weight" and "net.2.weight". Numbers of blocks
    with several matrices, as in transformers, say nothing about which of them follow each other. Masks
    ("net.0.weight_mask") stand for their weights.

    >>> neighbours({"net.0.weight": (8, 4), "net.0.bias": (8,), "net.2.weight": (2, 8)})[0]
    [('net.0.weight', 'net.2.weight')]
    >>> neighbours({"block.0.up": (8, 4), "block.0.down": (4, 8), "block.1.up": (8, 4), "block.1.down": (4, 8)})[0]
    []
    """
    known, pairs = known_names(shapes), []
    numbered: dict[str, dict[int, list[tuple[str, str]]]] = {}
    for name in shapes:
        for found in re.finditer(r"\d+", name):
            layers = numbered.setdefault(name[: found.start()], {})
            layers.setdefault(int(found[0]), []).append((name[found.end() :], name))
    for layers in numbered.values():
        before: tuple[str, str] | None = None
        for number in sorted(layers):
            layer = _only_matrix(layers[number], shapes, known)
            if before and layer and before[0] == layer[0] and _multiply(shapes, before[1], layer[1]):
                pairs.append((before[1], layer[1]))
            before = layer
    paired = {name for pair in pairs for name in pair}
    alone = [name for name in _weights(shapes) if name not in paired]
    return pairs, f"in no pair: {_listed(shapes, alone)}" if alone else ""


def no_neighbours(source: str, shapes: Shapes) -> ValueError:
    """What to raise where names do not tell which matrices follow each other: what there is, and how to name pairs."""
    weights = _weights(shapes)
    told = _listed(shapes, weights)
    if len(weights) < 2:
        return ValueError(f"{source!r} has {len(weights)} matrices of layers ({told}). Rule: two or more.")
    fitting = [(a, b) for a in weights for b in weights if a != b and _multiply(shapes, a, b)]
    if not fitting:
        return ValueError(f"{source!r} has no two matrices that multiply: {told}.")
    a, b = max(fitting, key=lambda pair: _promise(shapes, *pair))
    return ValueError(
        f"the names in {source!r} do not tell which matrices follow each other: {told}. Name them with --pairs "
        f"FIRST:SECOND, y = second @ first @ x, once for each; if these two do: --pairs {a}:{b}"
    )


def chosen(wanted: Sequence[str], shapes: Shapes, known: Mapping[str, str]) -> list[tuple[str, str]]:
    """The pairs (first, second) that "first:second" name; raises `ValueError` for unknown names and other shapes."""
    pairs = []
    for text in wanted:
        names = text.split(":")
        if len(names) != 2 or not all(names):
            raise ValueError(
                f"--pairs {text} names {len([name for name in names if name])} matrices. Rule: FIRST:SECOND, two names "
                "in the order in which data flows, y = second @ first @ x. Repeat --pairs for more."
            )
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f", did you mean {near[0]!r}?" if near else "."
                real = _listed(shapes, list(dict.fromkeys(known.values())))
                raise ValueError(f"--pairs {text}: there is no matrix {name!r}{hint} There are {real}.")
        first, second = (known[name] for name in names)
        if not _multiply(shapes, first, second):
            turned = f"Write --pairs {names[1]}:{names[0]}." if _multiply(shapes, second, first) else "Name neighbours."
            raise ValueError(
                f"--pairs {text}: {first} has {shapes[first][0]} outputs (rows), {second} has {shapes[second][1]} "
                f"inputs (columns). Rule: equal, for y = second @ first @ x. {turned}"
            )
        pairs.append((first, second))
    return pairs


def known_names(shapes: Shapes) -> dict[str, str]:
    """What matrices may be called, and the tensor to read: names, names of layers, and masks for their weights.

    >>> known_names({"fc.weight_orig": (2, 2), "fc.weight_mask": (2, 2)})["fc"]
    'fc.weight_mask'
    """
    known: dict[str, str] = {}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    for name in sorted(matrices, key=lambda name: name.endswith("_mask")):  # masks last: they replace their weights
        plain = name.removesuffix("_mask")
        names = [name, plain] if plain == name else [name, plain, f"{plain}_orig"]
        if plain.endswith(".weight"):
            names.append(plain.removesuffix(".weight"))
        known |= dict.fromkeys(names, name)
    return known


def _only_matrix(
    parameters: Sequence[tuple[str, str]], shapes: Shapes, known: Mapping[str, str]
) -> tuple[str, str] | None:
    """What follows the number of a layer and its tensor, if the layer is one matrix and perhaps a bias."""
    found = {}
    for rest, name in parameters:
        plain = re.sub("_(mask|orig)$", "", rest)
        if not plain.endswith("bias"):
            found[plain] = known.get(name, "")
    if len(found) != 1:
        return None
    ((plain, name),) = found.items()
    return (plain, name) if plain.endswith("weight") and name and not APART.search(name) else None


def _weights(shapes: Shapes) -> list[str]:
    """The matrices of layers, masks in the place of their weights; without tables and scales."""
    known = known_names(shapes)
    some = {known[name] for name in known if re.search("weight(_mask|_orig)?$", name)}
    return [name for name in shapes if name in some and not re.search("emb|norm", name, re.IGNORECASE)]


def _multiply(shapes: Shapes, first: str, second: str) -> bool:
    return shapes[second][1] == shapes[first][0]


def _promise(shapes: Shapes, first: str, second: str) -> tuple[bool, int, bool]:
    """How good an example is: sizes that say something, many blocks that both are in, first wider, then narrower."""
    parts = zip(first.split("."), second.split("."), strict=False)
    together = sum(1 for _ in takewhile(lambda both: both[0] == both[1], parts))
    rows, columns = shapes[first]
    return shapes[first] != shapes[second], together, rows > columns


def _listed(shapes: Shapes, names: Sequence[str]) -> str:
    """The first names with their sizes, and how many more there are."""
    told = ", ".join(f"{name} ({'x'.join(map(str, shapes[name]))})" for name in names[:SHOWN])
    return (told or "none") + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
