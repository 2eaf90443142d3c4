"""How a compiled backend enters torch: eager calls, autograd of any order, transforms, compilers.

Two paths, because no single registration of torch does everything. A custom operator is what compilers and exporters
need, but forward-mode differentiation of it silently gives zero; an `autograd.Function` with a `jvp` does that, but
compilers reject it. Both call the same two kernels, and everything beyond first derivatives is made of the plain torch
operations in `native`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..structure import SparseProduct
from . import native
from .arguments import require_sizes
from .backend import BACKENDS, chain_of, resolved
from .native import peek
from .plan import Plan, merged_factors, plan_of

_is_cast = torch.is_autocast_enabled
_batched = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]
_modes = torch._C._len_torch_dispatch_stack
_PLAIN = {Tensor, Parameter}
_NEEDS_GRAD, _BYTES, _ON_CPU = attrgetter("requires_grad"), attrgetter("nbytes"), attrgetter("is_cpu")


class Call(NamedTuple):
    """What an operation needs besides tensors."""

    depths: tuple[int, ...]
    backend: str
    last: bool


def run(x: Tensor, factors: Sequence[Tensor], call: Call) -> Tensor:
    """The product applied to x (rows, n), or (n, rows) if `call.last`, by a backend that is not `native`."""
    if torch.compiler.is_compiling():
        return multiply_op(x, list(factors), list(call.depths), call.backend, call.last)
    if _modes() and type(_get_current_dispatch_mode()).__module__ == "torch.utils.flop_counter":
        # a counter knows the operations of torch; registering ours with it would import the counter, and Triton with it
        return native.forward(x, factors, call.depths, call.last).contiguous()
    recording = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in factors))
    if peek() is not None:
        return _Transformable.apply(x, call, *factors)
    if recording or forward_ad._current_level >= 0:
        return _Multiply.apply(x, call, *factors)
    return _forward(x, factors, call)


def is_plain_call(x: Tensor, product: SparseProduct) -> bool:
    """Whether, outside of compilers, a kernel may run at once: x fits, and there is nothing to record, cast, transform.

    This is what keeps a small multiplication at microseconds; all other calls take the long way and find the same.
    """
    if not (type(product) is SparseProduct and type(x) is Tensor and x.is_cpu):
        return False
    shape, sizes = x.shape, product.plain_sizes
    return (
        sizes is not None
        and len(shape) == 2
        and shape[0] > 0
        and shape[1] == product.chain.shape[1]
        and x.dtype is product.factors[0].dtype
        and holds_only_values(x)
        and not (torch.is_grad_enabled() and any(map(_NEEDS_GRAD, product.factors)))
        and list(map(_BYTES, product.factors)) == sizes  # whoever swaps `.data` makes other tensors of the same objects
        and all(map(_ON_CPU, product.factors))
    )


def holds_only_values(x: Tensor) -> bool:
    """Whether there is nothing to record, cast or transform, so that a kernel may read the memory of x."""
    return (
        x.layout is torch.strided
        and not (x.requires_grad and torch.is_grad_enabled())
        and not (x.is_neg() or x.is_conj())
        and not (_modes() or _transformed())
        and not (_is_cast("cpu") if x.is_cpu else x.is_meta or _is_cast(x.device.type))
        and torch._C._get_tracing_state() is None
    )


def _transformed() -> bool:
    """Whether tensors may carry more than their values: tangents, or what `torch.func` wraps around them."""
    return forward_ad._current_level >= 0 or peek() is not None


def _plain(x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Whether kernels may read the memory of these tensors at once, without asking torch what they are."""
    if _modes() or _transformed():
        return False
    tensors = (x, *factors)  # map: loops in Python take a microsecond
    if any(map(Tensor.is_neg, tensors)) or (x.is_complex() and any(map(Tensor.is_conj, tensors))):
        return False
    return _PLAIN.issuperset(map(type, tensors))


def _forward(x: Tensor, factors: Sequence[Tensor], call: Call) -> Tensor:
    if _plain(x, factors):
        return BACKENDS[call.backend].forward(x, factors, call.depths, call.last)
    return multiply_op(x, list(factors), list(call.depths), call.backend, call.last)


