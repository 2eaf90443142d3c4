"""Checks of what a user hands in; each error states the value, the rule, the nearest good value and the next step."""

from __future__ import annotations

from cmath import isfinite
from typing import Any

import numpy as np
import torch

COMPUTE_DTYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


def as_matrix(matrix: Any, name: str = "A", *, batch: bool = False) -> torch.Tensor:
    """The finite floating-point matrix behind a torch tensor, numpy array or nested sequence, without a copy if it can.

    Shape (m, n), or (..., m, n) with `batch`. float16 and bfloat16 become float32. A tensor that requires grad is
    detached. Raises `TypeError` for a wrong dtype, layout or kind, `ValueError` for a wrong rank, an empty matrix,
    NaN or Inf.

    >>> as_matrix([[1.0, 2.0]]).shape
    torch.Size([1, 2])
    """
    tensor = _as_tensor(matrix, name)
    if tensor.ndim < 2 or (tensor.ndim > 2 and not batch):
        rank = "a matrix (2 dimensions)" + (" or a batch of matrices" if batch else "")
        step = f"Write {name}.reshape(1, -1)." if tensor.ndim < 2 else f"Take the matrices {name}[i] one by one."
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}. Rule: {rank}. {step}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is empty. Rule: at least one row and one column.")
    if tensor.dtype not in COMPUTE_DTYPES:
        raise TypeError(
            f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}. Rule: a real or complex floating-point "
            f"matrix. Nearest good value: float64; write {name}.double() (torch) or {name}.astype('float64') (numpy)."
        )
    tensor = tensor.detach().resolve_conj().to(COMPUTE_DTYPES[tensor.dtype])
    # One pass: a sum is not finite if any entry is not; it may overflow by itself, so look closer only then.
    if not isfinite(tensor.sum().item()) and not bool(torch.isfinite(tensor).all()):
        bad = (~torch.isfinite(tensor)).nonzero()
        where = tuple(bad[0].tolist())
        raise ValueError(
            f"{name} has {len(bad)} entries that are NaN or Inf, the first is {tensor[where].item()} at {where}. "
            "Rule: all entries are finite. Mend the data, for instance with torch.nan_to_num."
        )
    return tensor


def _as_tensor(matrix: Any, name: str) -> torch.Tensor:
    if isinstance(matrix, torch.Tensor):
        if matrix.is_meta or matrix.is_nested:
            kind = "on the meta device, without values" if matrix.is_meta else "a nested tensor"
            raise TypeError(f"{name} is {kind}. Rule: an ordinary tensor with values; make one with torch.tensor.")
        if matrix.layout != torch.strided:
            raise TypeError(f"{name} is a sparse tensor ({matrix.layout}). Rule: a dense one; write {name}.to_dense().")
        return matrix
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array. Rule: every entry has a value; write {name}.filled(value).")
    for densify in ("toarray", "dense"):  # of scipy's sparse matrices, of our own products
        if hasattr(matrix, densify) and hasattr(matrix, "nnz"):
            raise TypeError(
                f"{name} is a sparse {type(matrix).__name__}. Rule: a dense matrix; write {name}.{densify}()."
            )
    try:
        array = np.asarray(matrix)
    except ValueError as error:
        raise ValueError(f"{name} is ragged: {error}. Rule: rows of equal length.") from error
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{name} is a {type(matrix).__name__} that numpy cannot read ({error}). "
            "Rule: a torch tensor, a numpy array or rows of numbers."
        ) from error
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"{name} has dtype {array.dtype}. Rule: a real or complex floating-point matrix; "
            f"write np.asarray({name}, dtype='float64')."
        )
    if array.dtype.itemsize > {"f": 8, "c": 16}.get(array.dtype.kind, 8):
        raise TypeError(f"{name} has dtype {array.dtype}. Rule: at most float64 or complex128; use .astype('float64').")
    return from_numpy(array)


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """The tensor of an array; a copy only of what torch cannot share: reversed, byte-swapped or read-only memory.

    >>> from_numpy(np.arange(3)[::-1])
    tensor([2, 1, 0])
    """
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative or not array.flags.writeable:
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def as_permutation(indices: Any, size: int, name: str, device: torch.device | str | None = None) -> torch.Tensor:
    """A permutation of 0 ... size-1 as an int64 tensor; raises `ValueError` if it is not one.

    >>> as_permutation([1, 0], 2, "perm_in")
    tensor([1, 0])
    """
    try:
        tensor = torch.as_tensor(from_numpy(indices) if isinstance(indices, np.ndarray) else indices, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a permutation of 0..{size - 1}, got {type(indices).__name__}.") from error
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if tensor.ndim != 1 or len(tensor) != size or not whole:
        raise ValueError(
            f"{name} must be a permutation of 0..{size - 1}: {size} whole numbers, got shape {tuple(tensor.shape)} "
            f"of {str(tensor.dtype).removeprefix('torch.')}. Write for example list(range({size}))."
        )
    tensor = tensor.long()
    if not torch.equal(tensor.sort().values, torch.arange(size, device=tensor.device)):
        raise ValueError(f"{name} must hold each of 0..{size - 1} exactly once; it has {len(tensor.unique())} of them.")
    return tensor
