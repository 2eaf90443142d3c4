"""Checks of arguments that several entrances share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from operator import attrgetter

import torch

from ..core import require_whole
from ..structure import Chain
from .cost import dtype_name

_SHAPE, _DEVICE = attrgetter("shape"), attrgetter("device")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
DEVICES = ("cpu", "cuda")
LARGEST = 1 << 40  # of sizes and numbers of vectors


def whole(name: str, value: object) -> int:
    """A whole number from 1 to `LARGEST`; raises `ValueError` that names it for anything else.

    >>> whole("batch", 16)
    16
    """
    return require_whole(name, value, 1, LARGEST, good=16)


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype in which products are multiplied, itself or by name.

    Raises `TypeError` for what is neither, `ValueError` for dtypes that factors do not have, or unknown names.

    >>> dtype_of("bfloat16")
    torch.bfloat16
    """
    if not isinstance(dtype, (str, torch.dtype)):
        raise TypeError(f"dtype is {dtype!r}. Rule: a dtype of torch or its name, such as 'float32'.")
    known = {dtype_name(d): d for d in DTYPES}
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype_name(dtype)
    if name not in known:
        if isinstance(getattr(torch, name, None), torch.dtype):
            raise ValueError(f"factors of dtype {name} are not multiplied. Rule: one of {', '.join(known)}.")
        raise ValueError(f"unknown dtype {name!r}{meant(name, known)} Rule: one of {', '.join(known)}.")
    return known[name]


def kind_of(device: torch.device | str) -> str:
    """The kind of a device whose times are predicted; it need not be here.

    >>> kind_of("cuda:1")
    'cuda'
    """
    kind = device.split(":")[0] if isinstance(device, str) else getattr(device, "type", None)
    if not isinstance(kind, str):
        raise TypeError(f"device is {device!r}. Rule: a device of torch or its name, such as 'cpu' or 'cuda:0'.")
    if kind not in DEVICES:
        raise ValueError(f"times on {kind!r} are not predicted{meant(kind, DEVICES)} Rule: {' or '.join(DEVICES)}.")
    return kind


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is near, if there is one.

    >>> meant("cpuu", ["cpu", "cuda"])
    ", did you mean 'cpu'?"
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else "."


def require_sizes(x: torch.Tensor, chain: Chain, factors: Sequence[torch.Tensor], last: bool) -> None:
    """Raise `ValueError` unless x (rows, n), or (n, rows) if `last`, and the factors fit the chain, on one device.

    On the way of every call, since kernels read memory by address.
    """
    n = chain.shape[1]
    if x.ndim != 2 or x.shape[0 if last else 1] != n:
        rule = f"({n}, rows)" if last else f"(rows, {n})"
        raise ValueError(f"x has shape {tuple(x.shape)}, the product has {n} columns. Rule: x is {rule}.")
    if list(map(_SHAPE, factors)) != chain.factor_shapes:
        shapes = [tuple(w.shape) for w in factors]
        raise ValueError(f"the factors have shapes {shapes}. Rule: those of {chain}, {chain.factor_shapes}.")
    if {x.device} != set(map(_DEVICE, factors)):
        others = ", ".join(sorted({str(w.device) for w in factors}))
        raise ValueError(f"x is on {x.device}, the product on {others}. Rule: one device.")