class _Multiply(torch.autograd.Function):
    """For plain autograd, and forward mode: without `setup_context`, whose arguments torch binds for 20 us per call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call, *factors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.call = call
        ctx.save_for_backward(x, *factors)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(x, *factors)
        return _forward(x, factors, call)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *factors = ctx.saved_tensors
        depths, backend, last = ctx.call
        if torch.is_grad_enabled() or _transformed() or _batched(grad):
            gx, gw = native.backward(x, factors, depths, grad, last)
            return (gx, None, *gw)
        if not (_plain(x, factors) and _plain(grad, ())):
            gx, *gw = backward_op(x, factors, list(depths), backend, last, grad)
            return (gx, None, *gw)
        need_x, _, *needed = ctx.needs_input_grad
        found = BACKENDS[backend].backward(x, factors, depths, grad, last, need_x, any(needed))
        return (found.x, None, *(found.factors or [None] * len(factors)))

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, _: None, *dfactors: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *factors = ctx.saved_tensors
        return native.tangent(x, factors, ctx.call.depths, ctx.call.last, dx, dfactors)


class _Transformable(torch.autograd.Function):
    """The same for `torch.func`."""

    generate_vmap_rule = True
    backward = _Multiply.backward  # pyright: ignore[reportAssignmentType]
    jvp = _Multiply.jvp

    @staticmethod
    def forward(x: Tensor, call: Call, *factors: Tensor) -> Tensor:
        return _forward(x, factors, call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.call, *factors = inputs
        ctx.save_for_backward(x, *factors)
        ctx.save_for_forward(x, *factors)


def _planned(
    x: Tensor, factors: Sequence[Tensor], depths: Sequence[int], backend: str, last: bool, train: bool = False
) -> Plan:
    """What runs inside an operator: while a model is compiled it is not known yet with how many rows it will run."""
    return plan_of(chain_of(factors, depths), x, last, train, backend)


# schemas in words: they must not depend on how annotations are evaluated
_ARGUMENTS = "Tensor x, Tensor[] factors, int[] depths, str backend, bool last"


@torch.library.custom_op("flatwing::multiply", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def multiply_op(x: Tensor, factors: list[Tensor], depths: list[int], backend: str, last: bool) -> Tensor:
    """The operator behind `multiply`: see `Backend.forward`."""
    x, *factors = map(resolved, (x, *factors))
    _require_fitting(x, factors, depths, last)
    plan = _planned(x, factors, depths, backend, last)
    used = merged_factors(plan.task.chain, factors, plan.merged) if plan.merged else factors
    y = BACKENDS[plan.backend].forward(x, used, plan.chain.depths, last)
    return _own_memory([y.contiguous()], [x, *factors])[0]


@torch.library.custom_op(
    "flatwing::multiply_backward", mutates_args=(), schema=f"({_ARGUMENTS}, Tensor grad) -> Tensor[]"
)
def backward_op(
    x: Tensor, factors: list[Tensor], depths: list[int], backend: str, last: bool, grad: Tensor
) -> list[Tensor]:
    """Gradients for x and every factor: see `Backend.backward`."""
    x, grad, *factors = map(resolved, (x, grad, *factors))
    _require_fitting(x, factors, depths, last, grad)
    chosen = BACKENDS[_planned(x, factors, depths, backend, last, train=True).backend]
    if chosen.native:
        gx, gw = native.backward(x, factors, depths, grad, last)
    else:
        gx, gw = chosen.backward(x, factors, tuple(depths), grad, last)
        assert gx is not None
        assert gw is not None
    return _own_memory([gx.contiguous(), *(g.contiguous() for g in gw)], [x, grad, *factors])


def _require_fitting(
    x: Tensor, factors: Sequence[Tensor], depths: Sequence[int], last: bool, grad: Tensor | None = None
) -> None:
    """Raise `ValueError` for what does not fit: whoever calls an operator by its name comes past all other checks."""
    blocks = [len(w) if w.ndim == 3 else 0 for w in factors]
    if len(blocks) != len(depths) or any(d < 1 or a < 1 or a % d for a, d in zip(blocks, depths, strict=False)):
        shapes = [tuple(w.shape) for w in factors]
        raise ValueError(f"factors {shapes}, depths {tuple(depths)}. Rule: factors (a d, b, c), and the d of each.")
    chain = chain_of(factors, depths)
    require_sizes(x, chain, factors, last)
    tensors = {"x": x, **{f"factor {i}": w for i, w in enumerate(factors)}}
    if grad is not None:
        tensors["grad"] = grad
        rows, m = x.shape[1 if last else 0], chain.shape[0]
        if grad.shape != ((m, rows) if last else (rows, m)):
            raise ValueError(f"grad has shape {tuple(grad.shape)}. Rule: that of the result, ({rows}, {m}).")
    if len({t.dtype for t in tensors.values()}) > 1:
        raise ValueError(f"{', '.join(f'{name} is {t.dtype}' for name, t in tensors.items())}. Rule: one dtype.")


def _own_memory(results: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The results, copied where they share memory with each other or an input: torch wants each in its own."""
    taken = {t.untyped_storage().data_ptr() for t in inputs}
    found = []
    for t in results:
        t = t.clone() if t.storage_offset() or t.untyped_storage().data_ptr() in taken else t
        taken.add(t.untyped_storage().data_ptr())
        found.append(t)
    return found


