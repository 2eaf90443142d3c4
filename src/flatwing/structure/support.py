"""Support: which entries of a matrix may be non-zero, any of them, one bit each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, reduce
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool

from ..core import require_whole
from .pattern import Pattern


@final
class Support:
    """A set of entries of an m x n matrix, given by a boolean mask; immutable, hashable, eight entries per byte.

    `mask` is a boolean array or tensor (m, n), a scipy sparse matrix (its stored non-zeros), or a `Pattern`.
    Raises `TypeError` for a mask that is not boolean, or a meta tensor, `ValueError` for one that is not a matrix
    or has no entry.

    >>> lower = Support(np.tril(np.ones((2, 2), dtype=bool)))
    >>> lower.shape, lower.nnz, (lower @ lower.T).nnz
    ((2, 2), 3, 4)
    """

    __slots__ = ("__dict__", "_bits", "shape")

    def __init__(self, mask: Any) -> None:
        found = _as_mask(mask)
        self.shape: tuple[int, int] = (found.shape[0], found.shape[1])
        self._bits = np.packbits(found).tobytes()

    @classmethod
    def non_zeros(cls, matrix: Any) -> Support:
        """Where a matrix is not zero; NaN raises `ValueError`, what is not numbers `TypeError`.

        >>> Support.non_zeros(torch.tensor([[0.0, 2.0], [1.0, 0.0]])).nnz
        2
        """
        return cls(_numbers(matrix.toarray() if hasattr(matrix, "toarray") else matrix) != 0)

    @classmethod
    def n_of_m(cls, weights: Any, n: int = 2, m: int = 4) -> Support:
        """The n largest of each m neighbours in a row, by absolute value: N:M sparsity as hardware runs it.

        Of equal ones the first. Raises `ValueError` unless n and m are whole, 1 <= n <= m and m divides the number of
        columns, and for NaN.

        >>> Support.n_of_m(np.array([[3.0, 1.0, 2.0, 0.0]])).mask.tolist()
        [[True, False, True, False]]
        """
        n, m = require_whole("n", n, good=2), require_whole("m", m, good=4)
        values = np.abs(_numbers(weights))
        if values.ndim != 2 or not values.size or n > m or values.shape[-1] % m:
            raise ValueError(
                f"{n}:{m} for a shape of {values.shape}. Rule: a matrix, 1 <= n <= m, m divides the columns. Take m=1."
            )
        groups = values.reshape(len(values), -1, m)
        order = np.argsort(-groups, axis=-1, kind="stable")
        mask = np.zeros(groups.shape, dtype=bool)
        np.put_along_axis(mask, order[..., :n], True, axis=-1)
        return cls(mask.reshape(values.shape))

    @classmethod
    def blocks(cls, blocks: Any, rows: int, columns: int) -> Support:
        """Every entry of `blocks`, a boolean matrix, made a block of rows x columns entries.

        >>> Support.blocks(np.eye(2, dtype=bool), 2, 3).shape
        (4, 6)
        """
        rows, columns = require_whole("rows", rows), require_whole("columns", columns)
        return cls(np.kron(_as_mask(blocks), np.ones((rows, columns), dtype=bool)))

    @property
    def mask(self) -> Bool[torch.Tensor, "m n"]:
        """The entries as a boolean tensor, a copy."""
        return torch.from_numpy(self.array.copy())

    @cached_property
    def array(self) -> Bool[np.ndarray, "m n"]:
        """The entries as a boolean array that cannot be written to."""
        bits = np.frombuffer(self._bits, dtype=np.uint8)
        mask = np.unpackbits(bits, count=self.shape[0] * self.shape[1]).astype(bool).reshape(self.shape)
        mask.setflags(write=False)
        return mask

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return int(self.array.sum())

    @property
    def T(self) -> Support:
        """The support of the transpose."""
        return Support(self.array.T)

    def __matmul__(self, other: Support) -> Support:
        """Where a product of matrices on these supports can be non-zero."""
        if not isinstance(other, Support):
            return NotImplemented
        if self.shape[1] != other.shape[0]:
            raise ValueError(
                f"supports of {self.shape} and {other.shape} do not multiply. Rule: as many columns as rows. "
                "Transpose one of them."
            )
        return Support(self.array.astype(np.float32) @ other.array.astype(np.float32) > 0)

    def __or__(self, other: Support) -> Support:
        if not isinstance(other, Support):
            return NotImplemented
        if self.shape != other.shape:
            raise ValueError(f"supports of {self.shape} and {other.shape} have no union. Rule: equal shapes.")
        return Support(self.array | other.array)

    def __le__(self, other: Support) -> bool:
        if not isinstance(other, Support):
            return NotImplemented
        return self.shape == other.shape and bool((self.array <= other.array).all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Support) and (self.shape, self._bits) == (other.shape, other._bits)

    def __hash__(self) -> int:
        return hash((self.shape, self._bits))

    def __repr__(self) -> str:
        return f"Support(shape={self.shape}, nnz={self.nnz})"

    def __str__(self) -> str:
        """A picture in letters, one row per row: '#' may be non-zero, '.' may not."""
        return "\n".join("".join(".#"[int(entry)] for entry in row) for row in self.array)


def as_supports(masks: Iterable[Any]) -> tuple[Support, ...]:
    """Supports of factors in the order of the product, from one boolean matrix each.

    Raises `ValueError` if there are none or they do not multiply, `TypeError` for what is no sequence of masks.

    >>> as_supports([np.ones((3, 2), dtype=bool), np.ones((2, 4), dtype=bool)])
    (Support(shape=(3, 2), nnz=6), Support(shape=(2, 4), nnz=8))
    """
    if isinstance(masks, Support) or not isinstance(masks, Iterable) or getattr(masks, "ndim", 3) == 2:
        shape = getattr(masks, "shape", None)
        what = f"a {type(masks).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
        raise TypeError(f"the supports are {what}. Rule: a list, one boolean matrix per factor, leftmost first.")
    supports = []
    for i, mask in enumerate(masks):
        try:
            supports.append(mask if isinstance(mask, Support) else Support(mask))
        except (TypeError, ValueError) as error:
            raise type(error)(f"support {i}: {error}") from error
    if not supports:
        raise ValueError("there is no support. Rule: one boolean matrix per factor, leftmost first.")
    for i, (left, right) in enumerate(pairwise(supports)):
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"support {i} is {left.shape}, support {i + 1} is {right.shape}. Rule: in the order of the product, "
                f"(m, r) then (r, n): {left.shape[1]} columns need as many rows. Transpose one, or reverse them."
            )
    return tuple(supports)


def product_support(supports: Sequence[Support]) -> Support:
    """Where the product of factors on these supports can be non-zero."""
    return reduce(Support.__matmul__, supports)


def _as_mask(mask: Any) -> Bool[np.ndarray, "m n"]:
    if isinstance(mask, Support):
        return mask.array
    if isinstance(mask, Pattern):
        from .factor import embed

        values = torch.ones(mask.blocks, mask.b, mask.c)
        return embed(values, mask).numpy() != 0
    if hasattr(mask, "toarray"):  # scipy sparse
        return _checked(mask.toarray() != 0)
    array = _numpy(mask, "mask")
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"the mask is a {type(mask).__name__} (dtype {array.dtype}). Rule: a boolean matrix: an array, a tensor, "
            "rows of True and False, or a Pattern."
        )
    if array.dtype != np.bool_:
        raise TypeError(
            f"the mask has dtype {array.dtype}. Rule: boolean. Write mask != 0, or Support.non_zeros(matrix)."
        )
    return _checked(array)


def _checked(mask: np.ndarray) -> Bool[np.ndarray, "m n"]:
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"the mask has shape {mask.shape}. Rule: a matrix with rows and columns. Reshape it.")
    if not mask.any():
        raise ValueError(f"the mask of shape {mask.shape} allows no entry. Rule: at least one. A factor would be zero.")
    return mask


def _numbers(values: Any) -> np.ndarray:
    array = _numpy(values, "matrix")
    if array.dtype.kind not in "biufc":
        raise TypeError(f"the matrix has dtype {array.dtype}. Rule: numbers, rows of equal length.")
    if np.isnan(array).any():
        raise ValueError("the matrix has NaN entries. Rule: numbers. NaN is neither large nor zero: replace it.")
    return array


def _numpy(values: Any, what: str) -> np.ndarray:
    """An array of what `what` names in messages: the mask, or the matrix."""
    if not isinstance(values, torch.Tensor):
        try:
            return np.asarray(values)
        except ValueError as error:  # of nested sequences
            raise ValueError(f"the {what} has rows of different lengths. Rule: rows of equal length.") from error
    if values.is_meta:
        shape = tuple(values.shape)
        raise TypeError(f"the {what} is a meta tensor {shape}, without values. Rule: values. Load the weights first.")
    if values.layout != torch.strided:
        raise TypeError(f"the {what} is a sparse tensor ({values.layout}). Rule: a dense one. Write {what}.to_dense().")
    # numpy has no bfloat16, nor 8 bits
    known = not values.is_floating_point() or values.dtype in (torch.float16, torch.float32, torch.float64)
    return (values if known else values.float()).numpy(force=True)
