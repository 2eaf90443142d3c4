"""Magnitudes of the factors in `model.safetensors`, as small PNG pictures inside the page."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from .record import Layer
from .supports import Pattern, patterns, size

CELLS: Final = 96  # cells along the longer side of a panel
LARGEST: Final = 20_000_000  # entries of a factor that are still read
LEVELS: Final = 32  # depths of colour
COLOUR: Final = (58, 124, 224)  # readable on white and on black
FAINTEST: Final = 0.10  # opacity of the smallest entry: it must not be mistaken for an absent one
BLAST: Final = ("left", "coupling", "right")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The tensors of a file by name, read when asked for; raises `ValueError` if it is not a whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def magnitudes(file: Any, layer: Layer) -> list[str] | None:
    """A data URI per factor of a layer, or `None` where the file does not hold them as plain numbers.

    A factor of pattern (a, b, c, d) is stored as (a*d, b, c), blocks first; a layer with shared bases as left
    (A, m/A, r), coupling (A, B, r) and right (B, r, n/B) or (B, n/B, r). A tensor KEY may be stored as KEY.int8 and
    KEY.scale, one scale for each row of its blocks.
    """
    chain, names = patterns(layer), {key.removesuffix(".int8") for key in file.keys()}  # noqa: SIM118 (no mapping)
    if chain is None:
        return None
    keys = [f"{layer.name}.factors.{i}" for i in range(len(chain))]
    blast = [f"{layer.name}.{part}" for part in BLAST]
    found = keys if names.issuperset(keys) else blast if len(chain) == len(BLAST) and names.issuperset(blast) else None
    if found is None:
        return None
    images = []
    for key, pattern in zip(found, chain, strict=True):
        blocks = _blocks(file, key, pattern, shared=found is blast)
        if blocks is None:
            return None
        images.append(data_uri(cells(blocks, pattern)))
    return images


def _blocks(file: Any, key: str, pattern: Pattern, shared: bool) -> np.ndarray | None:
    """Absolute values of one factor as (a*d, b, c), or `None` if the tensor is not that factor."""
    import torch

    a, b, c, d = pattern
    rounded = f"{key}.int8" in file.keys()  # noqa: SIM118 (no mapping)
    shape = tuple(file.get_slice(f"{key}.int8" if rounded else key).get_shape())
    if a * b * c * d > LARGEST:
        return None
    if shared and key.endswith(".coupling"):
        order = (2, 0, 1) if shape == (b, c, d) else None
    else:
        order = (0, 1, 2) if shape == (a * d, b, c) else (0, 2, 1) if shared and shape == (a, c, b) else None
    if order is None:
        return None
    if rounded:
        if f"{key}.scale" not in file.keys():  # noqa: SIM118
            return None
        tensor, scale = file.get_tensor(f"{key}.int8"), file.get_tensor(f"{key}.scale")
        if tuple(scale.shape) != shape[:-1]:
            return None
        tensor = tensor.float() * scale.float()[..., None]
    else:
        tensor = file.get_tensor(key)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    return torch.nan_to_num(tensor.abs().float()).permute(order).numpy()


def cells(blocks: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The factor in at most `CELLS` x `CELLS` cells, each the largest magnitude in it; -1 outside of the support.

    Entry (p, q) of block i * d + k stands in row (i*b + p)*d + k and column (i*c + q)*d + k.
    """
    a, b, c, d = pattern
    rows, columns = size(pattern)
    step = -(-max(rows, columns) // CELLS)
    picture = np.full((-(-rows // step), -(-columns // step)), -1.0, dtype=np.float32)
    i, k = np.divmod(np.arange(a * d), d)
    row = (i[:, None] * b + np.arange(b)) * d + k[:, None]
    column = (i[:, None] * c + np.arange(c)) * d + k[:, None]
    np.maximum.at(picture, (row[:, :, None] // step, column[:, None, :] // step), blocks)
    return picture


def data_uri(picture: np.ndarray) -> str:
    """A picture of magnitudes as the data URI of a PNG; transparent where a cell is negative."""
    top = float(picture.max()) or 1.0
    depth = np.sqrt(np.clip(picture / top, 0, 1))  # the eye tells small ones apart, too
    index = np.where(picture < 0, 0, 1 + np.round(depth * (LEVELS - 2))).astype(np.uint8)
    opacity = [0] + [round(255 * (FAINTEST + (1 - FAINTEST) * i / (LEVELS - 2))) for i in range(LEVELS - 1)]
    return "data:image/png;base64," + base64.b64encode(png(index, [COLOUR] * LEVELS, opacity)).decode("ascii")


def png(index: np.ndarray, palette: Sequence[tuple[int, int, int]], opacity: Sequence[int]) -> bytes:
    """A PNG file of colours from a palette: `index` is (rows, columns) of uint8 (PNG specification, colour type 3)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = index.shape
    scanlines = np.concatenate([np.zeros((rows, 1), np.uint8), index], axis=1).tobytes()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes(value for colour in palette for value in colour))
        + chunk(b"tRNS", bytes(opacity))
        + chunk(b"IDAT", zlib.compress(scanlines, 9))
        + chunk(b"IEND", b"")
    )
