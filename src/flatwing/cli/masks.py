"""Masks of factors and of neighbouring layers, out of files. Nothing that a file contains is ever executed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..structure import MaskedProduct, Support
from ..structure.masked import FORMAT
from .inputs import UNREADABLE, require_file, unreadable
from .neighbours import chosen, known_names, neighbours, no_neighbours


@final
@dataclass(frozen=True, slots=True)
class Product:
    """Supports that multiply, leftmost first, and the names they have in the file."""

    names: tuple[str, ...]
    supports: tuple[Support, ...]

    @property
    def name(self) -> str:
        """All names, in the order of the product."""
        return " @ ".join(self.names)


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What a file holds: `pairs` of neighbours, `notes` on what was taken for granted or left out.

    `assumed`: the pairs are a guess from names. `whole` is the product of all factors where the file says that they are
    one, and there are more than two.
    """

    pairs: tuple[Product, ...]
    notes: tuple[str, ...] = ()
    assumed: bool = False
    whole: Product | None = None


def read_pairs(path: Path, wanted: Sequence[str] = ()) -> Found:
    """The neighbours in an .npz file of masks, a product with supports or a .safetensors file of a model.

    `wanted` are pairs "first:second" in the order in which data flows, y = second @ first @ x; by default those that
    the order of the masks, or the names of a model, tell. Raises `ValueError` or `TypeError` for other files, arrays
    that are no masks, files without neighbours, and wanted names that are unknown or do not multiply.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        require_file(path)
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"cannot read {str(path)!r}: its suffix is {suffix!r}. Rule: .npz or .safetensors.")
    require_file(path)
    if suffix == ".npz":
        return _of_factors(path, _read_npz(path), wanted)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                return _of_model(path, file, wanted)
    except (SafetensorError, *UNREADABLE) as error:
        if type(error) is ValueError:
            raise
        raise unreadable(path, "safetensors file", error) from error
    product = MaskedProduct.load(path)
    return _of_factors(path, {f"factor {i}": support for i, support in enumerate(product.supports)}, wanted)


def read_supports(path: Path) -> dict[str, Support]:
    """The masks of factors in an .npz file, leftmost first: by the numbers in their names if all have one.

    Masks are boolean, or numbers 0 and 1. Raises `TypeError` or `ValueError`, which name the array, for others, for
    masks that do not multiply, and for files that are missing, truncated or of another kind.
    """
    if path.suffix.lower() != ".npz":
        raise ValueError(f"cannot read masks from {str(path)!r}. Rule: an .npz file; write it with np.savez.")
    require_file(path)
    found = _read_npz(path)
    if not found:
        raise ValueError(f"{str(path)!r} holds no mask. Rule: one per factor. Write np.savez(path, S1=..., S2=...).")
    _require_products(found)
    return found


def as_mask(values: np.ndarray | torch.Tensor, name: str) -> Support:
    """The support of a mask of booleans or numbers 0 and 1; errors name it, and the first entry that is neither.

    >>> as_mask(np.array([[1.0, 0.0]]), "S").nnz
    1
    >>> as_mask(np.array([[1.0, 0.5]]), "S")
    Traceback (most recent call last):
    ...
    ValueError: S[0,1] is 0.5. Rule: a mask holds 0 and 1, 1 where a value may be. Save it as A != 0, not A.
    """
    number = not values.dtype.is_complex if isinstance(values, torch.Tensor) else values.dtype.kind in "biuf"
    if not number:
        raise TypeError(f"{name} has dtype {values.dtype}. Rule: a mask, boolean or numbers 0 and 1.")
    wrong: Any = (values != 0) & (values != 1)  # NaN, too
    for place in np.argwhere(np.asarray(wrong))[:1]:
        where, value = ",".join(map(str, place)), values[tuple(place)].item()
        raise ValueError(
            f"{name}[{where}] is {value:g}. Rule: a mask holds 0 and 1, 1 where a value may be. "
            "Save it as A != 0, not A."
        )
    return _named(name, values)


def _of_factors(path: Path, found: Mapping[str, Support], wanted: Sequence[str]) -> Found:
    """Pairs of factors: each two neighbours, and all of them as the whole, or those that are wanted."""
    if wanted:
        shapes = {name: support.shape for name, support in found.items()}
        pairs = chosen(wanted, shapes, {name: name for name in found})
        return Found(tuple(Product((b, a), (found[b], found[a])) for a, b in pairs))
    if len(found) < 2:
        names = ", ".join(found) or "none"
        raise ValueError(f"{str(path)!r} has {len(found)} masks ({names}). Rule: two or more that multiply.")
    _require_products(found)
    pairs = tuple(Product((a, b), (found[a], found[b])) for a, b in pairwise(found))
    return Found(pairs, whole=Product(tuple(found), tuple(found.values())) if len(found) > 2 else None)


def _of_model(path: Path, file: Any, wanted: Sequence[str]) -> Found:
    """Pairs of layers: those that names tell, or those that are wanted; only their tensors are read."""
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    known, notes = known_names(shapes), ()
    if wanted:
        pairs = chosen(wanted, shapes, known)
    else:
        pairs, left_out = neighbours(shapes)
        if not pairs:
            raise no_neighbours(str(path), shapes)
        told = ", ".join(f"{a}:{b}" for a, b in pairs)
        told = f"assumed from the numbers in names, y = second @ first @ x: {told}. Name others with --pairs"
        notes = (told, left_out)
    supports: dict[str, Support] = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        values = file.get_tensor(name)
        supports[name] = as_mask(values, name) if name.endswith("_mask") else _named(name, values)
    found = tuple(Product((b, a), (supports[b], supports[a])) for a, b in pairs)
    return Found(found, tuple(filter(None, notes)), assumed=not wanted)


def _read_npz(path: Path) -> dict[str, Support]:
    """The masks of an archive, in the order of the numbers in their names if all have one, else of the file."""
    try:
        with path.open("rb") as stream:  # numpy leaves a broken archive open
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds a single array, not an archive")
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise unreadable(path, "numpy archive", error) from error
    names = sorted(arrays, key=_natural) if all(re.search(r"\d", name) for name in arrays) else list(arrays)
    return {name: as_mask(arrays[name], name) for name in names}


def _named(name: str, values: np.ndarray | torch.Tensor) -> Support:
    """Where values are not zero; errors name them."""
    try:
        return Support.non_zeros(values)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error


def _require_products(found: Mapping[str, Support]) -> None:
    for (a, left), (b, right) in pairwise(found.items()):
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"{a} is {left.shape}, {b} is {right.shape}. Rule: in the order of the product, (m, r) then (r, n). "
                "Transpose one, or save them in the other order."
            )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key under which layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
