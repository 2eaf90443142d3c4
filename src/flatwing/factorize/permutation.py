"""Permutations of rows and columns under which a matrix may have the structure of a chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from ..core import as_permutation
from ..structure import Chain, transforms

Permutations = tuple[torch.Tensor | None, torch.Tensor | None]
NAMES = ("none", "bitrev", "auto")


def candidate_permutations(perm: Any, chain: Chain, device: torch.device) -> dict[str, Permutations]:
    """The pairs (perm_in, perm_out) that `perm` stands for, by name; "auto" stands for several.

    None or "none": the matrix as it is. "bitrev": columns in digit-reversed order of the chain's radices, which is bit
    reversal for dyadic chains. "auto": none, and digit reversal of the columns, of the rows, and of both. A pair
    (perm_in, perm_out) is taken as it is. Raises `ValueError` for anything else; "search", which needs the matrix, is
    `search_permutation`.
    """
    if perm is None or (isinstance(perm, str) and perm == "none"):
        return {"none": (None, None)}
    if isinstance(perm, str) and perm in NAMES:
        (q, p), outer = chain.radices, (chain[0].a, chain[-1].d)
        columns = transforms.digit_reversal((outer[0], *p, outer[1])).to(device)
        rows = transforms.digit_reversal((outer[0], *q, outer[1])).to(device)
        if perm == "bitrev":
            return {"bitrev columns": (columns, None)}
        return {
            "none": (None, None),
            "bitrev columns": (columns, None),
            "bitrev rows": (None, rows),
            "bitrev rows and columns": (columns, rows),
        }
    if isinstance(perm, (tuple, list)) and len(perm) == 2:
        m, n = chain.shape
        perm_in = None if perm[0] is None else as_permutation(perm[0], n, "perm_in", device)
        perm_out = None if perm[1] is None else as_permutation(perm[1], m, "perm_out", device)
        return {"given": (perm_in, perm_out)}
    shown = repr(perm)[:60]
    raise ValueError(
        f"perm={shown} is unknown here. Rule: None, {', '.join(map(repr, NAMES))}, 'search' (factorize only, once the "
        "chain is known) or a pair (perm_in, perm_out) of permutations (or None), with A[perm_out][:, perm_in] what is "
        "factorized."
    )


def permuted(matrix: torch.Tensor, perms: Permutations) -> torch.Tensor:
    """matrix[perm_out][:, perm_in]."""
    perm_in, perm_out = perms
    if perm_out is not None:
        matrix = matrix.index_select(-2, perm_out)
    return matrix if perm_in is None else matrix.index_select(-1, perm_in)


def tree(order: Int[np.ndarray, " n"], radices: Sequence[int]) -> Int[np.ndarray, " n"]:
    """The first in the alphabet of all orders with the same nested clusters; the first radix counts the largest ones.

    >>> tree(np.array([3, 2, 0, 1]), (2, 2)).tolist()
    [0, 1, 2, 3]
    """
    size = 1
    for radix in reversed(radices):
        parts = order.reshape(-1, radix, size)
        order = np.take_along_axis(parts, np.argsort(parts[:, :, :1], axis=1), 1).reshape(-1)
        size *= radix
    return order


def digits_reversed(order: Int[np.ndarray, " n"], radices: Sequence[int]) -> Int[np.ndarray, " n"]:
    """The order with its places renumbered, digits backwards; `radices` are those of the places, the slowest first.

    Rows of a chain stand with the digit of the smallest clusters first, columns with that of the largest.
    """
    return order.reshape(tuple(radices)).transpose().reshape(-1)
