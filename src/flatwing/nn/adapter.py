"""StructuredAdapter: train a structured change of a frozen linear layer, added to it or rotating it."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Num
from torch import nn
from typing_extensions import override

from ..core import require_number
from ..kernels.api import apply
from ..structure import Chain, SparseProduct
from .base import linear_of, own
from .linear import StructuredLinear, as_chain

MODES = ("additive", "orthogonal")
MAPS = ("cayley", "exp")


@final
class StructuredAdapter(nn.Module):
    """A frozen `nn.Linear` and a trainable structured change of its weight W; it starts as no change at all.

    Args:
        base: the layer; it is kept, and its weight and bias are frozen.
        structure: a chain or its text. Additive: of the size of W. Orthogonal: square, of the size of the rotated side,
            with square blocks, such as `Chain.butterfly(n)` or `Chain.block_diagonal(n, n, blocks)`.
        mode: "additive", W' = W + scale P with the first factor of P zero; or "orthogonal", W' = R W with R the product
            of the chain whose blocks are orthogonal: it keeps all singular values of W.
        scale: of the additive change.
        side: orthogonal only: "out" for R W, "in" for W R (the side that BOFT rotates).
        map: orthogonal only: block = "cayley" (I + A)^{-1} (I - A) or "exp" matrix exponential of a skew-symmetric A.

    The change is applied without making it dense; half precision solves for the blocks in single. Trainable are
    delta.factors.* or skew.* (blocks, b (b-1) / 2), the entries of A below the diagonal. Raises `ValueError` for chains
    of another size or with rectangular blocks. Source: Liu et al. 2024, "Parameter-Efficient Orthogonal Finetuning via
    Butterfly Factorization" (BOFT).

    >>> base = nn.Linear(8, 8)
    >>> adapter = StructuredAdapter(base, Chain.butterfly(8), mode="orthogonal")
    >>> torch.allclose(adapter(torch.ones(8)), base(torch.ones(8)))
    True
    >>> [tuple(p.shape) for p in adapter.parameters() if p.requires_grad]
    [(4, 1), (4, 1), (4, 1)]
    """

    reads_weights_of_children = True  # so `compress_` leaves the base alone

    def __init__(
        self,
        base: nn.Linear,
        structure: Chain | str,
        mode: str = "additive",
        *,
        scale: float = 1.0,
        side: str = "out",
        map: str = "cayley",
    ) -> None:
        super().__init__()
        for name, value, known in (("mode", mode, MODES), ("side", side, ("out", "in")), ("map", map, MAPS)):
            if value not in known:
                raise ValueError(f"{name}={value!r}. Rule: one of {' or '.join(known)}.")
        require_number("scale", scale, good=1.0)
        self.chain, self.mode, self.scale, self.side, self.map = as_chain(structure), mode, scale, side, map
        self.in_features, self.out_features = base.in_features, base.out_features
        m, n = base.weight.shape
        want = (m, n) if mode == "additive" else (m, m) if side == "out" else (n, n)
        if self.chain.shape != want:
            given = f"{self.chain.shape[0]} x {self.chain.shape[1]}"
            raise ValueError(
                f"the chain is {given}. Rule: {want[0]} x {want[1]} for mode={mode!r} on a {m} x {n} layer."
            )
        self.base = base.requires_grad_(False)
        self.delta: StructuredLinear | None = None
        self.skew = nn.ParameterList()
        if mode == "additive":
            self.delta = StructuredLinear(self.chain, False, base.weight.device, base.weight.dtype)
        else:
            for p in self.chain:
                if p.b != p.c:
                    raise ValueError(f"factor {p} has blocks {p.b} x {p.c}. Rule: orthogonal blocks are square.")
                self.skew.append(nn.Parameter(base.weight.new_empty(p.blocks, p.b * (p.b - 1) // 2)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """No change again: the additive product is zero by its first factor, the rotation is the identity."""
        if self.delta is not None:
            self.delta.reset_parameters()
            self.delta.factors[0].zero_()
        for generator in self.skew:
            generator.zero_()

    @property
    def rotation(self) -> SparseProduct:
        """The product R of orthogonal blocks; differentiable. Raises `ValueError` in additive mode, which has none."""
        if self.mode != "orthogonal":
            raise ValueError("an additive adapter has no rotation. Rule: mode='orthogonal'.")
        return SparseProduct(self.chain, self._blocks())

    def _blocks(self) -> list[torch.Tensor]:
        return [orthogonal_blocks(v, p.b, self.map) for p, v in zip(self.chain, self.skew, strict=True)]

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the base."""
        return self.base.bias

    @property
    def weight(self) -> torch.Tensor:
        """The changed matrix W' (out_features, in_features); differentiable. Cost: it is made at each access."""
        W = self.base.weight
        if self.delta is not None:
            return W + self.scale * self.delta.dense()
        return self.rotation @ W if self.side == "out" else W @ self.rotation

    @override
    def forward(self, x: Num[torch.Tensor, "*batch n"]) -> Num[torch.Tensor, "*batch m"]:
        """W' x + bias for x of shape (..., in_features). Cost: the base and 2 nnz of the chain per row."""
        if self.delta is not None:
            return F.linear(x, self.base.weight, self.base.bias) + self.scale * self.delta(x)
        if self.side == "in":
            return F.linear(self._rotate(x), self.base.weight, self.base.bias)
        y = self._rotate(F.linear(x, self.base.weight))
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(math.prod(x.shape[:-1]), x.shape[-1])
        rows = apply(rows, self.chain, self._blocks())
        return rows.reshape(x.shape).contiguous()

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """An ordinary `nn.Linear` with the changed weight; computed in double precision and rounded once."""
        wide = torch.complex128 if self.base.weight.is_complex() else torch.float64
        W = self.base.weight.to(wide)
        if self.delta is not None:
            W = W + self.scale * self.delta.product.to(wide).dense()
        else:
            blocks = [orthogonal_blocks(v.to(wide), p.b, self.map) for p, v in zip(self.chain, self.skew, strict=True)]
            R = SparseProduct(self.chain, blocks)
            W = R @ W if self.side == "out" else W @ R
        weight = nn.Parameter(W.to(self.base.weight.dtype))
        return linear_of(weight, own(self.base.bias), self.training).requires_grad_(True)

    @override
    def extra_repr(self) -> str:
        rest = f"scale={self.scale}" if self.mode == "additive" else f"side={self.side!r}, map={self.map!r}"
        return f"{str(self.chain)!r}, mode={self.mode!r}, {rest}"


def orthogonal_blocks(
    values: Num[torch.Tensor, "blocks entries"], side: int, map: str = "cayley"
) -> Num[torch.Tensor, "blocks b b"]:
    """Orthogonal (complex: unitary) matrices from the entries below the diagonal of skew-Hermitian A; zeros give I.

    Cayley transform (I + A)^{-1} (I - A), or the matrix exponential. Cost: b^3 per block. Half precision is computed in
    single precision and rounded once.

    >>> Q = orthogonal_blocks(torch.ones(1, 1), side=2)
    >>> torch.allclose(Q[0] @ Q[0].T, torch.eye(2), atol=1e-6), Q[0, 0].abs().round().tolist()
    (True, [0.0, 1.0])
    """
    dtype = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
    rows, columns = torch.tril_indices(side, side, -1, device=values.device)
    lower = values.new_zeros(len(values), side, side, dtype=dtype)
    lower = lower.index_put((torch.arange(len(values), device=values.device)[:, None], rows, columns), values.to(dtype))
    A = lower - lower.mH
    if map == "exp":
        return torch.linalg.matrix_exp(A).to(values.dtype)
    one = torch.eye(side, dtype=dtype, device=values.device)
    return torch.linalg.solve(one + A, one - A).to(values.dtype)
