"""A corpus on every machine: the source files of Python's own standard library, byte by byte, split by file."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

import torch
from jaxtyping import Int, Integer, UInt8

from ..core import require_whole
from .splits import check_split

# not the library's prose: other people's packages, tests, grammars, tables and generated documentation
SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data"}
SKIPPED_FOLDERS |= {"site-packages", "test", "tests", "turtledemo"}
HELD_OUT_PERCENT = 6  # of the files, for valid and for test each


def python_sources(split: str = "train", limit_bytes: int | None = None) -> UInt8[torch.Tensor, " bytes"]:
    """The *.py files of the standard library that belong to a split, joined in the order of their paths, as bytes.

    A file belongs to "train", "valid" or "test" by a hash of its path, so a split does not depend on the machine; what
    is in the files depends on the version of Python. Folders of tests, tables and third parties are left out, as are
    files that cannot be read. `limit_bytes` keeps the first bytes only. Raises `ValueError` for an unknown split, a
    limit below 1, or a Python without source files. Cost: about 9 MB are read, 0.1 s.

    >>> python_sources("train", limit_bytes=1000).shape
    torch.Size([1000])
    """
    check_split(split)
    if limit_bytes is not None:
        require_whole("limit_bytes", limit_bytes, good=1_000_000, advice="Or None, for all of the split.")
    library = Path(sysconfig.get_path("stdlib"))
    text, left = bytearray(), limit_bytes
    for name in _names(library):
        if split_of(name) != split:
            continue
        try:
            text += (library / name).read_bytes()[:left]
        except OSError:
            continue
        if limit_bytes is not None:
            left = limit_bytes - len(text)
            if left == 0:
                break
    if not text:
        raise ValueError(
            f"this Python has no readable source files of its standard library (split {split!r}). "
            "Rule: *.py files beside the interpreter. Give a text of your own instead."
        )
    return torch.frombuffer(text, dtype=torch.uint8)


def windows(
    tokens: Integer[torch.Tensor, " bytes"], length: int, count: int, generator: torch.Generator | None = None
) -> Int[torch.Tensor, "count length_plus_1"]:
    """`count` windows of length + 1 tokens at places drawn uniformly, as int64: inputs [:, :-1], targets [:, 1:].

    Raises `ValueError` if the tokens are fewer than length + 1, or a size is below 1.

    >>> windows(torch.arange(9), length=8, count=2)[0].tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    _check_length(tokens, length)
    require_whole("count", count)
    starts = torch.randint(len(tokens) - length, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length + 1)].long()


def chunks(tokens: Integer[torch.Tensor, " bytes"], length: int) -> Int[torch.Tensor, "chunks length_plus_1"]:
    """All tokens in order as rows of length + 1, int64; a row begins with the last token of the row before it.

    So each token but the first is the target of exactly one prediction. What does not fill a row is left out.
    Raises `ValueError` as `windows`.

    >>> chunks(torch.arange(6), length=2).tolist()
    [[0, 1, 2], [2, 3, 4]]
    """
    _check_length(tokens, length)
    return tokens.unfold(0, length + 1, length).long()


def _check_length(tokens: torch.Tensor, length: int) -> None:
    if length < 1 or len(tokens) < length + 1:
        raise ValueError(
            f"length is {length} for {len(tokens)} tokens. Rule: at least 1, and length + 1 tokens at least. "
            f"Nearest good value: {max(1, min(length, len(tokens) - 1))}."
            if len(tokens) > 1
            else f"there are {len(tokens)} tokens. Rule: at least 2, an input and a target. Give a longer text."
        )


def _names(library: Path) -> list[str]:
    """Relative paths with forward slashes, sorted, so that order and split are the same on every machine."""
    names = []
    for folder, below, files in os.walk(library):
        below[:] = [name for name in below if name not in SKIPPED_FOLDERS]  # os.walk then does not enter the others
        here = Path(folder).relative_to(library)
        names += [(here / name).as_posix() for name in files if name.endswith(".py")]
    return sorted(names)


def split_of(name: str) -> str:
    """The split of a file by a hash of its path: 6 % are "test", 6 % "valid", whatever other files there are.

    >>> split_of("ast.py"), split_of("hmac.py")
    ('train', 'valid')
    """
    percent = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    if percent < HELD_OUT_PERCENT:
        return "test"
    return "valid" if percent < 2 * HELD_OUT_PERCENT else "train"
