"""Classifiers of small vectors and of square images with one channel: linear, MLP, convolutions, vision transformer."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from .architecture import MODELS, Model
from .block import Block

SIDE, PIXELS, CLASSES = 8, 64, 10  # of the digits


class ViT(Model):
    """Vision transformer for side x side images: (batch, side^2) pixels to (batch, classes) logits.

    Patches of patch x patch pixels become tokens with learned positions; the mean over tokens is classified. Images may
    also come as (batch, side, side) or (batch, 1, side, side). Raises `ValueError` if the patch does not divide the
    side, or for images of another size.

    >>> ViT(side=12, width=16, depth=1, heads=2, patch=4, classes=3)(torch.zeros(5, 12, 12)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        side: int = SIDE,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp: int = 4,
        patch: int = 2,
        classes: int = CLASSES,
    ) -> None:
        super().__init__(side=side, width=width, depth=depth, heads=heads, mlp=mlp, patch=patch, classes=classes)
        if side % patch:
            near = min((p for p in range(1, side + 1) if side % p == 0), key=lambda p: (abs(p - patch), -p))
            raise ValueError(
                f"patch is {patch}. Rule: it divides the side of the image, {side}. Nearest good value: {near}."
            )
        self.side, self.patch = side, patch
        self.embed = nn.Linear(patch * patch, width)
        self.positions = nn.Parameter(torch.randn((side // patch) ** 2, width) / sqrt(width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp, bias=True) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, classes)

    @override
    def forward(self, x: Float[torch.Tensor, "batch *pixels"]) -> Float[torch.Tensor, "batch classes"]:
        """Logits of the classes."""
        rows, p = self.side // self.patch, self.patch
        patches = flat(x, self.side**2).reshape(-1, rows, p, rows, p).transpose(2, 3).reshape(-1, rows * rows, p * p)
        h = self.embed(patches) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(dim=1))


class MLP(Model):
    """Perceptron with `depth` hidden layers of `width`, GELU between: (batch, inputs) to (batch, classes) logits.

    Children may have another `activation`, or no `bias` anywhere. Inputs of other shapes are flattened; raises
    `ValueError` where they then are not `inputs` many.

    >>> MLP(inputs=12, width=16, classes=3)(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3])
    """

    activation: ClassVar[staticmethod[..., torch.Tensor]] = staticmethod(F.gelu)
    bias: ClassVar[bool] = True

    def __init__(self, inputs: int = PIXELS, width: int = 256, depth: int = 2, classes: int = CLASSES) -> None:
        super().__init__(inputs=inputs, width=width, depth=depth, classes=classes)
        self.inputs = inputs
        sizes = pairwise([inputs] + [width] * depth)
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=self.bias) for n, m in sizes)
        self.head = nn.Linear(width, classes, bias=self.bias)

    @override
    def forward(self, x: Float[torch.Tensor, "batch *shape"]) -> Float[torch.Tensor, "batch classes"]:
        """Logits of the classes."""
        x = flat(x, self.inputs)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


@final
@MODELS.register("digits-vit")
class DigitsViT(ViT):
    """Vision transformer for 8 x 8 images: (batch, 64) pixels in [0, 1] to (batch, 10) logits.

    >>> DigitsViT(width=16, depth=1, heads=2)(torch.zeros(3, 64)).shape
    torch.Size([3, 10])
    """

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, mlp: int = 4, patch: int = 2) -> None:
        super().__init__(SIDE, width, depth, heads, mlp, patch)


@final
@MODELS.register("digits-mlp")
class DigitsMLP(MLP):
    """Perceptron with `depth` hidden layers for 8 x 8 images: (batch, 64) pixels in [0, 1] to (batch, 10) logits.

    >>> DigitsMLP(width=16)(torch.zeros(3, 64)).shape
    torch.Size([3, 10])
    """

    def __init__(self, width: int = 256, depth: int = 2) -> None:
        super().__init__(PIXELS, width, depth)


@final
@MODELS.register("linear")
class LinearClassifier(Model):
    """One matrix: (batch, inputs) to (batch, classes) logits; without `bias` it is homogeneous.

    >>> LinearClassifier(inputs=12, classes=3)(torch.zeros(5, 12)).shape
    torch.Size([5, 3])
    """

    def __init__(self, inputs: int = PIXELS, classes: int = CLASSES, bias: bool = True) -> None:
        super().__init__(inputs=inputs, classes=classes, bias=bias)
        self.inputs = inputs
        self.head = nn.Linear(inputs, classes, bias=bias)

    @override
    def forward(self, x: Float[torch.Tensor, "batch *shape"]) -> Float[torch.Tensor, "batch classes"]:
        """Logits of the classes."""
        return self.head(flat(x, self.inputs))


@final
@MODELS.register("cnn")
class CNN(Model):
    """Small convolutional network for side x side images: (batch, side^2) pixels to (batch, classes) logits.

    `depth` stages, each a 3 x 3 convolution, normalization per image, ReLU and pooling to half the side, with `width`
    channels, then twice as many, and so on; then one hidden layer of `hidden` units. Images as for `ViT`. No running
    statistics: a batch and its parts give the same logits. Raises `ValueError` where pooling leaves no pixel.

    >>> CNN(side=12, width=4, classes=3)(torch.zeros(5, 1, 12, 12)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, side: int = SIDE, width: int = 16, depth: int = 2, hidden: int = 128, classes: int = CLASSES
    ) -> None:
        super().__init__(side=side, width=width, depth=depth, hidden=hidden, classes=classes)
        if side >> depth < 1:
            raise ValueError(
                f"depth is {depth} for side {side}. Rule: the side is at least 2^depth. "
                f"Nearest good value: {max(1, side.bit_length() - 1)}."
            )
        self.side = side
        channels = [1] + [width << stage for stage in range(depth)]
        self.convolutions = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1) for n, m in pairwise(channels))
        self.norms = nn.ModuleList(nn.GroupNorm(1, m) for m in channels[1:])
        self.hidden = nn.Linear(channels[-1] * (side >> depth) ** 2, hidden)
        self.head = nn.Linear(hidden, classes)

    @override
    def forward(self, x: Float[torch.Tensor, "batch *pixels"]) -> Float[torch.Tensor, "batch classes"]:
        """Logits of the classes."""
        x = flat(x, self.side**2).reshape(-1, 1, self.side, self.side)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(convolution(x))), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


MODELS.register("mlp")(MLP)
MODELS.register("vit")(ViT)


def flat(x: torch.Tensor, size: int) -> torch.Tensor:
    """x (batch, ...) as rows of `size` numbers; raises `ValueError` where they have another number of them."""
    rows = x.flatten(1)
    if rows.shape[1] != size:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: {rows.shape[1]} numbers in a row. Rule: {size}, as the model was made for. "
            "Make it with the size of the data."
        )
    return rows
