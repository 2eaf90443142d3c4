"""A backend whose kernels autograd cannot see into, so that the ways into torch are tested on any machine."""

from __future__ import annotations

import torch
from flatwing.kernels import native
from flatwing.kernels.backend import Backend, Gradients


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
