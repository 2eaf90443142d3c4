"""BlastLinear: blocks that share their column spaces along rows and their row spaces along columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Num
from torch import nn
from typing_extensions import override

from ..core import nearest_divisor
from ..factorize.blast import fit_blast
from ..factorize.weighted import WeightedFit
from ..kernels.api import apply
from ..structure import Chain
from .base import LARGEST, LAYERS, StructuredLayer, flag, own, sizes, uniform_


@final
class BlastLinear(StructuredLayer):
    """y = W x + bias with W in A x B blocks W_ab = U_a diag(D_ab) V_b of rank r at most.

    Args:
        in_features, out_features: n and m.
        blocks: (A, B), or one number for both; A divides m, B divides n.
        rank: r, shared by all blocks.
        bias, device, dtype: as for `nn.Linear`.

    Parameters: `left` (A, m/A, r) of U, `coupling` (A, B, r) of D, `right` (B, r, n/B) of V: r (m + n + A B) numbers
    and as many multiplications per input row. Raises `ValueError` for blocks that do not divide, naming the nearest.
    Source: Lee et al. 2024, "BLAST: Block-Level Adaptive Structured Matrices".

    >>> layer = BlastLinear(64, 32, blocks=(4, 8), rank=6)
    >>> layer(torch.ones(5, 64)).shape, layer.nnz
    (torch.Size([5, 32]), 768)
    >>> layer
    BlastLinear(64, 32, blocks=(4, 8), rank=6, bias=True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        blocks: tuple[int, int] | int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        A, B = self.blocks = (blocks, blocks) if isinstance(blocks, int) else (blocks[0], blocks[1])
        given = {"in_features": in_features, "out_features": out_features, "A": A, "B": B, "rank": rank}
        n, m, A, B, r = sizes(given, *given)
        for name, value, size, what in (("A", A, m, "out_features"), ("B", B, n, "in_features")):
            if size % value:
                raise ValueError(
                    f"{name}={value} does not divide {what}={size}. Rule: blocks=(A, B) divide (out, in); the nearest "
                    f"good value is {name}={nearest_divisor(size, value)}."
                )
        if r * (m + n + A * B) > LARGEST:
            raise ValueError(f"rank={r} needs {r * (m + n + A * B)} parameters. Rule: at most {LARGEST} in one layer.")
        self.in_features, self.out_features, self.rank = n, m, r
        self.left = nn.Parameter(torch.empty(A, m // A, r, device=device, dtype=dtype))
        self.coupling = nn.Parameter(torch.empty(A, B, r, device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty(B, r, n // B, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(m, device=device, dtype=dtype)) if bias else None
        self.chain = Chain([(A, m // A, r, 1), (1, A, B, r), (B, r, n // B, 1)])  # of U, D, V
        self.reset_parameters()

    @classmethod
    def from_factors(
        cls,
        left: Num[torch.Tensor, "A p r"],
        coupling: Num[torch.Tensor, "A B r"],
        right: Num[torch.Tensor, "B r q"],
        bias: Num[torch.Tensor, " m"] | None = None,
    ) -> BlastLinear:
        """A layer with a copy of these values; dtype and device of `left`.

        Raises `ValueError` for shapes that do not fit each other.

        >>> layer = BlastLinear.from_factors(torch.ones(1, 2, 1), torch.ones(1, 3, 1), torch.ones(3, 1, 4))
        >>> layer.in_features, layer.out_features
        (12, 2)
        """
        A, p, r = (*left.shape, 0, 0, 0)[:3]
        B, _, q = (*right.shape, 0, 0, 0)[:3]
        if tuple(coupling.shape) != (A, B, r) or tuple(left.shape) != (A, p, r) or tuple(right.shape) != (B, r, q):
            raise ValueError(
                f"left {tuple(left.shape)}, coupling {tuple(coupling.shape)} and right {tuple(right.shape)} do not "
                "fit. Rule: (A, m/A, r), (A, B, r) and (B, r, n/B)."
            )
        if bias is not None and tuple(bias.shape) != (A * p,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}. Rule: one number per output, ({A * p},).")
        layer = cls(B * q, A * p, (A, B), r, bias=False, device="meta", dtype=left.dtype)
        layer.left, layer.coupling, layer.right = (
            nn.Parameter(w.detach().to(left).clone()) for w in (left, coupling, right)
        )
        layer.bias = None if bias is None else own(bias.to(left), True)
        return layer

    @classmethod
    def from_linear(cls, linear: nn.Linear, blocks: tuple[int, int] | int, rank: int) -> BlastLinear:
        """A BLAST matrix near the weight of `linear` (alternating least squares), with its bias, dtype and frozenness.

        Raises `ValueError` as the constructor does.

        >>> linear = nn.Linear(4, 4)
        >>> torch.allclose(BlastLinear.from_linear(linear, blocks=1, rank=4).weight, linear.weight, atol=1e-5)
        True
        """
        return cls.fit(linear, blocks, rank)[0]

    @classmethod
    def fit(cls, linear: nn.Linear, blocks: tuple[int, int] | int, rank: int) -> tuple[BlastLinear, WeightedFit]:
        """`from_linear`, and beside the layer what `fit_blast` knows about its error."""
        shape = cls(linear.in_features, linear.out_features, blocks, rank, bias=False, device="meta")  # checks
        fit = fit_blast(linear.weight.detach(), blocks=shape.blocks, rank=rank)
        left, coupling, right = (
            w.to(linear.weight) for w in (fit.structure.left, fit.structure.coupling, fit.structure.right)
        )
        layer = cls.from_factors(left, coupling, right)
        layer.take(linear)
        return layer, fit

    @override
    def dense(self) -> Num[torch.Tensor, "m n"]:
        """The matrix (out_features, in_features); differentiable. Cost: m n r operations, A n r memory."""
        coupled = self.coupling[..., None] * self.right  # (A, B, r, n/B)
        A, B, r, q = coupled.shape
        return (self.left @ coupled.transpose(1, 2).reshape(A, r, B * q)).reshape(self.out_features, B * q)

    @override
    def multiply(self, x: Num[torch.Tensor, "k n"]) -> Num[torch.Tensor, "k m"]:
        """x @ dense().T: a product of three Kronecker-sparse factors, of which the middle one holds the couplings."""
        return apply(x, self.chain, [self.left, self.coupling.permute(2, 0, 1), self.right])

    @override
    def reset_parameters(self) -> None:
        """Draw new values: D uniform in (0, 2) as in the paper; U and V by the rule of `StructuredLinear`, scaled so
        that the outputs have the variance of a new `nn.Linear`.
        """
        p, q, r = self.left.shape[1], self.right.shape[2], self.rank
        gains = min(1.0, p / r), min(1.0, r / q)
        with torch.no_grad():
            self.coupling.copy_(torch.rand_like(self.coupling.real) * 2)
        # the couplings have second moment 4/3, and B of them meet in each sum
        scale = math.sqrt(1 / 3 / (math.prod(gains) * self.blocks[1] * 4 / 3))
        uniform_(self.left, math.sqrt(scale * gains[0] / r))
        uniform_(self.right, math.sqrt(scale * gains[1] / q))
        self._reset_bias()

    @override
    def config(self) -> dict[str, Any]:
        """Plain data that rebuilds the layer without its values."""
        return {
            "kind": "blast",
            "in_features": self.in_features,
            "out_features": self.out_features,
            "blocks": list(self.blocks),
            "rank": self.rank,
            "bias": self.bias is not None,
        }

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> BlastLinear:
        """See `layer_from_config`."""
        n, m, r = sizes(config, "in_features", "out_features", "rank")
        if not isinstance(config["blocks"], list | tuple) or len(config["blocks"]) != 2:
            raise ValueError(f"blocks is {config['blocks']!r}. Rule: two whole numbers [A, B].")
        A, B = sizes(dict(zip("AB", config["blocks"], strict=True)), "A", "B")
        return cls(n, m, (A, B), r, flag(config, "bias"), device="meta", dtype=dtype)

    @override
    def __repr__(self) -> str:
        bias = self.bias is not None
        return (
            f"BlastLinear({self.in_features}, {self.out_features}, blocks={self.blocks}, rank={self.rank}, bias={bias})"
        )


LAYERS.register("blast")(BlastLinear)
