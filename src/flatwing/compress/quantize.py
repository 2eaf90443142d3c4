"""Weight-only quantization: int8 by rows (also on disk), int4 by groups (to compare with)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int8, Num, UInt8
from torch import nn

from ..core import as_matrix, divisors

GROUP = 64  # columns that share a scale at 4 bits
CLIPS = tuple(1 - 0.04 * k for k in range(9))  # shares of a group's range that are tried as its range
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


def quantize_rows(
    W: Num[torch.Tensor, "*blocks m n"],
) -> tuple[Int8[torch.Tensor, "*blocks m n"], Float[torch.Tensor, "*blocks m"]]:
    """Symmetric int8: W is about values * scale[..., None], with scale = max |row| / 127 in float32.

    Rows of zeros get the scale 0. The error of an entry is at most half its row's scale. Raises `ValueError` for NaN,
    Inf and complex numbers.

    >>> values, scale = quantize_rows(torch.tensor([[127.0, -63.6], [0.0, 0.0]]))
    >>> values.tolist(), scale.tolist()
    ([[127, -64], [0, 0]], [1.0, 0.0])
    """
    matrix = _real(W)
    scale = (matrix.abs().amax(-1) / 127).float()
    if not bool(scale.isfinite().all()):
        raise ValueError("W holds numbers beyond float32, in which scales are kept. Rule: |w| < 3e38. Rescale W.")
    safe = torch.where(scale > 0, scale, 1.0).to(matrix.dtype)[..., None]
    return (matrix / safe).round().clamp(-127, 127).to(torch.int8), scale


def dequantize_rows(
    values: Int8[torch.Tensor, "*blocks m n"],
    scale: Float[torch.Tensor, "*blocks m"],
    dtype: torch.dtype = torch.float32,
) -> Float[torch.Tensor, "*blocks m n"]:
    """values * scale for each row.

    >>> dequantize_rows(torch.tensor([[2, -1]], dtype=torch.int8), torch.tensor([0.5])).tolist()
    [[1.0, -0.5]]
    """
    return (values.float() * scale.float()[..., None]).to(dtype)


@final
@dataclass(frozen=True)
class Groups:
    """A matrix in 4 bits: w is about (code - zero) * scale, one scale and zero for each group of columns of a row.

    `codes` (m, n) and `zeros` (m, groups) hold 0 ... 15, `scales` (m, groups) are bfloat16.
    """

    codes: UInt8[torch.Tensor, "m n"]
    scales: Float[torch.Tensor, "m groups"]
    zeros: UInt8[torch.Tensor, "m groups"]

    def dense(self) -> Float[torch.Tensor, "m n"]:
        """The matrix in float32."""
        m, groups = self.scales.shape
        codes = self.codes.reshape(m, groups, -1).float() - self.zeros.float()[..., None]
        return (codes * self.scales.float()[..., None]).reshape(m, -1)

    @property
    def bytes(self) -> int:
        """Bytes when packed: 4 bits for each code and zero, 2 bytes for each scale."""
        return math.ceil((self.codes.numel() + self.zeros.numel()) / 2) + 2 * self.scales.numel()


def quantize_groups(W: Num[torch.Tensor, "m n"], group: int = GROUP) -> Groups:
    """Round to nearest in 4 bits; each group gets the range, out of nine, that loses least (squared error).

    Groups have `group` columns, or the divisor of n next to it. Ranges hold 0, so that zeros stay zeros. Raises
    `ValueError` for NaN, Inf and complex numbers. Cost: nine passes over W.

    >>> quantize_groups(torch.tensor([[0.0, 1.5, 3.0, 7.5]])).dense().tolist()
    [[0.0, 1.5, 3.0, 7.5]]
    """
    matrix = _real(W).float()
    m, n = matrix.shape
    size = min(divisors(n), key=lambda d: abs(math.log(d / group)))
    x = matrix.reshape(m, n // size, size)
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    best: list[torch.Tensor] = []
    for clip in CLIPS:
        scale = (clip * (high - low) / 15).bfloat16().float()
        safe = torch.where(scale > 0, scale, 1.0)
        zero = (-clip * low / safe).round().clamp(0, 15)
        code = (x / safe + zero).round().clamp(0, 15)
        error = ((code - zero) * scale - x).square().sum(-1, keepdim=True)
        new = [error, code, scale, zero]
        best = [torch.where(error < best[0], a, b) for a, b in zip(new, best, strict=True)] if best else new
    _, code, scale, zero = best
    return Groups(code.reshape(m, n).byte(), scale[..., 0].bfloat16(), zero[..., 0].byte())


def quantizable(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Keys of the state of these layers that take less room as int8: matrices and factors, no biases.

    >>> quantizable(nn.Sequential(nn.Linear(64, 8)), ["0"])
    ['0.weight']
    """
    keys = []
    for name in layers:
        for own, p in model.get_submodule(name).named_parameters():
            if p.ndim >= 2 and p.is_floating_point() and int8_bytes(p.shape) < p.numel() * p.element_size():
                keys.append(f"{name}.{own}" if name else own)
    return keys


