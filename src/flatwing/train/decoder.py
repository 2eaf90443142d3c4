"""Decoders that predict the next token: a small one for bytes, and one of the kind of LLaMA with its names."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from .architecture import MODELS, Model
from .block import Block, rotate

EPSILON = 1e-5  # of the norms: as in LLaMA 2, and large enough for half precision


@final
@MODELS.register("byte-lm")
class ByteLM(Model):
    """Decoder that predicts the next byte: tokens (batch, length) to logits (batch, length, vocab).

    1.2 million parameters with the default sizes, 95 % of them in the linear layers of the blocks. Raises `ValueError`
    for a text longer than the context.

    >>> ByteLM(width=16, depth=1, heads=2)(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 256])
    """

    task: ClassVar[str] = "lm"

    def __init__(
        self, width: int = 128, depth: int = 6, heads: int = 4, mlp: int = 4, context: int = 128, vocab: int = 256
    ) -> None:
        super().__init__(width=width, depth=depth, heads=heads, mlp=mlp, context=context, vocab=vocab)
        self.context = context
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp, causal=True) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)

    @override
    def forward(self, tokens: Int[torch.Tensor, "batch length"]) -> Float[torch.Tensor, "batch length vocab"]:
        """Logits of the byte that follows each position."""
        _require_context(tokens, self.context)
        h = self.embed(tokens)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@final
@MODELS.register("llama")
class Llama(Model):
    """Decoder of the kind of LLaMA: tokens (batch, length) to logits (batch, length, vocab).

    RMSNorm before attention and MLP, rotary positions, `kv_heads` heads of keys and values for `heads` heads of queries
    (all of them if not given), SwiGLU of `hidden` units (4 * ceil(2 width / 3) if not given), no biases; with `tied`
    the head is the embedding. Modules are called as in LLaMA, weights are read by transformers' LlamaForCausalLM after
    "model." is put before all names but lm_head. Matrices begin normal with deviation 0.02, those that write to the
    residual stream with 0.02 / sqrt(2 depth). Raises `ValueError` for sizes that do not divide, or a text longer than
    the context.

    Source: Touvron et al. 2023, arXiv:2302.13971; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.

    >>> model = Llama(vocab=128, width=64, depth=2, heads=4, context=64)
    >>> sum(p.numel() for p in model.parameters()), model.config()["hidden"]
    (115520, 172)
    >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 128])
    """

    task: ClassVar[str] = "lm"

    def __init__(
        self,
        vocab: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        kv_heads: int | None = None,
        hidden: int | None = None,
        context: int = 128,
        tied: bool = False,
    ) -> None:
        kv_heads = heads if kv_heads is None else kv_heads
        hidden = 4 * -(-2 * width // 3) if hidden is None else hidden
        super().__init__(
            vocab=vocab,
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            hidden=hidden,
            context=context,
            tied=tied,
        )
        self.context = context
        self.embed_tokens = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, kv_heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * depth) ** 0.5 if writes else 0.02)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    @override
    def forward(self, tokens: Int[torch.Tensor, "batch length"]) -> Float[torch.Tensor, "batch length vocab"]:
        """Logits of the token that follows each position."""
        _require_context(tokens, self.context)
        h = self.embed_tokens(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.lm_head(self.norm(h))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); (batch, length, width) to the same."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=EPSILON)
        self.self_attn = Attention(width, heads, kv_heads)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=EPSILON)
        self.mlp = SwiGLU(width, hidden)

    @override
    def forward(self, x: Float[torch.Tensor, "batch length width"]) -> Float[torch.Tensor, "batch length width"]:
        """The residual stream after this layer."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Causal attention with rotary positions; each of the `kv_heads` serves heads / kv_heads neighbouring query heads.

    Raises `ValueError` if the heads do not divide the width an even number of times, or kv_heads not the heads.
    """

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        if width % heads or width // heads % 2:
            raise ValueError(
                f"heads is {heads} for width {width}. Rule: the heads divide the width an even number of times. "
                "Write heads=1."
            )
        if heads % kv_heads:
            raise ValueError(f"kv_heads is {kv_heads} for {heads} heads. Rule: it divides them. Write kv_heads=1.")
        self.heads, self.kv_heads = heads, kv_heads
        size = width // heads
        self.q_proj = nn.Linear(width, heads * size, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.o_proj = nn.Linear(heads * size, width, bias=False)

    @override
    def forward(self, x: Float[torch.Tensor, "batch length width"]) -> Float[torch.Tensor, "batch length width"]:
        """What the earlier positions say to each position."""
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for f in (self.k_proj, self.v_proj))
        grouped = self.kv_heads != self.heads
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    @override
    def forward(self, x: Float[torch.Tensor, "batch length width"]) -> Float[torch.Tensor, "batch length width"]:
        """The same at each position by itself."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _require_context(tokens: torch.Tensor, context: int) -> None:
    if tokens.shape[1] > context:
        raise ValueError(
            f"the text has {tokens.shape[1]} tokens. Rule: at most the context, {context}. Cut it into chunks."
        )
