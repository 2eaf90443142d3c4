"""Tile: how the work of one launch is cut, and the shipped table of tiles that compile well.

Every entry of `tiles.json` was compiled ahead of time for sm_90 and sm_80 by `benchmarks/gpu_tiles.py`: no register is
spilled (but see `even` and `oldest`), and `shared` is the largest amount of shared memory. Tests compile some again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, final

import torch

Kind = Literal["factor", "weights", "pair", "pair_weights"]
Arithmetic = Literal["half", "single", "tf32"]
"""16-bit numbers on tensor cores, float32 as IEEE demands, float32 rounded to tf32 on tensor cores."""


@final
@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of what one program computes; all are powers of two.

    >>> Tile("flat", rows=64, outs=32, ins=32).warps
    4
    """

    kernel: str
    """"flat", "deep", "tiny" (see `factor`), "pair" or "pair_weights"."""
    rows: int
    outs: int
    ins: int
    depth: int = 1
    """Blocks at a time: indices k for "deep", blocks for "tiny", groups for pairs."""
    middle: int = 1
    """For pairs: all of the middle index, rounded up."""
    warps: int = 4
    stages: int = 2
    even: bool = False
    """Spills registers unless the sizes of the pattern are multiples of 16, so that loads are wide."""
    oldest: int = 80
    """Compute capability from which on nothing is spilled, as in sm_80."""
    shared: int = 0
    """Bytes of shared memory."""


def arithmetic(dtype: torch.dtype) -> Arithmetic:
    """How products of this dtype are computed: float32 exactly, unless torch was told that tf32 will do.

    >>> arithmetic(torch.bfloat16)
    'half'
    """
    if dtype.itemsize == 2:
        return "half"
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed else "single"


@cache
def table(kind: Kind, numbers: Arithmetic) -> tuple[Tile, ...]:
    """The shipped tiles for one kind of launch."""
    text = files(__name__.rpartition(".")[0]).joinpath("tiles.json").read_text(encoding="utf-8")
    return tuple(Tile(*entry) for entry in json.loads(text)[numbers][kind])


def pieces(size: int, piece: int) -> int:
    """How many pieces cover a size.

    >>> pieces(10, 4)
    3
    """
    return -(-size // piece)
