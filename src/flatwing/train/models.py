"""The built-in models, by name: a vision transformer and an MLP for digits, a language model for bytes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import pairwise
from math import sqrt
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from ..core import Registry
from .block import Block

SIDE, PIXELS, CLASSES = 8, 64, 10  # of the digits


class Model(nn.Module):
    """A network that can say how it was made.

    Law: `type(model).from_config(model.config())` has the same modules and shapes; `config()` survives JSON.
    """

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}. Rule: a whole number, at least 1.")
        self._sizes = sizes

    def config(self) -> dict[str, int]:
        """The arguments this model was made with."""
        return dict(self._sizes)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Model:
        """A new, untrained model; raises `ValueError` for an argument that the architecture does not have."""
        known = Registry[str](f"argument of {cls.__name__}")
        for name in inspect.signature(cls).parameters:
            known.register(name)(name)
        for name, size in config.items():
            if type(size) is not int:
                raise ValueError(f"{known[name]} is {size!r}. Rule: a whole number, at least 1.")
        return cls(**{known[name]: size for name, size in config.items()})


MODELS: Registry[type[Model]] = Registry("architecture")


@final
@MODELS.register("digits-vit")
class DigitsViT(Model):
    """Vision transformer for 8 x 8 images: (batch, 64) pixels in [0, 1] to (batch, 10) logits.

    Patches of patch x patch pixels become tokens with learned positions; the mean over tokens is classified.

    >>> DigitsViT(width=16, depth=1, heads=2)(torch.zeros(3, 64)).shape
    torch.Size([3, 10])
    """

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, mlp: int = 4, patch: int = 2) -> None:
        super().__init__(width=width, depth=depth, heads=heads, mlp=mlp, patch=patch)
        if SIDE % patch:
            raise ValueError(
                f"patch is {patch}. Rule: it divides the side of the image, {SIDE}. Nearest good value: 2."
            )
        self.patch = patch
        self.embed = nn.Linear(patch * patch, width)
        self.positions = nn.Parameter(torch.randn((SIDE // patch) ** 2, width) / sqrt(width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp, bias=True) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Float[torch.Tensor, "batch 64"]) -> Float[torch.Tensor, "batch 10"]:
        """Logits of the ten digits."""
        rows, p = SIDE // self.patch, self.patch
        patches = x.reshape(-1, rows, p, rows, p).transpose(2, 3).reshape(-1, rows * rows, p * p)
        h = self.embed(patches) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(dim=1))


@final
@MODELS.register("digits-mlp")
class DigitsMLP(Model):
    """Perceptron with `depth` hidden layers for 8 x 8 images: (batch, 64) pixels in [0, 1] to (batch, 10) logits.

    >>> DigitsMLP(width=16)(torch.zeros(3, 64)).shape
    torch.Size([3, 10])
    """

    def __init__(self, width: int = 256, depth: int = 2) -> None:
        super().__init__(width=width, depth=depth)
        sides = [PIXELS] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sides))
        self.head = nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Float[torch.Tensor, "batch 64"]) -> Float[torch.Tensor, "batch 10"]:
        """Logits of the ten digits."""
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


@final
@MODELS.register("byte-lm")
class ByteLM(Model):
    """Decoder that predicts the next byte: tokens (batch, length) to logits (batch, length, vocab).

    1.2 million parameters with the default sizes, 95 % of them in the linear layers of the blocks. Raises `ValueError`
    for a text longer than the context.

    >>> ByteLM(width=16, depth=1, heads=2)(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 256])
    """

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
        if tokens.shape[1] > self.context:
            raise ValueError(
                f"the text has {tokens.shape[1]} tokens. Rule: at most the context, {self.context}. Cut it into chunks."
            )
        h = self.embed(tokens)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def build_model(name: str, config: Mapping[str, Any]) -> Model:
    """The built-in architecture `name` with the sizes of `config`, untrained; unknown names raise `ValueError`.

    >>> build_model("digits-mlp", {"width": 8, "depth": 1})
    DigitsMLP(...)
    """
    return MODELS[name].from_config(config)


def architecture_of(model: nn.Module) -> str | None:
    """The name under which the model's class is registered, None if it is not a built-in.

    >>> architecture_of(DigitsMLP())
    'digits-mlp'
    """
    return next((name for name, architecture in MODELS.items() if type(model) is architecture), None)
