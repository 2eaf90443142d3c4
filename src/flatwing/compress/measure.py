"""Measure: parameters, bytes, arithmetic, memory and time of a network, and what its layers cost."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from ..nn import StructuredLayer
from .batch import Batch
from .costs import calls_per_sample as calls_per_sample
from .costs import unit_cost as unit_cost
from .evaluate import untouched
from .timing import latency as latency
from .timing import layer_speed as layer_speed


def parameters(model: nn.Module) -> int:
    """Numbers that are trained; a shared one counts once.

    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in _distinct(model.parameters()))


def linear_parameters(model: nn.Module, layers: Sequence[str]) -> int:
    """Numbers in the matrices or factors of the named layers, without biases; a shared one counts once.

    >>> linear_parameters(nn.Sequential(nn.Linear(3, 2)), ["0"])
    6
    """
    owned = [
        p
        for name in layers
        for own, p in model.get_submodule(name).named_parameters()
        if own.rpartition(".")[2] != "bias"
    ]
    return sum(p.numel() for p in _distinct(owned))


def state_bytes(model: nn.Module | Mapping[str, torch.Tensor]) -> int:
    """Bytes of a model's state, or of a state dict, on disk but for the header; shared tensors count once.

    >>> state_bytes(nn.Linear(3, 2).half())
    16
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return sum(t.numel() * t.element_size() for t in _distinct(state.values()))


def flops(model: nn.Module, batch: Batch) -> int:
    """Floating-point operations of one forward pass for one sample (row of the batch): products, two per multiply-add.

    Counted are matrix products, convolutions and attention, as torch's `FlopCounterMode` does; attention over the
    whole square, as if it were not causal. A structured layer counts two for each parameter and vector, whichever way
    it was computed. Cost: one forward pass.

    >>> flops(nn.Linear(3, 2), Batch((torch.ones(5, 3),)))
    12
    """
    corrections: list[int] = []
    counter = FlopCounterMode(display=False)

    def enter(layer: nn.Module, args: tuple) -> None:
        corrections.append(counter.get_total_flops())

    def leave(layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
        assert isinstance(layer, StructuredLayer)
        rows = output.numel() // layer.out_features  # a few rows may be multiplied without a matrix product
        corrections[-1] += 2 * layer.nnz * rows - counter.get_total_flops()

    structured = [layer for layer in model.modules() if isinstance(layer, StructuredLayer)]
    handles = [layer.register_forward_pre_hook(enter) for layer in structured]
    handles += [layer.register_forward_hook(leave) for layer in structured]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation, which the counter does not know
    try:  # likewise the fused attention of the CPU; written out it is two products
        with untouched(model), sdpa_kernel(SDPBackend.MATH), counter:
            batch.call(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return round((counter.get_total_flops() + sum(corrections)) / len(batch.inputs))


def peak_memory(model: nn.Module, batch: Batch) -> int:
    """Bytes of the tensors that live at the worst moment of one forward pass without gradients, weights included.

    On the CPU every storage is followed from the operation that made it to its release; scratch space inside an
    operation is not seen. On CUDA this is what the allocator counts. Cost: one forward pass.

    >>> peak_memory(nn.Linear(256, 256, bias=False), Batch((torch.ones(1, 256),))) // 1024
    258
    """
    given = [*model.parameters(), *model.buffers(), *tree_leaves((batch.args, dict(batch.kwargs)))]
    fixed = [t for t in given if isinstance(t, torch.Tensor)]
    device = batch.inputs.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with untouched(model):
            batch.call(model)
            torch.cuda.synchronize(device)
        known = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in fixed}
        return sum(known.values()) + torch.cuda.max_memory_allocated(device) - before
    with untouched(model), _Storages(fixed) as storages:
        batch.call(model)
    return storages.peak


@final
class _Storages(TorchDispatchMode):
    """Adds up the storages that live, from the operation that makes one until it is released."""

    def __init__(self, fixed: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()
        for tensor in fixed:
            self._see(tensor)

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # stays the same as long as the storage lives
        if key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                self._see(leaf)
        return result


def _distinct(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, those that share their memory once."""
    found: dict[Any, torch.Tensor] = {}
    for t in tensors:
        key = id(t) if t.is_meta or not t.numel() else (t.device, t.data_ptr(), t.numel())
        found.setdefault(key, t)
    return list(found.values())
