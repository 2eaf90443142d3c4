"""What goes into the layers of a network during one call, and which residual stream each of them writes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@final
@dataclass
class Seen:
    """One layer during one call: its inputs, and what its output was added to (None if it was added to nothing)."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    residuals: list[torch.Tensor] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of calls and of residual streams found."""
        return len(self.inputs), len(self.residuals)

    def x(self, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Inputs of all calls of the layer, (samples, n); `mask` says which positions of a text are no padding."""
        return torch.cat([_rows(x, mask) for x in self.inputs])

    def residual(self, mask: torch.Tensor | None = None) -> torch.Tensor | None:
        """The residual streams, (samples, m), unless some call had none."""
        if not self.residuals or len(self.residuals) != len(self.inputs):
            return None
        return torch.cat([_rows(r, mask) for r in self.residuals])


def _rows(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None and mask.shape == x.shape[:-1]:
        return x[mask]
    return x.reshape(-1, x.shape[-1])


def trace(
    layers: Mapping[str, nn.Module], run: Callable[[], Any], like: Mapping[str, Seen] | None = None
) -> dict[str, Seen]:
    """Call `run` and return what each of the `layers` saw, in the order of their first calls.

    A layer writes to a residual stream if its output (or a view of it) is added to a tensor of the same shape, which is
    found by watching the additions, so no architecture has to be known; an output that something else was computed from
    first writes to none. With `like`, an earlier trace, the call ends as soon as as much has been seen as there. Cost:
    one call, without gradients.

    >>> layer, x = nn.Linear(2, 2), torch.ones(3, 2)
    >>> seen = trace({"layer": layer}, lambda: x + layer(x))
    >>> bool((seen["layer"].residual() == x).all())
    True
    """
    seen: dict[str, Seen] = {}

    def enough() -> None:
        if like is not None and all(name in seen and seen[name].size == like[name].size for name in layers):
            raise _Enough

    watch = _Additions(enough)
    handles = []
    for name, layer in layers.items():

        def hook(_: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor, name: str = name) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            seen.setdefault(name, Seen()).inputs.append(x.detach())
            watch.outputs[output.untyped_storage().data_ptr()] = (output, seen[name])
            enough()

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad(), watch, suppress(_Enough):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


class _Enough(Exception):
    """Ends a call whose rest nobody needs."""


@final
class _Additions(TorchDispatchMode):
    """Finds the other operand when the output of a watched layer is added to something of its shape."""

    def __init__(self, found: Callable[[], None]) -> None:
        super().__init__()
        self.found = found
        self.outputs: dict[int, tuple[torch.Tensor, Seen]] = {}  # kept alive, so that no address is used again

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in ADDITIONS and all(isinstance(x, torch.Tensor) for x in args[:2]):
            for own, other in (args[:2], args[1::-1]):
                found = self.outputs.get(own.untyped_storage().data_ptr())
                if found and own.shape == other.shape and own.numel() == found[0].numel():
                    del self.outputs[own.untyped_storage().data_ptr()]
                    found[1].residuals.append(other.detach().clone())  # an addition in place would overwrite it
                    self.found()
                    break
        result = func(*args, **(kwargs or {}))
        if self.outputs:  # what is computed from an output, and is no view of it, may be what is added to it later
            views = _storages(result)
            for storage in _storages((args, list((kwargs or {}).values()))):
                if storage not in views:
                    self.outputs.pop(storage, None)
        return result


def _storages(values: Any) -> set[int]:
    """Where the tensors in nested lists and tuples keep their numbers."""
    if isinstance(values, (list, tuple)):
        return set().union(*map(_storages, values))
    strided = isinstance(values, torch.Tensor) and values.layout == torch.strided and not values.is_nested
    return {values.untyped_storage().data_ptr()} if strided else set()


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode for all modules, then each as it was."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
