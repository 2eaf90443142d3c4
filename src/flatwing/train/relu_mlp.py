"""A perceptron that is homogeneous in its parameters, for the methods that ask for it."""

from __future__ import annotations

from typing import final

from torch.nn import functional as F

from .architecture import MODELS
from .vision import MLP


@final
@MODELS.register("relu-mlp")
class ReluMLP(MLP):
    """`MLP` with ReLU and without biases: (batch, inputs) to (batch, classes) logits.

    With `depth` hidden layers of `width`, c times its parameters give c^(depth + 1) times its logits, for c > 0.

    >>> [name for name, _ in ReluMLP(depth=1).named_parameters()]
    ['layers.0.weight', 'head.weight']
    """

    activation = staticmethod(F.relu)
    bias = False
