"""One factor in plain torch, forward and backward: what autograd, transforms and compilers see through."""

from __future__ import annotations

from collections.abc import Sequence

import torch

peek = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
Size = int | torch.SymInt  # symbolic while a model is traced
FEW_ROWS = 8  # measured: above, it pays to bring the vectors into columns before the first factor


def apply_rows(w: torch.Tensor, x: torch.Tensor, d: int) -> torch.Tensor:
    """One factor applied to the rows of x (k, n): y[k, i, :, l] = w[i d + l] x[k, i, :, l]. No copy of x if d = 1."""
    blocks, b, c = w.shape
    if blocks == 1:
        return torch.nn.functional.linear(x, w.squeeze(0))  # the gradient of w[0] would be a copy
    a, k = blocks // d, x.shape[0]
    y = x.reshape(k, a, c, d).permute(1, 3, 0, 2).reshape(blocks, k, c) @ w.mT
    return y.reshape(a, d, k, b).permute(2, 0, 3, 1).reshape(k, a * b * d)


def apply_columns(w: torch.Tensor, x: torch.Tensor, d: int) -> torch.Tensor:
    """One factor applied to the columns of x (n, k). No copy of a contiguous x if a = 1 or d = 1.

    Where a = 1 the blocks lie d*k apart in x, where d = 1 one after the other: both are strides that a batched GEMM
    takes as they are.
    """
    blocks, b, c = w.shape
    a, k = blocks // d, x.shape[1]
    if blocks == 1 and k <= FEW_ROWS:  # what is narrow is multiplied faster as rows
        return torch.nn.functional.linear(x.mT, w.squeeze(0)).mT
    y = w @ _blocks_of_columns(x, a, c, d)
    return y.reshape(a, d, b, k).transpose(1, 2).reshape(a * b * d, k)


def _blocks_of_columns(x: torch.Tensor, a: Size, c: Size, d: Size) -> torch.Tensor:
    k = x.shape[1]
    view = x.reshape(a, c, d, k).transpose(1, 2)
    if a == 1:
        return view[0]
    return view[:, 0] if d == 1 else view.reshape(a * d, c, k)


def forward(x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool) -> torch.Tensor:
    """x @ (K_1 ... K_L)^T for x (rows, n), or (K_1 ... K_L) @ x for x (n, rows) if `last`; differentiable."""
    pairs = list(zip(factors, depths, strict=True))[::-1]
    if not last and (len(x) <= FEW_ROWS or len(pairs) == 1 or all(len(w) == 1 for w in factors)):
        for w, d in pairs:
            x = apply_rows(w, x, d)
        return x
    x = x if last else x.mT  # a view: the first factor copies it only if it must
    hooked = not last and _takes_hooks()
    for w, d in pairs:
        x = apply_columns(w, x, d)
        if d > 1 and hooked and x.requires_grad:
            # its gradient will be rows seen as columns, which no batched GEMM takes: turned once, as a whole matrix,
            # it is not copied number by number in each of the two that follow
            x.register_hook(_contiguous)
    return x if last else x.mT


def _contiguous(grad: torch.Tensor | None) -> torch.Tensor | None:
    return None if grad is None else grad.contiguous()  # a function further on may have none to give


def _takes_hooks() -> bool:
    """Whether gradients are recorded in the ordinary way, not by compilers or transforms, which know no hooks."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and peek() is None
        and torch._C._get_tracing_state() is None
    )


def backward(
    x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], grad: torch.Tensor, last: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Gradients of `forward` for x and the factors, from the gradient of its result; itself differentiable."""
    below = [x if last else x.mT]  # inputs of the factors, last factor first
    for w, d in list(zip(factors, depths, strict=True))[:0:-1]:
        below.append(apply_columns(w, below[-1], d))
    g = grad if last else grad.mT
    found = []
    for w, d, inputs in zip(factors, depths, reversed(below), strict=True):
        blocks, b, c = w.shape
        a = blocks // d
        found.append(_blocks_of_columns(g, a, b, d) @ _blocks_of_columns(inputs, a, c, d).mH)
        g = apply_columns(w.mH, g, d)
    return (g if last else g.mT), found


def tangent(
    x: torch.Tensor,
    factors: Sequence[torch.Tensor],
    depths: Sequence[int],
    last: bool,
    dx: torch.Tensor | None,
    dfactors: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """Derivative of `forward` in the direction (dx, dfactors), where None stands for zero; differentiable."""
    value = x if last else x.mT
    slope = None if dx is None else (dx if last else dx.mT)
    for w, dw, d in list(zip(factors, dfactors, depths, strict=True))[::-1]:
        slope = None if slope is None else apply_columns(w, slope, d)
        if dw is not None:
            change = apply_columns(dw, value, d)
            slope = change if slope is None else slope + change
        value = apply_columns(w, value, d)
    slope = torch.zeros_like(value) if slope is None else slope
    return slope if last else slope.mT
