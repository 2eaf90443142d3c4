"""One multiplication, by a backend and by the dense matrix; and a backend that autograd cannot see into."""

from __future__ import annotations

import torch

from flatwing import Chain, SparseProduct, kernels
from flatwing.kernels import native
from flatwing.kernels.backend import Backend, Gradients


class Case:
    """y = f(x, *factors) by a backend, and the same by the dense matrix."""

    def __init__(
        self, chain: Chain, name: str, layout: str = "batch-first", dtype: torch.dtype = torch.float64
    ) -> None:
        g = torch.Generator().manual_seed(0)
        self.chain, self.name, self.layout = chain, name, layout
        self.x = torch.randn(5, chain.shape[1], generator=g, dtype=dtype)
        self.factors = [torch.randn(p.blocks, p.b, p.c, generator=g, dtype=dtype) for p in chain]
        self.tensors = [self.x, *self.factors]

    def f(self, x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        return kernels.multiply(x, SparseProduct(self.chain, factors), backend=self.name)

    def judge(self, x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        return x @ SparseProduct(self.chain, factors).dense().T

    def leaves(self) -> list[torch.Tensor]:
        return [t.clone().requires_grad_() for t in self.tensors]

    def loss(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.f(*tensors).square().sum()

    def judged_loss(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.judge(*tensors).square().sum()


def same(got: object, want: object) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


class Opaque(Backend):
    """Computes with detached tensors; whatever is differentiable about it comes from `kernels.dispatch`."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def unsupported_because(self, task):
        return None

    def seconds(self, task):
        return 1.0

    def forward(self, x, factors, depths, last):
        self.calls.append("forward")
        with torch.no_grad():
            return native.forward(x.detach(), [w.detach() for w in factors], depths, last).contiguous()

    def backward(self, x, factors, depths, grad, last, need_x=True, need_factors=True):
        self.calls.append("backward")
        with torch.no_grad():
            gx, gw = native.backward(x.detach(), [w.detach() for w in factors], depths, grad, last)
        return Gradients(gx if need_x else None, gw if need_factors else None)
