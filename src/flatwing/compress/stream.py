"""Stream: a safetensors file written tensor by tensor, so that a model never has to fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, final

import torch

from ..core import replacing
from .header import DTYPES, write_header

ORDER = {dtype: -place for place, dtype in enumerate(DTYPES.values())}


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that will be written: `produce` is called once, when its turn comes, and gives exactly this tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    produce: Callable[[], torch.Tensor]


def write_stream(
    path: str | os.PathLike[str], entries: Iterable[Entry], metadata: Mapping[str, str] | None = None
) -> int:
    """Write a safetensors file; the result is the number of bytes of the values.

    Values stand in the order of the library (large dtypes first, then by name), which keeps them aligned; the bytes are
    those that `safetensors.torch.save_file` writes. Memory: one tensor. The file appears whole or not at all.

    Raises `ValueError` for a dtype that the format does not have, two tensors of one name, a tensor that is not what
    its entry says, and a folder that cannot be written; `OSError` if the disk is full.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from safetensors.torch import load_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.safetensors"
    ...     size = write_stream(file, [Entry("a", torch.float32, (2,), lambda: torch.ones(2))])
    ...     print(size, load_file(file))
    8 {'a': tensor([1., 1.])}
    """
    ordered = sorted(entries, key=lambda entry: (ORDER.get(entry.dtype, 0), entry.name))
    header = write_header([(entry.name, entry.dtype, entry.shape) for entry in ordered], metadata)
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(header)
                total = sum(_write(file, entry) for entry in ordered)
                file.flush()
                os.fsync(file.fileno())  # a part that exists after a power cut is whole
        except OSError as error:
            raise OSError(
                error.errno, f"could not write {str(path)!r} ({error.strerror}); nothing was changed. Free some space"
            ) from error
    return total


def _write(file: BinaryIO, entry: Entry) -> int:
    tensor = entry.produce()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != tuple(entry.shape):
        raise ValueError(
            f"{entry.name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}. "
            f"Rule: {entry.dtype} of shape {tuple(entry.shape)}, as announced in the header."
        )
    values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    file.write(values.numpy().data)
    return values.numel()
