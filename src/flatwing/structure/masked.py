"""MaskedProduct: factors with any supports, as a linear operator; where supports are patterns, take SparseProduct."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Num
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core import from_numpy, parse_json, replacing
from .support import Support, as_supports

FORMAT, VERSION = "flatwing.masked", "1"


@final
class MaskedProduct:
    """The matrix X_1 ... X_L with factor l zero outside of support l; factors are dense tensors, leftmost first.

    Values outside of the supports are set to zero, whatever they were. Raises `ValueError` for wrong numbers or shapes
    and for NaN or Inf on a support, `TypeError` for what is no floating-point tensor.

    >>> P = MaskedProduct([torch.eye(2) > 0, torch.ones(2, 3) > 0], [torch.ones(2, 2), torch.ones(2, 3)])
    >>> P.shape, P.nnz, (P @ torch.ones(3)).tolist()
    ((2, 3), 8, [3.0, 3.0])
    """

    __array_ufunc__ = None  # numpy arrays leave `array @ P` to __rmatmul__

    def __init__(self, supports: Iterable[Any], factors: Iterable[torch.Tensor]) -> None:
        self.supports = as_supports(supports)
        given = tuple(factors)
        if len(given) != len(self.supports):
            raise ValueError(f"there are {len(self.supports)} supports and {len(given)} factors. Rule: one each.")
        for i, (support, factor) in enumerate(zip(self.supports, given, strict=True)):
            if not isinstance(factor, torch.Tensor):
                raise TypeError(f"factor {i} is a {type(factor).__name__}. Rule: a tensor; write torch.as_tensor(it).")
            if not (factor.is_floating_point() or factor.is_complex()):
                raise TypeError(f"factor {i} has dtype {factor.dtype}. Rule: real or complex floating point.")
            if tuple(factor.shape) != support.shape:
                raise ValueError(f"factor {i} has shape {tuple(factor.shape)}. Rule: its support's, {support.shape}.")
            if factor.dtype != given[0].dtype or factor.device != given[0].device:
                raise ValueError(f"factor {i} is {factor.dtype} on {factor.device}, factor 0 is not. Rule: all alike.")
        masks = [support.mask.to(factor.device) for support, factor in zip(self.supports, given, strict=True)]
        self.factors = tuple(torch.where(mask, factor, 0) for mask, factor in zip(masks, given, strict=True))
        for i, factor in enumerate(self.factors):
            if not factor.is_meta and not bool(factor.isfinite().all()):
                kind = str(factor.dtype).removeprefix("torch.")
                raise ValueError(
                    f"factor {i} ({kind}) has {int((~factor.isfinite()).sum())} entries on its support that are NaN or "
                    "Inf. Rule: finite values. Mend them, or take a dtype with a wider range."
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.supports[0].shape[0], self.supports[-1].shape[1]

    @property
    def nnz(self) -> int:
        """Number of parameters: entries of the supports."""
        return sum(support.nnz for support in self.supports)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the factors."""
        return self.factors[0].dtype

    @property
    def T(self) -> MaskedProduct:
        """The transposed operator."""
        return self._turned(w.mT for w in reversed(self.factors))

    @property
    def H(self) -> MaskedProduct:
        """The conjugate-transposed operator."""
        return self._turned(w.mH for w in reversed(self.factors))

    def to(self, *args: Any, **kwargs: Any) -> MaskedProduct:
        """The operator with another dtype or device; arguments as for `Tensor.to`."""
        return MaskedProduct(self.supports, [w.to(*args, **kwargs) for w in self.factors])

    def dense(self) -> Num[torch.Tensor, "m n"]:
        """The matrix itself."""
        return reduce(torch.matmul, self.factors)

    def __len__(self) -> int:
        return len(self.factors)

    def __matmul__(self, x: Any) -> Any:
        """P @ x for a vector (n,), a matrix (n, k) or a stack (..., n, k); numpy in, numpy out."""
        if isinstance(x, np.ndarray):
            return (self @ from_numpy(x)).numpy(force=True)
        if not isinstance(x, torch.Tensor):
            return NotImplemented
        n = self.shape[1]
        if x.ndim == 0 or x.shape[-1 if x.ndim == 1 else -2] != n:
            raise ValueError(f"P has {n} columns, x has shape {tuple(x.shape)}. Rule: x is ({n},) or (..., {n}, k).")
        dtype = torch.promote_types(self.dtype, x.dtype)
        return reduce(lambda y, w: w.to(dtype) @ y, reversed(self.factors), x.to(dtype))

    def __rmatmul__(self, x: Any) -> Any:
        """The product x @ P for a vector (m,) or (..., k, m)."""
        if isinstance(x, np.ndarray):
            return (from_numpy(x) @ self).numpy(force=True)
        if not isinstance(x, torch.Tensor):
            return NotImplemented
        return self.T @ x if x.ndim == 1 else (self.T @ x.mT).mT

    def _turned(self, factors: Iterable[torch.Tensor]) -> MaskedProduct:
        """The product of these factors on the transposed supports; nothing is looked at again, nothing copied."""
        turned = object.__new__(MaskedProduct)
        turned.supports = tuple(support.T for support in reversed(self.supports))
        turned.factors = tuple(factors)
        return turned

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: the values on the supports, and the supports, eight entries per byte."""
        tensors: dict[str, torch.Tensor] = {}
        for i, (support, factor) in enumerate(zip(self.supports, self.factors, strict=True)):
            values = factor.detach().resolve_conj()[support.mask.to(factor.device)]
            tensors[f"values.{i}"] = (torch.view_as_real(values) if values.is_complex() else values).contiguous()
            tensors[f"support.{i}"] = torch.from_numpy(np.packbits(support.array))
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "shapes": json.dumps([support.shape for support in self.supports]),
            "complex": "yes" if self.dtype.is_complex else "no",
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> MaskedProduct:
        """Read what `save` wrote; raises `ValueError` for a truncated or foreign file. Nothing is executed."""
        if not Path(path).is_file():
            raise ValueError(f"there is no file {str(path)!r}. Rule: a safetensors file written by product.save(path).")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                    raise ValueError(f"it has format {metadata.get('format')!r}. Rule: {FORMAT!r}, version {VERSION}.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            supports, factors = [], []
            for i, (rows, columns) in enumerate(parse_json(metadata["shapes"])):
                bits = np.unpackbits(tensors[f"support.{i}"].numpy(), count=rows * columns)
                support, values = Support(bits.astype(bool).reshape(rows, columns)), tensors[f"values.{i}"]
                values = torch.view_as_complex(values) if metadata["complex"] == "yes" else values
                factor = values.new_zeros(rows, columns)
                factor[support.mask] = values
                supports.append(support)
                factors.append(factor)
            return MaskedProduct(supports, factors)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ValueError(
                f"{str(path)!r} holds no product with supports ({error}); it may be truncated. Write it again."
            ) from error

    def __repr__(self) -> str:
        sizes = " @ ".join("x".join(map(str, support.shape)) for support in self.supports)
        return f"MaskedProduct({sizes}, nnz={self.nnz}, dtype={str(self.dtype).removeprefix('torch.')})"
