"""Baselines: simpler ways to make one matrix smaller, to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from jaxtyping import Bool, Float
from torch import nn

from ..core import Registry
from ..structure import SparseProduct
from .candidates import Candidate, candidate
from .quantize import int8_bytes, quantize_groups, quantize_rows


@final
@dataclass(frozen=True)
class Known:
    """What a landmark may know of a layer: its matrix, the share to keep, and what the data say.

    `power` is the second moment of each input (centred if there is a bias), `whitened` the best low-rank matrix in the
    norm of the data.
    """

    W: Float[torch.Tensor, "m n"]
    share: float
    itemsize: int
    power: Float[torch.Tensor, " n"] | None = None
    whitened: SparseProduct | None = None


@final
@dataclass(frozen=True)
class Replaced:
    """A layer by one landmark: its matrix, the numbers and bytes it keeps, the multiply-adds for one vector."""

    matrix: Float[torch.Tensor, "m n"]
    parameters: int
    bytes: int
    products: int


class Landmark(Protocol):
    """Approximates one layer; the docstring is the note that the table shows. None leaves the layer as it is."""

    __doc__: str | None

    def __call__(self, known: Known) -> Replaced | None:
        """The layer by this method."""
        ...


LANDMARKS: Registry[Landmark] = Registry("landmark")
WITH_DATA = ("whitened SVD", "2:4", "unstructured")


@LANDMARKS.register("plain SVD")
def plain_svd(known: Known) -> Replaced | None:
    """The same share of each layer, best rank without data."""
    wanted = uniform_rank(known.W.shape, known.share)
    if wanted is None:
        return None
    U, S, Vh = torch.linalg.svd(known.W, full_matrices=False)
    r = wanted.rank
    return _product(U[:, :r] * S[:r] @ Vh[:r], wanted, known)


@LANDMARKS.register("whitened SVD")
def whitened_svd(known: Known) -> Replaced | None:
    """The same share of each layer, best rank on the original inputs, in one shot."""
    wanted = uniform_rank(known.W.shape, known.share)
    if wanted is None or known.whitened is None:
        return None
    return _product(known.whitened.dense().double(), wanted, known)


@LANDMARKS.register("2:4")
def two_of_four(known: Known) -> Replaced | None:
    """Half of the weights whatever the budget; less arithmetic only on GPUs that know 2:4."""
    kept = two_in_four(_score(known))
    count = int(kept.sum())
    return Replaced(known.W * kept, count, count * known.itemsize + math.ceil(count / 4), count)


@LANDMARKS.register("unstructured")
def unstructured(known: Known) -> Replaced | None:
    """The largest weights of each row, stored sparse; multiplied as dense on ordinary hardware."""
    m, n = known.W.shape
    count = max(1, int(known.share * n + 1e-9))
    if count >= n:
        return None
    kept = torch.zeros(m, n, dtype=torch.bool).scatter_(1, _score(known).topk(count, 1).indices, True)
    column = 2 if n <= 1 << 16 else 4
    index = min(count * m * column, math.ceil(m * n / 8))  # column numbers, or a bit for each entry
    return Replaced(known.W * kept, count * m, count * m * known.itemsize + index, m * n)


@LANDMARKS.register("int8")
def int8(known: Known) -> Replaced | None:
    """Weights rounded to 8 bits, one scale per row; the arithmetic stays."""
    values, scale = quantize_rows(known.W)
    matrix = values.double() * scale.double()[:, None]
    return Replaced(matrix, known.W.numel(), int8_bytes(known.W.shape), known.W.numel())


@LANDMARKS.register("int4")
def int4(known: Known) -> Replaced | None:
    """Weights rounded to 4 bits in groups of about 64; the arithmetic stays."""
    groups = quantize_groups(known.W)
    return Replaced(groups.dense().double(), known.W.numel(), groups.bytes, known.W.numel())


def two_in_four(score: Float[torch.Tensor, "m n"]) -> Bool[torch.Tensor, "m n"]:
    """The two largest of each four neighbours in a row; of a shorter last group, two as well.

    >>> two_in_four(torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0]])).int().tolist()
    [[0, 1, 1, 0, 1]]
    """
    m, n = score.shape
    padded = nn.functional.pad(score, (0, -n % 4), value=-math.inf).reshape(m, -1, 4)
    kept = torch.zeros_like(padded, dtype=torch.bool).scatter_(2, padded.topk(2, dim=2).indices, True)
    return kept.reshape(m, -1)[:, :n]


def uniform_rank(shape: Sequence[int], share: float) -> Candidate | None:
    """The largest rank within the share, at least 1; None if that is no smaller than the matrix."""
    m, n = shape
    least = candidate("low_rank", m, n)
    wanted = least.within(share * m * n) or least
    return wanted if share < 1 and wanted.parameters < m * n else None


def _product(matrix: torch.Tensor, wanted: Candidate, known: Known) -> Replaced:
    count = wanted.parameters
    return Replaced(matrix, count, count * known.itemsize, count)


def _score(known: Known) -> torch.Tensor:
    """|w| sqrt(C_jj): what the output loses, to first order, without this weight (Sun et al., Wanda, 2023)."""
    assert known.power is not None
    return known.W.abs() * known.power.sqrt()
