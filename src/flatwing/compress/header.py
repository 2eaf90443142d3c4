"""The header of a safetensors file: what it holds and where, read and written without touching the values.

Format: 8 bytes with the length of the header (little endian), the header as JSON, then the values one after another.
Source: the safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard, final

import torch

from ..core import parse_json

DTYPES = {  # in the order of the library, which writes the last ones first
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
LONGEST = 100_000_000  # bytes of a header; the library refuses longer ones as well
ALIGNMENT = 8  # of the first value: the header is filled up with spaces


@final
@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor; its values are `nbytes` bytes at `offset` of `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a file in the order of their values, and its metadata; only the header is read.

    Raises `ValueError` unless the values fill the file exactly, without gaps, overlaps or missing bytes.
    """
    start, table = _json(path)
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refuse(path, "its metadata is not an object of texts")
    found = sorted(
        (_entry(path, name, entry, start) for name, entry in table.items()), key=lambda t: (t.offset, t.nbytes)
    )
    end = start
    for info in found:
        if info.offset != end:
            raise _refuse(
                path, f"the values of {info.name!r} begin at byte {info.offset}, the ones before end at {end}"
            )
        end += info.nbytes
    size = path.stat().st_size
    if size < end:
        raise _refuse(path, f"it is truncated: the header describes {end} bytes and the file has {size}")
    if size > end:
        raise _refuse(path, f"{size - end} bytes follow the last tensor that the header describes")
    return {info.name: info for info in found}, metadata


def write_header(
    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    r"""The bytes that stand before the values of these tensors; raises `ValueError` for a dtype without a code.

    >>> write_header([("a", torch.int8, (2, 3))])
    b'8\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"I8","shape":[2,3],"data_offsets":[0,6]}}  '
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        if dtype not in CODES:
            raise ValueError(f"{name!r} is {dtype}. Rule: a dtype of safetensors: {', '.join(map(str, CODES))}.")
        if name in table or name == "__metadata__":
            raise ValueError(f"two tensors are called {name!r}. Rule: one name, one tensor.")
        start, end = end, end + prod(shape) * dtype.itemsize
        table[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _json(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the values begin, and the header as it stands in the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8:
            raise _refuse(path, f"it has {size} bytes and a header needs more")
        if length > LONGEST:
            raise _refuse(path, f"its first 8 bytes announce a header of {length} bytes, more than {LONGEST}")
        if length + 8 > size:
            raise _refuse(path, f"it is truncated: its header has {length} bytes and the file {size}")
        text = file.read(length)
    try:
        table = parse_json(text.decode(), object_pairs_hook=_unique)
    except ValueError as error:
        raise _refuse(path, f"its header is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise _refuse(path, f"its header is a {type(table).__name__}, not an object")
    return length + 8, table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return result


def _entry(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _refuse(path, f"{name!r} is described by a {type(entry).__name__}, not an object")
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if code not in DTYPES:
        raise _refuse(path, f"{name!r} has dtype {code!r}, which torch cannot read here (known: {', '.join(DTYPES)})")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _refuse(path, f"{name!r} has shape {shape!r} and offsets {offsets!r}, which are not lists of sizes")
    nbytes = prod(shape) * DTYPES[code].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise _refuse(path, f"{name!r} of shape {shape} and dtype {code} needs {nbytes} bytes, not {offsets}")
    return TensorInfo(name, DTYPES[code], tuple(shape), nbytes, path, start + offsets[0])


def _naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _refuse(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is not a readable safetensors file: {why}. Rule: a whole file as safetensors.torch.save_file "
        "writes it. Download or write it again."
    )