@multiply_op.register_fake
def _(x: Tensor, factors: list[Tensor], depths: list[int], backend: str, last: bool) -> Tensor:
    m = factors[0].shape[0] * factors[0].shape[1]
    return x.new_empty((m, x.shape[1]) if last else (x.shape[0], m))


@backward_op.register_fake
def _(x: Tensor, factors: list[Tensor], depths: list[int], backend: str, last: bool, grad: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape), *(w.new_empty(w.shape) for w in factors)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, factors, ctx.depths, ctx.backend, ctx.last, *grad = inputs
    ctx.save_for_backward(x, *factors, *grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *factors = ctx.saved_tensors
    if _batched(grad):  # `is_grads_batched` of autograd, whose vmap is older than that of `torch.func`
        gx, gw = native.backward(x, factors, ctx.depths, grad, ctx.last)
    else:
        gx, *gw = backward_op(x, factors, ctx.depths, ctx.backend, ctx.last, grad)
    return gx, gw, None, None, None


def _backward_backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    x, *factors, grad = ctx.saved_tensors

    def first(x: Tensor, grad: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        gx, gw = native.backward(x, factors, ctx.depths, grad, ctx.last)
        return gx, *gw

    pullback = torch.func.vjp(first, x, grad, *factors)[1]
    gx, ggrad, *gw = pullback(tuple(grads))
    return gx, gw, None, None, None, ggrad


multiply_op.register_autograd(_backward, setup_context=_setup)
backward_op.register_autograd(_backward_backward, setup_context=_setup)


def _stacked(t: Tensor, dim: int | None, size: int) -> Tensor:
    """The batch in front, whether there was one or not."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _block_diagonal(t: Tensor, last: bool) -> Tensor:
    """(batch, rows, n) as the vectors (rows, batch n) of a block-diagonal matrix; (batch, n, rows) if `last`."""
    return t.reshape(-1, t.shape[-1]) if last else t.movedim(0, 1).reshape(t.shape[1], -1)


def _unstacked(t: Tensor, last: bool, size: int) -> Tensor:
    return t.reshape(size, -1, t.shape[1]) if last else t.reshape(t.shape[0], size, -1).movedim(1, 0)


@multiply_op.register_vmap
def _(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, factors: list[Tensor], depths: list[int], backend: str, last: bool
) -> tuple[Tensor, int]:
    size, dims = info.batch_size, in_dims[1]
    stack = _stacked(x, in_dims[0], size)
    if not size:  # an empty batch has no block-diagonal matrix
        blocks, b, _ = _stacked(factors[0], dims[0], 0).shape[1:]
        return stack.new_empty((0, blocks * b, stack.shape[2]) if last else (0, stack.shape[1], blocks * b)), 0
    if all(dim is None for dim in dims) and not last:  # one product, more rows
        y = multiply_op(
            stack.reshape(-1, x.shape[-1] if in_dims[0] is None else stack.shape[-1]), factors, depths, backend, last
        )
        return y.reshape(size, -1, y.shape[1]), 0
    wide = [_stacked(w, dim, size).flatten(0, 1) for w, dim in zip(factors, dims, strict=True)]  # a batch multiplies a
    y = multiply_op(_block_diagonal(stack, last), wide, depths, backend, last)
    return _unstacked(y, last, size), 0


@backward_op.register_vmap
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    factors: list[Tensor],
    depths: list[int],
    backend: str,
    last: bool,
    grad: Tensor,
) -> tuple[list[Tensor], list[int]]:
    size = info.batch_size
    if not size:
        empty = [_stacked(t, dim, 0) for t, dim in zip((x, *factors), (in_dims[0], *in_dims[1]), strict=True)]
        return [t.new_empty(t.shape) for t in empty], [0] * len(empty)
    wide = [_stacked(w, dim, size).flatten(0, 1) for w, dim in zip(factors, in_dims[1], strict=True)]
    flat, flat_grad = (
        _block_diagonal(_stacked(t, dim, size), last) for t, dim in ((x, in_dims[0]), (grad, in_dims[5]))
    )
    gx, *gw = backward_op(flat, wide, depths, backend, last, flat_grad)
    found = [_unstacked(gx, last, size), *(w.unflatten(0, (size, -1)) for w in gw)]
    return found, [0] * len(found)
