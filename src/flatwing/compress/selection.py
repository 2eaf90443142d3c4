"""Selection: which tensors of a checkpoint are matrices of linear layers, when only names and shapes are known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

import torch

from .checkpoint import Checkpoint

SMALLEST = 16  # inputs and outputs; below, there is nothing to gain
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# last word of the module name -> why its weight is no matrix that a structure may replace
TABLES = re.compile(r"embed(?!.*(proj|linear))|(^|_)emb($|_)|^(wte|wpe|shared)$|relative_attention_bias")
NORMS = re.compile(r"norm|^ln(_|\d|$)")
ROUTERS = re.compile(r"^(gate|router)$|_router$")
HEADS = re.compile(
    r"(^|_)head(s)?$|^(classifier|embed_out|output_projection|pooler|qa_outputs|score|seq_relationship)$"
)
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "gpt2_double_heads")
CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")


@final
@dataclass(frozen=True, slots=True)
class Matrix:
    """The weight of one layer; `shape` is (outputs, inputs), `transposed` if it is stored as (inputs, outputs).

    `reason` says why it stays as it is, `action` ("kept" or "skipped") goes with it; None for what is compressed.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    transposed: bool
    bias: bool
    action: str | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        """Name of the tensor."""
        return f"{self.name}.weight"

    @property
    def parameters(self) -> int:
        """Numbers in the matrix."""
        return self.shape[0] * self.shape[1]


def select(checkpoint: Checkpoint, where: str | Sequence[str] = "*", *, skip_heads: bool = True) -> list[Matrix]:
    """All two-dimensional tensors called `*.weight`, with the reason why one stays; in the order of the checkpoint.

    Stored transposes are known from the kind of model in config.json, or from the length of a bias beside a matrix that
    is not square. Raises `ValueError` if a glob of `where` matches none of the layers that can be replaced.
    """
    names = [name for name in checkpoint.names if name.endswith(".weight") and len(checkpoint.info(name).shape) == 2]
    transposed = _transposed(checkpoint, names)
    found = []
    for key in names:
        info, name = checkpoint.info(key), key.removesuffix(".weight")
        m, n = info.shape[::-1] if name in transposed else info.shape
        reason = _skip(checkpoint, name, info.dtype, (m, n), skip_heads=skip_heads)
        bias = f"{name}.bias" in checkpoint.names
        found.append(Matrix(name, (m, n), info.dtype, name in transposed, bias, reason and "skipped", reason))
    open_ = [matrix.name for matrix in found if matrix.reason is None]
    chosen = _matching(open_, [where] if isinstance(where, str) else where)
    return [
        matrix
        if matrix.reason or matrix.name in chosen
        else Matrix(*_facts(matrix), action="skipped", reason="not selected by where")
        for matrix in found
    ]


def kept(matrix: Matrix, reason: str) -> Matrix:
    """The same matrix, which could be replaced and better is not."""
    return Matrix(*_facts(matrix), action="kept", reason=reason)


def _facts(matrix: Matrix) -> tuple[str, tuple[int, int], torch.dtype, bool, bool]:
    return matrix.name, matrix.shape, matrix.dtype, matrix.transposed, matrix.bias


def _skip(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, shape: tuple[int, int], *, skip_heads: bool
) -> str | None:
    words = [word for word in name.split(".") if not word.isdigit()] or [name]
    last = words[-1].lower()
    if dtype not in DTYPES:
        return f"it is stored as {str(dtype).removeprefix('torch.')}, not in plain floating point"
    if TABLES.search(last):
        return "an embedding is a table that is looked up, not a matrix that is applied"
    if NORMS.search(last):
        return "a norm is no matrix"
    if ROUTERS.search(last):
        return "a router decides by small differences"
    if skip_heads and (HEADS.search(last) or any(word in ("pooler", "lm_head") for word in words)):
        return "it looks like a head; use skip_heads=False to compress it"
    if last == "out_proj" and f"{name.removesuffix('out_proj')}in_proj_weight" in checkpoint.names:
        return "its parent MultiheadAttention reads its weight and does not call it"
    if min(shape) < SMALLEST:
        return f"it is small: fewer than {SMALLEST} inputs or outputs"
    return None


def _transposed(checkpoint: Checkpoint, names: Iterable[str]) -> set[str]:
    """Layers whose weight is stored as (inputs, outputs), as `Conv1D` of transformers does."""
    proven, candidates = set(), set()
    for key in names:
        name = key.removesuffix(".weight")
        rows, columns = checkpoint.info(key).shape
        if name.rpartition(".")[2] in CONV1D_NAMES:
            candidates.add(name)
        bias = checkpoint.info(f"{name}.bias").shape if f"{name}.bias" in checkpoint.names else None
        if bias == (columns,) and rows != columns:
            proven.add(name)
    family = str((checkpoint.config or {}).get("model_type"))
    # a square c_proj cannot prove it, the others of the same network do it for it
    return proven | candidates if family in CONV1D_MODELS or proven & candidates else proven


def _matching(names: Sequence[str], globs: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for glob in globs:
        hits = {name for name in names if fnmatchcase(name, glob)}
        if not hits and (names or glob != "*"):
            near = difflib.get_close_matches(glob.replace("*", ""), names, n=3, cutoff=0.3) or list(names[:3])
            raise ValueError(
                f"where={glob!r} matches none of the {len(names)} matrices that can be replaced. Rule: a glob over "
                f"names such as {', '.join(map(repr, near)) or '(there are none)'}."
            )
        chosen |= hits
    return chosen
