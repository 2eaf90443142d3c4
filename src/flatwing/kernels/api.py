"""multiply: a product of factors applied to vectors, by the backend that suits; explain: which one, and why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from math import prod
from typing import Any

import torch
from jaxtyping import Num

from ..structure import Chain, SparseProduct
from . import dispatch, native
from .arguments import dtype_of, kind_of, require_sizes, whole
from .backend import BACKENDS, Layout, Task
from .plan import Plan, merged_factors, plan_for, plan_of, runner_of

LAYOUTS = ("batch-first", "batch-last")


def list_backends() -> list[str]:
    """Names of the backends, in order of registration.

    >>> list_backends()[:3]
    ['reference', 'bmm', 'dense']
    """
    return list(BACKENDS)


def multiply(
    x: Num[torch.Tensor, "..."],
    product: SparseProduct,
    *,
    backend: str = "auto",
    layout: Layout = "batch-first",
) -> Num[torch.Tensor, "..."]:
    """x @ product.dense().T for x (..., n), without making the matrix; differentiable to any order.

    Args:
        x: vectors along the last dimension; along the first one, (n, ...), for the layout "batch-last".
        product: (m, n), or a batch (*batch, m, n) for x (*batch, k, n). It may carry permutations.
        backend: "auto", or one of `list_backends()`, which then runs or raises.
        layout: where the vectors are; the result (..., m), or (m, ...), has the same layout.

    The dtype is the common one of x and the factors, or that of `torch.autocast`. Works under `torch.func` (vmap, grad,
    jvp, ...), forward-mode differentiation, `torch.compile`, `torch.export`. All backends compute the same function of
    finite numbers. Half precision is summed in float32; backends made of torch operations round after each factor.
    Cost: 2 nnz multiplications and additions per vector.

    Raises `TypeError` for what is no tensor or product, `ValueError` for sizes that do not fit, devices that differ, an
    unknown backend (naming the nearest) or one that does not support the task.

    >>> P = SparseProduct(Chain.butterfly(4), [torch.ones(2, 2, 2)] * 2)
    >>> multiply(torch.ones(3, 4), P).tolist() == (torch.ones(3, 4) @ P.dense().T).tolist()
    True
    """
    if layout == "batch-first" and not torch.compiler.is_compiling() and dispatch.is_plain_call(x, product):
        run = runner_of(product.chain, x, backend)
        if run is not None:
            return run(x, product.factors)
    require_fitting(x, product, layout)
    last = layout == "batch-last"
    if product.batch:
        return _batched(x, product, backend, last)
    n = x.shape[0 if last else -1]
    if product.perm_in is not None:
        x = x.index_select(0 if last else -1, product.perm_in)
    flat = x if x.ndim == 2 else x.reshape((n, prod(x.shape[1:])) if last else (prod(x.shape[:-1]), n))
    y = apply(flat, product.chain, product.factors, backend, last)
    if product.perm_out is not None:
        y = y.index_select(0 if last else -1, product.perm_out.argsort())
    if x.ndim == 2:
        return y
    return y.reshape(len(y), *x.shape[1:]) if last else y.reshape(*x.shape[:-1], y.shape[-1])


def apply(
    x: torch.Tensor, chain: Chain, factors: Sequence[torch.Tensor], backend: str = "auto", last: bool = False
) -> torch.Tensor:
    """`multiply` for x (rows, n), or (n, rows) if `last`, and the factors of a chain: what layers call.

    Raises `ValueError` for sizes that do not fit and devices that differ: kernels read memory by address.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return _traced(x, chain, factors, backend, last)
    require_sizes(x, chain, factors, last)
    x, factors = _cast(x, factors)
    if type(x.shape[1 if last else 0]) is not int:
        return dispatch.run(x, factors, dispatch.Call(chain.depths, backend, last))
    if x.numel() == 0:
        backend = "bmm" if backend == "auto" else backend
    train = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in factors))
    plan = plan_of(chain, x, last, train, backend)
    if plan.merged:
        chain, factors = plan.chain, merged_factors(chain, factors, plan.merged)
    chosen = BACKENDS[plan.backend]
    if chosen.native:
        return chosen.forward(x, factors, chain.depths, last)
    return dispatch.run(x, factors, dispatch.Call(chain.depths, plan.backend, last))


def _traced(x: torch.Tensor, chain: Chain, factors: Sequence[torch.Tensor], backend: str, last: bool) -> torch.Tensor:
    """While a model is compiled or traced: the number of rows is not known, so "auto" is decided at each call."""
    x, factors = _cast(x, factors)
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace knows only the operations of torch
        return native.forward(x, factors, chain.depths, last)
    if backend != "auto" and BACKENDS[backend].native:
        return BACKENDS[backend].forward(x, factors, chain.depths, last)
    return dispatch.run(x, factors, dispatch.Call(chain.depths, backend, last))


