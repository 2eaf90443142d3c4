"""Reading matrices from files. Nothing that a file contains is ever executed."""

from __future__ import annotations

import difflib
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..core import as_matrix

_KEYED = re.compile(r"(?P<path>.+?\.(?:npz|safetensors)):(?P<key>.*)", re.IGNORECASE | re.DOTALL)
LARGEST_DENSE = 2**31  # entries; 16 GiB in float64
UNREADABLE = (ValueError, EOFError, OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What the readers of numpy and safetensors raise for files that are cut or of another kind."""


def read_matrix(source: str) -> torch.Tensor:
    """The matrix behind PATH.npy, PATH.npz:KEY, PATH.safetensors:KEY or PATH.mtx.

    Raises `ValueError` or `TypeError` that names the source for everything that is not a finite, non-empty
    floating-point matrix, for files that are missing, truncated or of another kind, and for unknown keys.
    """
    match = _KEYED.fullmatch(source)
    path, key = (Path(match["path"]), match["key"]) if match and not Path(source).is_file() else (Path(source), None)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        why = " That file may be a pickle, which can run code when it is read." if suffix in PICKLES else ""
        raise ValueError(
            f"cannot read {source!r}: its suffix is {suffix!r}. "
            f"Rule: .npy, .npz:KEY, .safetensors:KEY or .mtx.{why} Save the matrix with numpy.save."
        )
    require_file(path)
    matrix = READERS[suffix](path, key)
    try:
        checked = as_matrix(matrix)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{source}: {error}") from error
    # back to the dtype of the file, without loss: what half precision means is for the library to say
    if isinstance(matrix, torch.Tensor):
        return checked.to(matrix.dtype)
    return checked.half() if matrix.dtype.itemsize == 2 else checked


def require_file(path: Path) -> None:
    """Raise `ValueError` unless there is a file, with the name that comes nearest in its folder."""
    if path.is_dir():
        raise ValueError(f"cannot read {str(path)!r}: it is a folder. Name a file in it.")
    if not path.exists():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f" Did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise ValueError(f"there is no file {str(path)!r}.{hint}")


def _read_npy(path: Path, key: str | None) -> np.ndarray | torch.Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise unreadable(path, "numpy array", error) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{str(path)!r} is an .npz archive by its content. Rename it to .npz.")
    return array


def _read_npz(path: Path, key: str | None) -> np.ndarray | torch.Tensor:
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {n.removesuffix(".npy"): _npy_shape(archive, n) for n in archive.namelist() if n.endswith(".npy")}
        with np.load(path, allow_pickle=False) as arrays:
            key = _pick(path, key, shapes)
            return arrays[key]
    except _WrongKey as error:
        raise ValueError(str(error)) from None
    except UNREADABLE as error:
        raise unreadable(path, "numpy archive", error) from error


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0]


def _read_safetensors(path: Path, key: str | None) -> np.ndarray | torch.Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return file.get_tensor(_pick(path, key, shapes))
    except _WrongKey as error:
        raise ValueError(str(error)) from None
    except (SafetensorError, *UNREADABLE) as error:
        raise unreadable(path, "safetensors file", error) from error


def _read_mtx(path: Path, key: str | None) -> np.ndarray | torch.Tensor:
    from scipy.io import mminfo, mmread

    try:
        rows, columns = mminfo(path)[:2]
        matrix = mmread(path) if rows * columns <= LARGEST_DENSE else None
    except UNREADABLE as error:
        raise unreadable(path, "Matrix Market file", error) from error
    if matrix is None:  # a few bytes of a sparse file can stand for more memory than there is
        raise ValueError(
            f"{str(path)!r} is {rows} x {columns}. Rule: it is made dense, so rows times columns <= {LARGEST_DENSE}."
        )
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


READERS: Mapping[str, Callable[[Path, str | None], np.ndarray | torch.Tensor]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".mtx": _read_mtx,
}
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


class _WrongKey(Exception):
    """The file is fine, the key is not; kept apart from the many errors of broken files."""


def _pick(path: Path, key: str | None, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The key itself if it exists; without a key the only array, or the only matrix."""
    sizes = {name: "x".join(map(str, shape)) or "scalar" for name, shape in shapes.items()}
    listing = ", ".join(f"{name} ({size})" for name, size in sizes.items()) or "nothing"
    if key is not None and key in shapes:
        return key
    if key:
        near = difflib.get_close_matches(key, shapes, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise _WrongKey(f"{str(path)!r} has no array {key!r}{hint} It holds {listing}.")
    matrices = list(shapes) if len(shapes) == 1 else [name for name, shape in shapes.items() if len(shape) == 2]
    if len(matrices) == 1:
        return matrices[0]
    count = f"{len(matrices)} matrices" if matrices else "no matrix"
    step = f" Name one, such as {str(path) + ':' + matrices[0]!r}." if matrices else ""
    raise _WrongKey(f"{str(path)!r} holds {count}: {listing}.{step}")


HOLDERS = (b"\x93NUMPY", b"PK", b"\x80")  # beginnings of .npy, of .npz, and of pickles since Python 2.3


def _begins(path: Path, *starts: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(starts)


def unreadable(path: Path, kind: str, error: BaseException) -> ValueError:
    """What to raise for a file that is no readable `kind`; Python objects in it are named as such."""
    if "allow_pickle" in str(error) or "pickled" in str(error):
        if not _begins(path, *HOLDERS):  # numpy takes whatever is neither for a pickle
            return ValueError(
                f"{str(path)!r} is not a readable {kind}: it does not begin as .npy and .npz do. Write it again, with "
                "numpy.save or numpy.savez."
            )
        return ValueError(
            f"{str(path)!r} holds Python objects (a pickle), which can run code when read. "
            "Rule: numbers only; save np.asarray(matrix, dtype='float64')."
        )
    return ValueError(f"{str(path)!r} is not a readable {kind}, it may be truncated ({error}). Write it again.")
