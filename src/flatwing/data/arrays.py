"""A user's own arrays: rows with labels, or a row of tokens, from .npy and .npz files that are never unpickled."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int

from ..core import require_number
from .samples import Pieces
from .splits import Splits
from .text import by_ranges

NPY, ZIP = b"\x93NUMPY", b"PK"  # how files of one array and of several begin
BITE = 1 << 24  # tokens looked at in one go
CLASSES = 1 << 20  # no head has more outputs; numbers above are keys of something, not labels
VOCAB = 1 << 31  # and those are no tokens


# what numpy raises for bad files; the last two for headers that claim more than there is, or nest without end
UNREADABLE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError, RecursionError)


@contextmanager
def opened_arrays(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """An open file of numpy; what numpy says inside of one that it cannot read becomes one kind of `ValueError`.

    A file is opened here because numpy leaves a damaged one open.
    """
    try:
        with open(path, "rb") as file:
            if not file.read(len(NPY)).startswith((NPY, ZIP)):
                raise ValueError("it does not begin as one")
            file.seek(0)
            yield file
    except UNREADABLE as error:
        # what numpy says of objects is how to run what is in them
        why = "it holds objects" if "pickle" in str(error) else error
        raise ValueError(
            f"{str(path)!r} is not readable ({why}). Rule: a whole .npy or .npz file of numbers, as np.save and "
            "np.savez write it; pickled objects are not read."
        ) from None


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """{"x": ..., "y": ...} or {"tokens": ...} of a file of numpy; the array of a .npy file is tokens, memory-mapped.

    Raises `ValueError` for a file that is not there, damaged, of another kind, or holds pickled objects, and for other
    names of arrays. Nothing in the file is executed.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}. Rule: a .npy or .npz file.")
    with opened_arrays(path) as file:
        if file.read(len(NPY)) == NPY:
            return {"tokens": np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))}
        file.seek(0)
        loaded = np.load(file, allow_pickle=False)
        wanted = next((keys for keys in ({"x", "y"}, {"tokens"}) if keys <= set(loaded.files)), None)
        if wanted is not None:
            return {name: loaded[name] for name in sorted(wanted)}
    raise ValueError(
        f"{str(path)!r} holds {', '.join(sorted(loaded.files)) or 'nothing'}. Rule: arrays x and y, or tokens. "
        "Write np.savez(path, x=..., y=...)."
    )


def as_rows(x: Any, y: Any, scale: float | int = 1) -> tuple[Float[torch.Tensor, "n *shape"], Int[torch.Tensor, " n"]]:
    """Checked rows x / scale, float32 (n, ...), and labels int64 (n,).

    Raises `TypeError` for dtypes that are no numbers or, for y, not whole; `ValueError` for other shapes, entries of x
    that are not finite in float32, labels below 0 or, what row numbers have, more classes than rows.

    >>> x, y = as_rows(np.array([[0, 255], [255, 0]], dtype=np.uint8), np.array([1, 0]), scale=255)
    >>> x.tolist(), y.tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [1, 0])
    """
    x, y = np.asarray(x), np.asarray(y)
    require_number("scale", scale, above=0, good=255, advice="Pixels in bytes have 255, all else 1.")
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x has dtype {x.dtype}. Rule: real numbers. Write x.astype('float32').")
    if y.dtype.kind not in "iu":
        exact = y.dtype.kind == "b" or (y.dtype.kind == "f" and bool((np.isfinite(y) & (y == np.rint(y))).all()))
        mend = "y.astype('int64')" if exact else "np.unique(y, return_inverse=True)[1]"
        raise TypeError(f"y has dtype {y.dtype}. Rule: whole numbers, one for each class. Write {mend}.")
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or not x.size:
        raise ValueError(f"x has shape {x.shape}, y has {y.shape}. Rule: x (n, ...) and y (n,), n at least 1.")
    with np.errstate(over="ignore"):  # what overflows is named below
        rows = torch.from_numpy(x.astype(np.float32)).div_(scale)
    if len(bad := (~torch.isfinite(rows)).nonzero()):
        where = tuple(bad[0].tolist())
        raise ValueError(
            f"x has {len(bad)} entries that are not finite in float32, the first is {x[where]} at {where}. "
            "Rule: finite numbers. Mend the data, for instance with np.nan_to_num."
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= CLASSES:
        raise ValueError(
            f"y holds labels from {low} to {high}. Rule: 0 ... classes - 1, at most {CLASSES} classes. "
            "Write np.unique(y, return_inverse=True)[1]."
        )
    return rows, torch.from_numpy(y.astype(np.int64))


def as_tokens(tokens: np.ndarray, vocab: int | None = None) -> tuple[Splits[Pieces], int]:
    """A row of tokens in three ranges (88 %, 6 %, 6 %), and the size of its vocabulary: `vocab`, or the largest + 1.

    Raises `TypeError` if they are not whole numbers; `ValueError` if they are no row, or not in 0 ... vocab - 1.
    Cost: all tokens are read once, 16 million at a time.

    >>> as_tokens(np.array([3, 1, 2] * 20, dtype=np.uint16))[1]
    4
    """
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens have dtype {tokens.dtype}. Rule: whole numbers. Save them as uint16 or int64.")
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"tokens have shape {tokens.shape}. Rule: one row of at least 1. For x and y write an .npz.")
    bites = [tokens[start : start + BITE] for start in range(0, len(tokens), BITE)]
    low, high = min(int(bite.min()) for bite in bites), max(int(bite.max()) for bite in bites)
    limit = VOCAB if vocab is None else vocab
    if low < 0 or high >= limit:
        raise ValueError(f"tokens go from {low} to {high}. Rule: 0 ... vocab - 1, vocab is at most {limit}.")
    return by_ranges([tokens]), high + 1 if vocab is None else vocab
