"""The transformer block that all built-in models share: attention and MLP of plain, named `nn.Linear`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from ..core import require_whole


class Block(nn.Module):
    """Pre-norm transformer block: x + o(attention(q, k, v)), then x + down(gelu(up)).

    The six linear layers are `q`, `k`, `v`, `o` (width x width), `up` and `down` (mlp * width). A causal block sees
    only earlier positions and knows where it is by rotating queries and keys (Su et al., RoFormer, 2021); a block that
    is not causal leaves positions to the model. Raises `ValueError` if the heads do not divide the width.

    >>> Block(width=8, heads=2)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, width: int, heads: int, mlp: int = 4, *, causal: bool = False, bias: bool = False) -> None:
        super().__init__()
        for name, size in (("width", width), ("heads", heads), ("mlp", mlp)):
            require_whole(name, size)
        if width % heads or (causal and width // heads % 2):
            even = " an even number of times" if causal else ""
            raise ValueError(
                f"heads is {heads} for width {width}. Rule: the heads divide the width{even}. Write heads=1."
            )
        self.heads, self.causal = heads, causal
        self.norm1 = nn.RMSNorm(width)
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, width, bias=bias)
        self.v = nn.Linear(width, width, bias=bias)
        self.o = nn.Linear(width, width, bias=bias)
        self.norm2 = nn.RMSNorm(width)
        self.up = nn.Linear(width, mlp * width, bias=bias)
        self.down = nn.Linear(mlp * width, width, bias=bias)

    @override
    def forward(self, x: Float[torch.Tensor, "batch length width"]) -> Float[torch.Tensor, "batch length width"]:
        """The residual stream after this block."""
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.causal:
            q, k = rotate(q), rotate(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.o(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def rotate(x: Float[torch.Tensor, "*batch length dim"]) -> Float[torch.Tensor, "*batch length dim"]:
    """Each pair (x[i], x[i + dim/2]) turned by position * 10000^(-2i/dim): dot products then see only the distance.

    >>> rotate(torch.ones(1, 2))  # position 0 stays
    tensor([[1., 1.]])
    """
    length, dim = x.shape[-2:]
    rates = 1e4 ** (-torch.arange(0, dim, 2, device=x.device) / dim)
    angles = torch.arange(length, device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
