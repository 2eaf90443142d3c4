"""SumLinear: a sum of structured layers, such as low rank plus block diagonal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, final

import torch
from jaxtyping import Num
from torch import nn
from typing_extensions import override

from ..core import as_matrix, require_whole
from ..factorize import factorize
from ..structure import Chain, SparseProduct
from .base import LAYERS, StructuredLayer, flag, layer_from_config, own
from .linear import StructuredLinear


@final
class SumLinear(StructuredLayer):
    """y = (W_1 + ... + W_T) x + bias, where each W_t is a structured layer of the same size without a bias.

    Low rank plus a diagonal is `Chain.low_rank(n, n, r)` and `Chain.block_diagonal(n, n, n)`. `bias` is None, the
    values (m,), or True for new ones. The state has the keys terms.0.*, terms.1.*, ..., bias. Raises `ValueError` for
    no terms, unequal sizes, terms with a bias, and sums of sums; `TypeError` for terms that are not structured layers.

    >>> terms = [StructuredLinear(c, bias=False) for c in (Chain.low_rank(6, 6, 2), Chain.block_diagonal(6, 6, 6))]
    >>> layer = SumLinear(*terms)
    >>> torch.equal(layer.dense(), terms[0].dense() + terms[1].dense()), layer.nnz
    (True, 30)
    """

    def __init__(self, *terms: StructuredLayer, bias: torch.Tensor | bool | None = None) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a sum needs at least one term, got none. Write SumLinear(layer, ...).")
        for i, term in enumerate(terms):
            if not isinstance(term, StructuredLayer):
                raise TypeError(
                    f"term {i} is a {type(term).__name__}. Rule: structured layers, such as StructuredLinear."
                )
            if isinstance(term, SumLinear):
                raise ValueError(f"term {i} is a sum itself. Write its terms beside the others.")
            if term.bias is not None:
                raise ValueError(f"term {i} has a bias. Rule: terms have bias=False, the sum has the bias.")
            size, first = (term.out_features, term.in_features), (terms[0].out_features, terms[0].in_features)
            if size != first:
                raise ValueError(f"term {i} is {size[0]} x {size[1]}, term 0 is {first[0]} x {first[1]}. Rule: equal.")
            if term.dtype != terms[0].dtype:
                raise ValueError(f"term {i} is {term.dtype}, term 0 is {terms[0].dtype}. Rule: one dtype.")
        self.terms = nn.ModuleList(terms)
        self.in_features, self.out_features = terms[0].in_features, terms[0].out_features
        if bias is None or bias is False:
            self.bias = None
        elif bias is True:
            self.bias = nn.Parameter(next(terms[0].parameters()).new_empty(self.out_features))
            self._reset_bias()
        else:
            if tuple(bias.shape) != (self.out_features,):
                raise ValueError(
                    f"bias has shape {tuple(bias.shape)}. Rule: one number per output, ({self.out_features},)."
                )
            self.bias = own(bias, True)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, chains: Sequence[Chain | str], *, rounds: int = 30, tolerance: float = 1e-4
    ) -> SumLinear:
        """Fit the weight of `linear` by a sum with one term per chain: each term in turn is factorized from what the
        others leave, and keeps its old values where the new ones are not better, so the error never grows.

        Stops after `rounds`, or when a round lowers the relative error by less than the share `tolerance` of it. Bias,
        dtype and frozenness are those of `linear`. Raises `ValueError` as `factorize` does. Cost: rounds * one
        factorization per chain.

        >>> linear = nn.Linear(6, 6, bias=False)
        >>> _ = nn.init.eye_(linear.weight)
        >>> layer = SumLinear.from_linear(linear, ["low_rank(6, 6, 1)", "block_diagonal(6, 6, blocks=6)"])
        >>> torch.allclose(layer.dense(), torch.eye(6), atol=1e-5)
        True
        """
        products = fit_sum(linear.weight, chains, rounds, tolerance)
        terms = [StructuredLinear.from_product(product.to(linear.weight.dtype)) for product in products]
        layer = cls(*terms)
        layer.take(linear)
        return layer

    @override
    def dense(self) -> Num[torch.Tensor, "m n"]:
        """The matrix (out_features, in_features); differentiable."""
        return reduce(add, (term.dense() for term in self._layers()))

    @override
    def multiply(self, x: Num[torch.Tensor, "k n"]) -> Num[torch.Tensor, "k m"]:
        """x @ dense().T, term by term."""
        return reduce(add, (term.multiply(x) for term in self._layers()))

    def _layers(self) -> Sequence[StructuredLayer]:
        return list(self.terms)  # type: ignore[arg-type]  # the constructor has checked

    @override
    def reset_parameters(self) -> None:
        """Draw new values: each term as by itself, scaled so that the sum has the variance of a new `nn.Linear`."""
        for term in self._layers():
            term.reset_parameters()
            with torch.no_grad():
                next(term.parameters()).mul_(len(self.terms) ** -0.5)
        self._reset_bias()

    @override
    def config(self) -> dict[str, Any]:
        """Plain data that rebuilds the layer without its values."""
        return {"kind": "sum", "terms": [term.config() for term in self._layers()], "bias": self.bias is not None}

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> SumLinear:
        """See `layer_from_config`."""
        terms = config["terms"]
        if not isinstance(terms, list | tuple) or any(isinstance(t, Mapping) and t.get("kind") == "sum" for t in terms):
            raise ValueError("terms is not a list of descriptions other than sums.")
        layers = (layer_from_config(term, device="meta", dtype=dtype) for term in terms)
        return cls(*layers, bias=flag(config, "bias"))

    @override
    def __repr__(self) -> str:
        return f"SumLinear({', '.join(map(repr, self.terms))}, bias={self.bias is not None})"


LAYERS.register("sum")(SumLinear)


def fit_sum(
    weight: torch.Tensor, chains: Sequence[Chain | str], rounds: int, tolerance: float
) -> Sequence[SparseProduct]:
    """The products of `SumLinear.from_linear`, in the precision of the computation (single for half)."""
    if isinstance(chains, str | Chain) or not chains:
        raise ValueError(f"chains is {chains!r}. Rule: a list of at least one chain, one per term.")
    target = as_matrix(weight, "weight")
    require_whole("rounds", rounds)
    products: list[SparseProduct | None] = [None] * len(chains)
    rest, error = target, float(target.norm())
    for _ in range(rounds):
        before = error
        for i, chain in enumerate(chains):
            old = products[i]
            open_part = rest if old is None else rest + old.dense()
            new = factorize(open_part, chain).product
            left = open_part - new.dense()
            if old is None or float(left.norm()) < error:
                products[i], rest, error = new, left, float(left.norm())
        if before - error <= tolerance * before:
            break
    return [product for product in products if product is not None]
