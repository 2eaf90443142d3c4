"""A perceptron that is homogeneous in its parameters, for the methods that ask for it."""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from .architecture import MODELS, Model
from .vision import CLASSES, PIXELS, flat


@final
@MODELS.register("relu-mlp")
class ReluMLP(Model):
    """Perceptron with ReLU and without biases: (batch, inputs) to (batch, classes) logits.

    With `depth` hidden layers of `width`, c times its parameters give c^(depth + 1) times its logits, for c > 0.
    Inputs of other shapes are flattened; raises `ValueError` where they then are not `inputs` many.

    >>> ReluMLP(inputs=12, width=16, classes=3)(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(self, inputs: int = PIXELS, width: int = 256, depth: int = 2, classes: int = CLASSES) -> None:
        super().__init__(inputs=inputs, width=width, depth=depth, classes=classes)
        self.inputs = inputs
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in pairwise([inputs] + [width] * depth))
        self.head = nn.Linear(width, classes, bias=False)

    @override
    def forward(self, x: Float[torch.Tensor, "batch *shape"]) -> Float[torch.Tensor, "batch classes"]:
        """Logits of the classes."""
        x = flat(x, self.inputs)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)
