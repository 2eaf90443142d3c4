"""StructuredLayer: what every structured replacement of `nn.Linear` is, and the registry that rebuilds one."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Num
from torch import nn
from typing_extensions import override

from ..core import Registry, require_whole

LARGEST = 1 << 35  # parameters of one layer; a description that asks for more is damaged or hostile

LAYERS: Registry[type[StructuredLayer]] = Registry("layer kind")


class StructuredLayer(nn.Module, abc.ABC):
    """A linear layer whose matrix is described by fewer numbers than it has entries.

    Law: `layer(x) == x @ layer.dense().T + layer.bias` up to rounding, for x of shape (..., in_features), values and
    gradients alike. Children say how the matrix looks (`dense`) and how it is applied (`multiply`); everything a caller
    of `nn.Linear` expects is here: any leading shape, contiguous output, autocast, errors.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @abc.abstractmethod
    def dense(self) -> torch.Tensor:
        """The matrix (out_features, in_features), without the bias; differentiable. Cost: O(m n) memory."""

    @abc.abstractmethod
    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x @ dense().T for x of shape (k, in_features), without making the matrix or adding the bias."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain data for JSON, with the key "kind": what `layer_from_config` needs to rebuild the layer, no values."""

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> StructuredLayer:
        """The layer of a description, on the meta device (no memory). Users call `layer_from_config`."""

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw new values; the outputs get the variance that a new `nn.Linear` of this size gives them."""

    @override
    def forward(self, x: Num[torch.Tensor, "*batch n"]) -> Num[torch.Tensor, "*batch m"]:
        """Apply the layer to x of shape (..., in_features); the result is contiguous.

        Raises `RuntimeError`, as `nn.Linear` does, for another last dimension or, outside autocast, another dtype.
        """
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise RuntimeError(
                f"x has shape {tuple(x.shape)}, this layer has in_features={self.in_features}. "
                f"Rule: x is (..., {self.in_features})."
            )
        if x.dtype != self.dtype and not torch.is_autocast_enabled(x.device.type):
            raise RuntimeError(
                f"x is {x.dtype}, this layer is {self.dtype}. Rule: one dtype; write x.to({self.dtype}), "
                "or run under torch.autocast."
            )
        if x.ndim == 2:
            flat = x
        else:
            flat = x.reshape(-1, self.in_features) if x.numel() else x.new_empty(_rows(x), self.in_features)
        y, bias = self.multiply(flat), self.bias
        if bias is not None:  # under autocast y has fewer digits than the bias, and keeps them
            y = y + (bias if bias.dtype is y.dtype else bias.to(y.dtype))
        return (y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.out_features)).contiguous()

    @property
    def nnz(self) -> int:
        """Number of parameters, without the bias."""
        return sum(p.numel() for p in self.parameters()) - (0 if self.bias is None else self.bias.numel())

    @property
    def dtype(self) -> torch.dtype:
        """Torch dtype of the values."""
        return next(self.parameters()).dtype

    @property
    def weight(self) -> torch.Tensor:
        """`dense()` under the name that callers of `nn.Linear` know. Cost: the matrix is made at each access."""
        return self.dense()

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """An ordinary `nn.Linear` with this matrix and bias; half precision is multiplied in single and then rounded.

        It requires grad if any parameter here does, and keeps the training mode.
        """
        first = next(self.parameters())
        half = first.dtype in (torch.float16, torch.bfloat16)
        matrix = (copy.deepcopy(self).float() if half else self).dense()
        trained = any(p.requires_grad for p in self.parameters() if p is not self.bias)
        weight = nn.Parameter(matrix.to(first.dtype), requires_grad=trained)
        return linear_of(weight, own(self.bias), self.training)

    def take(self, linear: nn.Linear) -> None:
        """Bias, training mode and frozenness of the layer that this one replaces."""
        for p in self.parameters():
            p.requires_grad_(linear.weight.requires_grad)
        self.bias = own(linear.bias)
        self.train(linear.training)

    def _reset_bias(self) -> None:
        """The bias of a new `nn.Linear`."""
        if self.bias is not None:
            uniform_(self.bias, 1 / math.sqrt(3 * self.in_features))


def _rows(x: torch.Tensor) -> int:
    return math.prod(x.shape[:-1])


def own(tensor: torch.Tensor | None, trained: bool | None = None) -> nn.Parameter | None:
    """A parameter with a copy of these values, None for None; `trained` or else the tensor says if it requires grad."""
    if tensor is None:
        return None
    return nn.Parameter(tensor.detach().clone(), tensor.requires_grad if trained is None else trained)


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None, training: bool) -> nn.Linear:
    """An `nn.Linear` around these very parameters."""
    m, n = weight.shape
    linear = nn.Linear(n, m, bias=False, device="meta").train(training)
    linear.register_parameter("weight", cast(nn.Parameter, weight))
    linear.register_parameter("bias", cast(nn.Parameter, bias))
    return linear


def uniform_(p: torch.Tensor, deviation: float) -> None:
    """Fill p uniformly around zero with this standard deviation; E|z|^2 = deviation^2 for complex p."""
    with torch.no_grad():
        if p.is_complex():
            torch.view_as_real(p).uniform_(-deviation * math.sqrt(1.5), deviation * math.sqrt(1.5))
        else:
            p.uniform_(-deviation * math.sqrt(3), deviation * math.sqrt(3))


def sizes(config: Mapping[str, Any], *names: str) -> list[int]:
    """Whole numbers >= 1 out of a description; raises `ValueError` that names the first that is not."""
    return [require_whole(name, config[name]) for name in names]


def flag(config: Mapping[str, Any], name: str, default: bool | None = None) -> bool:
    """True or False out of a description; raises `ValueError` for anything else."""
    value = config[name] if default is None else config.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}. Rule: true or false.")
    return value


def layer_from_config(
    config: Mapping[str, Any], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> StructuredLayer:
    """Rebuild a layer from `layer.config()`; its values are not initialized, load them with `load_state_dict`.

    With device="meta" no memory is taken. Raises `ValueError` for an unknown kind (naming the nearest), missing or
    wrong entries, and sizes that no layer has.

    >>> from flatwing import Chain, StructuredLinear
    >>> layer = StructuredLinear(Chain.monarch(4, 6, blocks=2))
    >>> layer_from_config(layer.config()).load_state_dict(layer.state_dict())
    <All keys matched successfully>
    """
    try:
        if not isinstance(config, Mapping):
            raise ValueError(f"a {type(config).__name__} where an object should be.")
        layer = LAYERS[config["kind"]].from_config(config, dtype)
        if layer.nnz > LARGEST:
            raise ValueError(f"it asks for {layer.nnz} parameters. Rule: at most {LARGEST} in one layer.")
    except KeyError as error:
        raise ValueError(
            f"this describes no layer: it has no entry {error}. Rule: what layer.config() gives."
        ) from error
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"this describes no layer: {error} Rule: what layer.config() gives.") from error
    if str(device) == "meta":
        return layer
    layer = layer.to_empty(device=device or torch.get_default_device())
    for buffer in layer.buffers():  # permutations; the identity is one, uninitialized memory is none
        buffer.copy_(torch.arange(len(buffer), device=buffer.device))
    return layer