def saved_bytes(model: nn.Module, layers: Iterable[str]) -> int:
    """How many bytes smaller the file of a model is with these layers as int8; a shared weight counts once.

    >>> saved_bytes(nn.Sequential(nn.Linear(64, 8)), ["0"])  # 8 rows of 64 floats, of 64 bytes and a scale
    1504
    """
    found = {p.data_ptr(): p for p in map(model.get_parameter, quantizable(model, layers))}
    return sum(p.numel() * p.element_size() - int8_bytes(p.shape) for p in found.values())


def fake_quantized(model: nn.Module, layers: Iterable[str], bits: int = 8) -> nn.Module:
    """Round the matrices and factors of these layers in place, so that the model's quality can be measured.

    With 8 bits the values are those that `quantized_state` keeps. Returns the model. Raises `ValueError` for other
    widths than 8 and 4, and for NaN, naming the tensor.

    >>> model = nn.Sequential(nn.Linear(64, 8))
    >>> len(fake_quantized(model, ["0"])[0].weight[0].unique()) <= 255
    True
    """
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}. Rule: 8 or 4.")
    done: set[int] = set()
    for key in quantizable(model, layers):
        p = model.get_parameter(key)
        if p.data_ptr() in done:  # a shared weight
            continue
        done.add(p.data_ptr())
        with torch.no_grad(), _naming(key):
            if bits == 8:
                p.copy_(dequantize_rows(*quantize_rows(p), p.dtype))
            else:
                p.copy_(quantize_groups(p.reshape(-1, p.shape[-1])).dense().reshape(p.shape))
    return model


def quantized_state(
    state: Mapping[str, torch.Tensor], keys: Iterable[str]
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, str]]]:
    """The state with `<key>.int8` and `<key>.scale` instead of each of the `keys`, and what `restore_state` needs.

    The second part is plain data for JSON: the dtype of each key. Raises `ValueError` for an unknown key, a name that
    is taken, and NaN (the tensor is named).

    >>> state, info = quantized_state({"a": torch.ones(2, 8), "b": torch.ones(3)}, ["a"])
    >>> list(state), info
    (['a.int8', 'a.scale', 'b'], {'a': {'dtype': 'float32'}})
    """
    wanted = dict.fromkeys(keys)
    if unknown := [key for key in wanted if key not in state]:
        raise ValueError(f"the state has no {unknown[0]!r}. Rule: keys of the state; it has {len(state)}.")
    result: dict[str, torch.Tensor] = {}
    info: dict[str, dict[str, str]] = {}
    for key, tensor in state.items():
        if key not in wanted:
            result[key] = tensor
            continue
        parts = f"{key}.int8", f"{key}.scale"
        if taken := [part for part in parts if part in state]:
            raise ValueError(f"{taken[0]!r} is the name of another tensor. Leave {key!r} as it is.")
        with _naming(key):
            values, scale = quantize_rows(tensor)
        result |= {parts[0]: values, parts[1]: scale}
        info[key] = {"dtype": str(tensor.dtype).removeprefix("torch.")}
    return result, info


def restore_state(state: Mapping[str, torch.Tensor], info: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Inverse of `quantized_state` but for the rounding. Raises `ValueError` for what does not fit together.

    >>> restore_state(*quantized_state({"a": torch.full((1, 2), 127.0)}, ["a"]))
    {'a': tensor([[127., 127.]])}
    """
    owner = {f"{key}.int8": key for key in info}
    scales = {f"{key}.scale" for key in info}
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name in scales:
            continue
        if name not in owner:
            result[name] = tensor
            continue
        key = owner.pop(name)
        scale, dtype = state.get(f"{key}.scale"), DTYPES.get(str(info[key].get("dtype")))
        if dtype is None:
            known = ", ".join(DTYPES)
            raise ValueError(f"{key!r} has the dtype {info[key].get('dtype')!r}. Rule: one of {known}.")
        if scale is None or tensor.dtype != torch.int8 or scale.shape != tensor.shape[:-1]:
            scales_shape = None if scale is None else tuple(scale.shape)
            raise ValueError(
                f"{key!r} is kept as {tuple(tensor.shape)} {tensor.dtype} with scales {scales_shape}. "
                "Rule: int8, one scale for each row; the file is damaged."
            )
        result[key] = dequantize_rows(tensor, scale, dtype)
    if owner:
        raise ValueError(f"the tensor {next(iter(owner))!r} is missing. Rule: one for each quantized key.")
    return result


def int8_bytes(shape: Iterable[int]) -> int:
    """Bytes of a tensor as int8: one per value, four per row for the scale.

    >>> int8_bytes((2, 3, 10))
    84
    """
    *rows, n = shape
    return math.prod(rows) * (n + 4)


def _real(W: torch.Tensor) -> torch.Tensor:
    matrix = as_matrix(W, "W", batch=True)
    if matrix.is_complex():
        raise ValueError(f"W is {matrix.dtype}. Rule: real numbers are quantized; leave this layer as it is.")
    return matrix


@final
class _naming:
    """Puts the name of the tensor in front of an error."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> None:
        if isinstance(error, (TypeError, ValueError)):
            raise type(error)(f"{self.key}: {error}") from error
