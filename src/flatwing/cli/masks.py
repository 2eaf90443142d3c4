"""Masks of neighbouring layers out of files. Nothing that a file contains is ever executed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..structure import MaskedProduct, Support
from ..structure.masked import FORMAT
from .inputs import _UNREADABLE, _require_file, _unreadable


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two supports that multiply, (m, r) and (r, n), and the names they have in the file."""

    names: tuple[str, str]
    supports: tuple[Support, Support]

    @property
    def name(self) -> str:
        """Both names, in the order of the product."""
        return " @ ".join(self.names)


def read_pairs(path: Path) -> tuple[list[Pair], list[str]]:
    """The neighbours in an .npz file of masks or a .safetensors file of a model, and notes on what was left out.

    Raises `ValueError` or `TypeError` for other files, arrays that are no masks, and files without two neighbours.
    """
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"cannot read {str(path)!r}: its suffix is {suffix!r}. Rule: .npz or .safetensors.")
    _require_file(path)
    if suffix == ".npz":
        named, notes = {name: _support(array, name) for name, array in read_masks(path).items()}, []
    else:
        named, notes = _of_safetensors(path)
    if len(named) < 2:
        names = ", ".join(named) or "none"
        raise ValueError(f"{str(path)!r} has {len(named)} masks ({names}). Rule: two or more that multiply.")
    pairs = []
    for (first, left), (second, right) in pairwise(named.items()):
        if left.shape[1] == right.shape[0]:
            pairs.append(Pair((first, second), (left, right)))
        elif suffix == ".npz":
            raise ValueError(
                f"{first} is {left.shape}, {second} is {right.shape}. Rule: in the order of the product, (m, r) then "
                "(r, n). Transpose one, or save them in the other order."
            )
        else:
            notes.append(f"{first} {left.shape} and {second} {right.shape} do not multiply, and are no pair")
    if not pairs:
        raise ValueError(f"{str(path)!r} has no two neighbouring matrices that multiply: {'; '.join(notes)}.")
    return pairs, notes


def read_masks(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, in the order of the numbers in their names if all have one, else of the file.

    Raises `ValueError` for files that are missing, truncated or of another kind.
    """
    if path.suffix.lower() != ".npz":
        raise ValueError(f"cannot read masks from {str(path)!r}. Rule: an .npz file; write it with np.savez.")
    _require_file(path)
    try:
        with path.open("rb") as stream:  # numpy leaves a broken archive open
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds a single array, not an archive")
            arrays = {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise _unreadable(path, "numpy archive", error) from error
    names = sorted(arrays, key=_natural) if all(re.search(r"\d", name) for name in arrays) else list(arrays)
    return {name: arrays[name] for name in names}


def _of_safetensors(path: Path) -> tuple[dict[str, Support], list[str]]:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                product = MaskedProduct.load(path)
                return {f"factor {i}": support for i, support in enumerate(product.supports)}, []
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            matrices = {name for name, shape in shapes.items() if len(shape) == 2}
            masks = {name for name in matrices if name.endswith("_mask")}
            covered = {name.removesuffix("_mask") for name in masks}
            weights = {
                name
                for name in matrices - masks
                if name.endswith("weight") and name not in covered and not re.search("emb|norm", name, re.IGNORECASE)
            }
            # layers are listed as they are applied; in the product the last one stands first
            names = sorted(masks | weights, key=_natural, reverse=True)
            note = (
                f"the file does not say in which order layers are applied; taken is that of names: {', '.join(names)}"
            )
            return {name: _support(file.get_tensor(name), name) for name in names}, [note]
    except (SafetensorError, *_UNREADABLE) as error:
        if isinstance(error, ValueError):
            raise
        raise _unreadable(path, "safetensors file", error) from error


def _support(values: np.ndarray | torch.Tensor, name: str) -> Support:
    # numpy has no bfloat16, nor 8 bits
    array = values if isinstance(values, np.ndarray) else values.to(torch.complex64).numpy()
    if array.dtype.kind not in "bifuc":
        raise TypeError(f"{name} has dtype {array.dtype}. Rule: a mask, boolean or numbers that are zero or not.")
    try:
        return Support.non_zeros(array)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """A key under which layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