def _cast(x: torch.Tensor, factors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Everything in one dtype: that of autocast for real numbers of at most single precision, else the common one."""
    dtypes = {x.dtype, *[w.dtype for w in factors]}
    kind = x.device.type
    if (
        kind != "meta"
        and torch.is_autocast_enabled(kind)
        and all(t.is_floating_point and t.itemsize < 8 for t in dtypes)
    ):
        dtype = torch.get_autocast_dtype(kind)
    elif len(dtypes) == 1:
        return x, factors
    else:
        dtype = reduce(torch.promote_types, dtypes)
    return x.to(dtype), [w.to(dtype) for w in factors]


def _batched(x: torch.Tensor, product: SparseProduct, backend: str, last: bool) -> torch.Tensor:
    """A batch of products is a block-diagonal one: the batch multiplies `a`."""
    batch, count = product.batch, prod(product.batch)
    m, n = product.chain.shape
    rows = x.shape[-1] if last else x.shape[-2]
    try:
        flat = x.expand(*batch, *x.shape[-2:]).reshape(count, *x.shape[-2:])
    except RuntimeError:
        raise ValueError(
            f"the product has batch {tuple(batch)}, x has {tuple(x.shape[:-2])}. Rule: the same batch, or none."
        ) from None
    chain = diagonal_chain(product)
    if not torch.compiler.is_compiling():
        train = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in product.factors))
        like = flat.mT if last else flat.movedim(0, 1)  # a view with as many rows, which is all that a plan asks for
        backend = plan_of(chain, like, last, train, backend, count).backend
        if backend == "dense":  # of each product; the block-diagonal matrix of all would be mostly zeros
            x, factors = _cast(x, product.factors)
            matrix = SparseProduct(product.chain, factors, product.perm_in, product.perm_out).dense()
            return matrix @ x if last else x @ matrix.mT
    if product.perm_in is not None:
        flat = flat.index_select(-2 if last else -1, product.perm_in)
    factors = [w.reshape(-1, *w.shape[-2:]) for w in product.factors]
    wide = flat.reshape(count * n, rows) if last else flat.movedim(0, 1).reshape(rows, count * n)
    y = apply(wide, chain, factors, backend, last)
    y = y.reshape(count, m, rows) if last else y.reshape(rows, count, m).movedim(1, 0)
    if product.perm_out is not None:
        y = y.index_select(-2 if last else -1, product.perm_out.argsort())
    return y.reshape(*batch, *y.shape[1:])


def diagonal_chain(product: SparseProduct) -> Chain:
    """The chain of a batch of products as one, block-diagonal: the batch multiplies every `a`."""
    return _diagonal(product.chain, prod(product.batch))


@lru_cache(maxsize=1024)
def _diagonal(chain: Chain, count: int) -> Chain:
    return Chain((p.a * count, p.b, p.c, p.d) for p in chain)


def require_fitting(x: Any, product: Any, layout: str = "batch-first") -> None:
    """Raise what `multiply` raises for vectors that are none, or do not fit."""
    if not isinstance(product, SparseProduct):
        raise TypeError(f"product is a {type(product).__name__}. Rule: a SparseProduct, such as layer.product.")
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x is a {type(x).__name__}. Rule: a torch tensor; write torch.as_tensor(x).")
    if x.layout is not torch.strided:
        raise ValueError(f"x has the layout {x.layout}. Rule: an ordinary, dense tensor; write x.to_dense().")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}. Rule: one of {', '.join(LAYOUTS)}.")
    n = product.chain.shape[1]
    axis = -1 if layout == "batch-first" else (-2 if product.batch else 0)
    least = 2 if product.batch else 1
    if x.ndim < least or x.shape[axis] != n:
        places = {True: "(..., {n})", False: "({n}, ...)"}[layout == "batch-first"].format(n=n)
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the product has {n} columns. Rule: x is {places} for the layout {layout}"
            f"{f', with the batch {tuple(product.batch)} in front' if product.batch else ''}."
        )
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(
            f"x is {x.dtype}. Rule: real or complex floating point; write x.to({product.factors[0].dtype})."
        )


def explain(
    product: SparseProduct | Chain,
    batch: int = 16,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    backend: str = "auto",
    layout: Layout = "batch-first",
    train: bool = False,
    threads: int | None = None,
) -> Plan:
    """The plan that `multiply` follows for `batch` vectors: backend, merges, predicted time, and why not the others.

    Plans are made for powers of two: that of `batch` is the one for the next power of two. Device and dtype default to
    those of the product (cpu and float32 for a chain), threads to those of torch. `train` counts both gradients in.
    Raises as `multiply` does.

    >>> explain(Chain.butterfly(1024), batch=256, backend="bmm").reason
    'asked for by name'
    """
    rows, count = whole("batch", batch), whole("threads", torch.get_num_threads() if threads is None else threads)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}. Rule: one of {', '.join(LAYOUTS)}.")
    products = 1
    if isinstance(product, SparseProduct):
        chain, products = diagonal_chain(product), prod(product.batch)
        device, dtype = product.device if device is None else device, dtype or product.factors[0].dtype
    elif isinstance(product, Chain):
        chain = product
    else:
        raise TypeError(f"product is a {type(product).__name__}. Rule: a SparseProduct or a Chain.")
    kind = kind_of("cpu" if device is None else device)
    task = Task(chain, rows, dtype_of(dtype or torch.float32), kind, layout, train, count, products)
    return plan_for(task, backend)
