"""StructuredLinear: a drop-in for `nn.Linear` whose matrix is a product of sparse factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Num
from torch import nn
from typing_extensions import override

from ..core import as_permutation
from ..factorize import factorize
from ..kernels.api import apply
from ..kernels.dispatch import holds_only_values
from ..structure import Chain, SparseProduct
from .base import LARGEST, LAYERS, StructuredLayer, flag, own, uniform_
from .packed import PackedLayer, values_of


@final
class StructuredLinear(StructuredLayer):
    """y = P x + bias with the `SparseProduct` P of a chain; drop-in for `nn.Linear(n, m)`.

    Args:
        chain: its shape is (out_features, in_features); a string is parsed (`Chain.parse`).
        bias: whether there is a bias.
        device, dtype: of the values, as for `nn.Linear`.
        perm_in, perm_out: orders of inputs and outputs as in `SparseProduct`; True keeps a place for one (the identity)
            that `load_state_dict` fills.

    The values are parameters factors.0, factors.1, ... of shape (a*d, b, c), leftmost factor first. Cost: 2 nnz
    multiplications and additions per input row. Raises `TypeError` for what is not a chain.

    >>> layer = StructuredLinear(Chain.monarch(64, 64, blocks=8))
    >>> layer(torch.ones(2, 3, 64)).shape, layer.nnz
    (torch.Size([2, 3, 64]), 1024)
    >>> layer
    StructuredLinear(Chain.parse('(1,8,8,8)(8,8,8,1)'), bias=True)
    """

    perm_in: torch.Tensor | None
    perm_out: torch.Tensor | None
    _packed: PackedLayer | None = None

    def __init__(
        self,
        chain: Chain | str,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        perm_in: Any = None,
        perm_out: Any = None,
    ) -> None:
        super().__init__()
        self.chain = as_chain(chain)
        if self.chain.nnz > LARGEST:
            raise ValueError(f"the chain has {self.chain.nnz} parameters. Rule: at most {LARGEST} in one layer.")
        self.out_features, self.in_features = self.chain.shape
        self.factors = nn.ParameterList(torch.empty(p.blocks, p.b, p.c, device=device, dtype=dtype) for p in self.chain)
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        place = self.factors[0].device
        self.register_buffer("perm_in", _permutation(perm_in, self.in_features, "perm_in", place))
        self.register_buffer("perm_out", _permutation(perm_out, self.out_features, "perm_out", place))
        self.reset_parameters()

    @classmethod
    def from_product(cls, product: SparseProduct, bias: torch.Tensor | None = None) -> StructuredLinear:
        """A layer with a copy of the values of a product, and of the bias (m,) if one is given.

        Raises `ValueError` for a batch of products or a bias of another length.

        >>> P = SparseProduct(Chain.butterfly(4), [torch.ones(2, 2, 2)] * 2)
        >>> StructuredLinear.from_product(P)(torch.ones(4))
        tensor([4., 4., 4., 4.], grad_fn=<ViewBackward0>)
        """
        if product.batch:
            raise ValueError(f"the product has batch {tuple(product.batch)}. Rule: one matrix; make one layer of each.")
        m, _ = product.shape
        if bias is not None and tuple(bias.shape) != (m,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}. Rule: one number per output, ({m},).")
        layer = cls(product.chain, bias=False, device="meta", dtype=product.factors[0].dtype)
        layer.factors = nn.ParameterList(nn.Parameter(w.detach().resolve_conj().clone()) for w in product.factors)
        layer.bias = None if bias is None else own(bias.to(product.factors[0]), True)
        layer.perm_in, layer.perm_out = product.perm_in, product.perm_out
        return layer

    @classmethod
    def from_linear(cls, linear: nn.Linear, chain: Chain | str, **options: Any) -> StructuredLinear:
        """The product of this chain nearest to the weight of `linear`, with its bias, dtype and frozenness.

        `options` go to `flatwing.factorize`; half precision is factorized in single. Raises `ValueError` if the sizes
        differ or the chain is not chainable. For the error and its proof call `factorize`, then `from_product`.

        >>> linear = torch.nn.Linear(6, 4)
        >>> layer = StructuredLinear.from_linear(linear, "monarch(4, 6, blocks=2, rank=2)")
        >>> torch.allclose(layer(torch.ones(6)), linear(torch.ones(6)), atol=1e-5)  # rank 2 of 2: exact
        True
        """
        product = factorize(linear.weight, chain, **options).product
        layer = cls.from_product(product.to(linear.weight.dtype))
        layer.take(linear)
        return layer

    @property
    def product(self) -> SparseProduct:
        """The operator of this layer; it shares the parameters."""
        return SparseProduct(self.chain, self.factors, self.perm_in, self.perm_out)

    @override
    def dense(self) -> Num[torch.Tensor, "m n"]:
        """The matrix (out_features, in_features); differentiable."""
        return self.product.dense()

    @override
    def multiply(self, x: Num[torch.Tensor, "k n"]) -> Num[torch.Tensor, "k m"]:
        """x @ dense().T by the backend that `flatwing.kernels.explain` names."""
        factors, perm_in, perm_out = values_of(self.factors), self.perm_in, self.perm_out
        packed = self._packed
        if packed is not None and self._may_use(packed, x, [*factors, perm_in, perm_out]):
            return packed.product(x)
        if perm_in is not None:
            x = x.index_select(-1, perm_in)
        x = apply(x, self.chain, factors)
        return x if perm_out is None else x.index_select(-1, perm_out.argsort())

    def pack(self) -> None:
        """Prepare the weights for inference: calls that record nothing use a copy that is packed once.

        The copy is dropped at the first call that finds that the weights were moved, loaded or changed, and at the
        first one that records gradients of them, that is when training goes on; pack again afterwards. Not seen are
        changes behind torch's back between two calls without gradients: writes to `.data` or to memory shared with
        numpy, collectives of `torch.distributed`, steps of `fused=True` optimizers. Memory: see
        `flatwing.kernels.Packed`; copies and pickles of the layer are not packed.

        Raises `ValueError` for weights whose changes torch does not count (inference tensors), that are sharded, or
        computed at each access (parametrizations).

        >>> layer = StructuredLinear("butterfly(64)")
        >>> layer.pack()
        >>> x = torch.ones(2, 64)
        >>> with torch.no_grad():
        ...     y = layer(x)
        >>> torch.allclose(y, layer(x), atol=1e-5)
        True
        """
        tensors = self._tensors()
        packed = PackedLayer(self.product, tensors)
        if not packed.is_of(self._tensors()):
            raise ValueError(
                "the factors are computed at each access. Rule: plain parameters; remove the parametrization first "
                "(torch.nn.utils.parametrize.remove_parametrizations)."
            )
        self._packed = packed

    @property
    def is_packed(self) -> bool:
        """Whether the weights are packed, and still what they were when `pack` was called."""
        return self._packed is not None and self._packed.is_of(self._tensors()) and self._packed.is_fresh()

    def unpack(self) -> None:
        """Forget what `pack` prepared, and free its memory."""
        self._packed = None

    def _may_use(self, packed: PackedLayer, x: torch.Tensor, tensors: list[torch.Tensor | None]) -> bool:
        """Whether the copy stands for these tensors; it is dropped if it never will again."""
        if torch.compiler.is_compiling() or not packed.is_of(tensors):
            return False
        trained = torch.is_grad_enabled() and any(t.requires_grad for t in tensors if t is not None)
        if trained or not packed.is_fresh():
            self._packed = None
            return False
        return holds_only_values(x)

    def _tensors(self) -> list[torch.Tensor | None]:
        return [*values_of(self.factors), self.perm_in, self.perm_out]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}

    @property
    @override
    def dtype(self) -> torch.dtype:
        first = next(iter(self.factors._parameters.values()), None)  # of a parametrized factor, this is not the first
        return super().dtype if first is None else first.dtype

    @override
    def reset_parameters(self) -> None:
        """Draw new values: each factor with the deviation sqrt(1/c) min(1, sqrt(b/c)) of its own blocks, then one scale
        for all, so that the outputs have the variance of a new `nn.Linear`.

        Source: Qiu et al. 2024, "Compute Better Spent", the initialization of BTT cores.
        """
        # a row of a factor sums c independent terms, so the variance of the product's outputs is prod(c * variance)
        gains = [min(1.0, p.b / p.c) for p in self.chain]
        scale = (1 / 3 / math.prod(gains)) ** (1 / len(gains))
        for p, w, gain in zip(self.chain, self.factors, gains, strict=True):
            uniform_(w, math.sqrt(scale * gain / p.c))
        self._reset_bias()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for Adam-like optimizers: learning rates at which this layer moves as a dense one does with `lr`.

        Factor l gets lr * in_features / (c_l * number of factors), the bias gets lr. Source: as `reset_parameters`.

        >>> layer = StructuredLinear(Chain.monarch(64, 64, blocks=8))
        >>> [group["lr"] for group in layer.param_groups(lr=0.25)]
        [1.0, 1.0, 0.25]
        """
        count = len(self.chain)
        groups: list[dict[str, Any]] = [
            {"params": [w], "lr": lr * self.in_features / (p.c * count)}
            for p, w in zip(self.chain, self.factors, strict=True)
        ]
        return groups if self.bias is None else [*groups, {"params": [self.bias], "lr": lr}]

    @override
    def config(self) -> dict[str, Any]:
        """Plain data that rebuilds the layer without its values."""
        return {
            "kind": "chain",
            "chain": str(self.chain),
            "bias": self.bias is not None,
            "perm_in": self.perm_in is not None,
            "perm_out": self.perm_out is not None,
        }

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> StructuredLinear:
        """See `layer_from_config`."""
        perm_in, perm_out = (flag(config, name, default=False) for name in ("perm_in", "perm_out"))
        chain, bias = as_chain(config["chain"]), flag(config, "bias")
        return cls(chain, bias, device="meta", dtype=dtype, perm_in=perm_in, perm_out=perm_out)

    @override
    def __repr__(self) -> str:
        perms = "".join(f", {name}=True" for name in ("perm_in", "perm_out") if getattr(self, name) is not None)
        return f"StructuredLinear({self.chain!r}, bias={self.bias is not None}{perms})"


LAYERS.register("chain")(StructuredLinear)


def as_chain(chain: Chain | str) -> Chain:
    """The chain itself, or the one that a text describes; raises `TypeError` for anything else."""
    if isinstance(chain, str):
        return Chain.parse(chain)
    if not isinstance(chain, Chain):
        raise TypeError(f"chain is a {type(chain).__name__}. Rule: a Chain or its text, such as 'butterfly(64)'.")
    return chain


def _permutation(given: Any, size: int, name: str, device: torch.device) -> torch.Tensor | None:
    if given is None or given is False:
        return None
    if given is True:
        return torch.arange(size, device=device)
    return as_permutation(given, size, name, device)
