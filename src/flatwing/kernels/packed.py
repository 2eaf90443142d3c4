"""Packed: a product whose weights no longer change, prepared once for all multiplications that follow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import final

import torch
from jaxtyping import Num

from ..structure import SparseProduct
from ..structure.product import ORDINARY
from . import dispatch, wisdom
from .api import diagonal_chain, multiply, require_fitting
from .arguments import whole
from .backend import BACKENDS, Prepared, Task
from .plan import Plan, merged_factors, plan_for

_threads = torch.get_num_threads


@final
class Packed:
    """y = packed(x) for x (..., n): `multiply` with a copy of the weights, read, merged and packed once.

    What happens to the weights afterwards is not seen: pack them again. Gradients reach x, not the weights. Few
    vectors gain most, as no call reads, checks and packs each factor. Plans differ from those of `multiply`, too, where
    merging neighbours, or all factors to a dense matrix of m n numbers, is worth it only once.

    Batches of products are left to `multiply`. A named `backend` runs or raises. Raises `TypeError` for what is no
    product, `ValueError` for a backend that is unknown or does not support it; calls raise as `multiply` does. Memory:
    a copy of the weights, and what is prepared when a number of vectors is met whose plan is new.

    >>> from flatwing import Chain
    >>> P = SparseProduct(Chain.butterfly(4), [torch.ones(2, 2, 2)] * 2)
    >>> packed = Packed(P)
    >>> P.factors[0].zero_().sum(), packed(torch.ones(2, 4))
    (tensor(0.), tensor([[4., 4., 4., 4.],
            [4., 4., 4., 4.]]))
    """

    def __init__(self, product: SparseProduct, *, backend: str = "auto") -> None:
        if not isinstance(product, SparseProduct):
            raise TypeError(f"product is a {type(product).__name__}. Rule: a SparseProduct, such as layer.product.")
        self._backend = backend
        with torch.inference_mode(False):  # else gradients could not be recorded later
            factors = [w.detach().resolve_conj().resolve_neg().contiguous().clone() for w in product.factors]
        self.product = SparseProduct(product.chain, factors, product.perm_in, product.perm_out)
        """The copy, which is for reading only."""
        self._columns, self._dtype, self._device = product.chain.shape[1], factors[0].dtype, factors[0].device
        self._order = None if product.perm_out is None else product.perm_out.argsort()
        self._is_matrix = not (product.batch or product.perm_in is not None or product.perm_out is not None)
        self._chosen: dict[tuple[int, int, int], Prepared] = {}
        self._prepared: dict[tuple[str, tuple[int, ...]], Prepared] = {}
        if backend != "auto":
            self.plan(1)  # raises if it cannot run

    def __reduce__(self) -> tuple[Callable[..., Packed], tuple[SparseProduct]]:
        # without what was prepared, which lies at addresses of this process
        return partial(Packed, backend=self._backend), (self.product,)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, m, n)."""
        return self.product.shape

    def __call__(self, x: Num[torch.Tensor, "..."]) -> Num[torch.Tensor, "..."]:
        """The product applied to the vectors along the last dimension of x; the result is (..., m)."""
        if not torch.compiler.is_compiling():
            if self._is_matrix and type(x) is torch.Tensor and len(shape := x.shape) == 2 and self._reads(x, shape):
                return self._multiply(x, shape[0])
            require_fitting(x, self.product)
            if not self.product.batch and self._reads(x, x.shape):
                return self._permuted(x)
        return multiply(x, self.product, backend=self._backend)

    def plan(self, batch: int = 16, threads: int | None = None) -> Plan:
        """The plan for so many vectors, with the time of one call.

        >>> from flatwing import Chain
        >>> P = SparseProduct(Chain.monarch(64, 64, blocks=8), [torch.ones(8, 8, 8)] * 2)
        >>> Packed(P).plan(1).backend
        'dense'
        """
        rows, count = whole("batch", batch), whole("threads", _threads() if threads is None else threads)
        chain, products = diagonal_chain(self.product), prod(self.product.batch)
        task = Task(chain, rows, self._dtype, self._device.type, threads=count, products=products, packed=True)
        return plan_for(task, self._backend)

    def _reads(self, x: torch.Tensor, shape: torch.Size) -> bool:
        """Whether what was prepared can multiply x; `multiply` does the rest."""
        return (
            type(x) in ORDINARY
            and x.dtype is self._dtype
            and x.device == self._device
            and shape[-1] == self._columns
            and 0 not in shape
            and dispatch.holds_only_values(x)
        )

    def _multiply(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        threads = _threads()
        key = wisdom.rounded(rows), threads, wisdom.version()
        run = self._chosen.get(key) or self._choose(key)
        return run(x, threads)

    def _permuted(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self._columns)
        if self.product.perm_in is not None:
            flat = flat.index_select(1, self.product.perm_in)
        y = self._multiply(flat, flat.shape[0])
        if self._order is not None:
            y = y.index_select(1, self._order)
        return y.reshape(*x.shape[:-1], y.shape[1])

    def _choose(self, key: tuple[int, int, int]) -> Prepared:
        """What multiplies so many vectors; numbers of vectors with the same plan share it."""
        rows, threads, _ = key
        plan = self.plan(rows, threads)
        made = plan.backend, plan.merged
        if made not in self._prepared:
            factors = merged_factors(plan.task.chain, self.product.factors, plan.merged)
            self._prepared[made] = BACKENDS[plan.backend].prepared([w.contiguous() for w in factors], plan.chain.depths)
        self._chosen[key] = self._prepared[made]
        return self._chosen[key]
