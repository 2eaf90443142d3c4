"""Batched GEMM: what is copied between factors, forwards and backwards."""

from typing import Any

import pytest
import torch
from torch.autograd.graph import Node
from torch.testing import assert_close

from flatwing import Chain, SparseProduct, kernels
from flatwing.kernels import native
from flatwing.structure import transforms

CHAIN = Chain.monarch(64, 64, blocks=8)


def leaves(rows: int, chain: Chain = CHAIN) -> tuple[torch.Tensor, SparseProduct]:
    """Vectors and a product that require gradients."""
    factors = [w.requires_grad_() for w in transforms.random_product(chain).factors]
    return torch.randn(rows, chain.shape[1], dtype=torch.float64, requires_grad=True), SparseProduct(chain, factors)


def given_to_gemm(y: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """The gradients that arrive at the batched GEMMs of y's graph."""
    seen: list[torch.Tensor] = []
    todo: list[Node | None] = [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            if node.name() == "BmmBackward0":
                node.register_prehook(lambda grads: seen.append(grads[0]))
            todo += [after for after, _ in node.next_functions]
    y.backward(grad)
    return seen


def copies(t: torch.Tensor) -> bool:
    """Whether a batched GEMM copies it: neither rows nor columns of its matrices are contiguous."""
    return 1 not in t.stride()[1:]


@pytest.mark.parametrize("chain", [CHAIN, Chain.butterfly(64, radices=(4, 4, 4)), Chain.block_diagonal(64, 64, 4)])
def test_no_gradient_is_copied_number_by_number(chain: Chain) -> None:
    x, product = leaves(40, chain)
    y = kernels.multiply(x, product, backend="bmm")
    seen = given_to_gemm(y, torch.randn_like(y))
    assert len(seen) == len(chain)
    assert not any(map(copies, seen))


def test_compilers_and_transforms_see_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    takes = native._takes_hooks
    monkeypatch.setattr(native, "_takes_hooks", lambda: asked.append(takes()) or asked[-1])
    x, product = leaves(40)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return kernels.multiply(x, product, backend="bmm").square().sum()

    want = torch.autograd.grad(loss(x), x)[0]
    assert asked == [True]
    assert_close(torch.func.grad(loss)(x.detach()), want)
    assert asked == [True, False]
    with torch.no_grad():
        loss(x)
    assert asked == [True, False, False]


def test_gradients_of_gradients_and_batches_of_them() -> None:
    chain = Chain.monarch(16, 16, blocks=4)
    x, product = leaves(9, chain)

    def function(*given: torch.Tensor) -> torch.Tensor:
        return kernels.multiply(given[0], SparseProduct(chain, given[1:]), backend="bmm")

    given = (x, *product.factors)
    assert torch.autograd.gradgradcheck(function, given)
    y = function(*given)
    many = torch.randn(3, *y.shape, dtype=torch.float64)
    got = torch.autograd.grad(y, given, many, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(many):
        assert_close([g[i] for g in got], list(torch.autograd.grad(y, given, grad, retain_graph=True)))


class Blocked(torch.autograd.Function):
    """Passes its input on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


def test_no_gradient_may_arrive() -> None:
    x, product = leaves(40)
    y = Blocked.apply(kernels.multiply(x, product, backend="bmm"))
    (y.sum() + x.sum()).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(("columns", "batched"), [(1, 0), (8, 0), (9, 2)])
def test_few_columns_of_one_block_are_multiplied_as_rows(columns: int, batched: int) -> None:
    _, product = leaves(1, Chain.low_rank(32, 48, rank=4))
    x = torch.randn(48, columns, dtype=torch.float64, requires_grad=True)
    y = kernels.multiply(x, product, backend="bmm", layout="batch-last")
    assert_close(y, product.dense() @ x)
    assert y.is_contiguous()
    grad = torch.randn_like(y)
    assert len(given_to_gemm(y, grad)) == batched
    assert_close(x.grad, product.dense().T @ grad)
