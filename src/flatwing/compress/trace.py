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
SELECTIONS = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_select.default,
    torch.ops.aten.gather.default,
)


@final
@dataclass
class Seen:
    """One layer during one call: its inputs, and what its output was added to (None if it was added to nothing).

    `choices` are the indices that chose as many rows as some input has, as a router of experts does.
    """

    inputs: list[torch.Tensor] = field(default_factory=list)
    residuals: list[torch.Tensor] = field(default_factory=list)
    choices: list[torch.Tensor] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of calls and of residual streams found."""
        return len(self.inputs), len(self.residuals)

    def same_rows(self, other: Seen) -> bool:
        """Whether row i of the inputs belongs to the same position here and there, as far as can be seen."""
        if [x.shape for x in self.inputs] != [x.shape for x in other.inputs]:
            return False
        pairs = list(zip(self.choices, other.choices, strict=False))
        return len(self.choices) == len(other.choices) and all(torch.equal(own, its) for own, its in pairs)

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

    Inputs are copied, once for all layers that share one: the network may write over them later. A layer writes to a
    residual stream if its output (or a view of it) is added to a tensor of the same shape, which is found by watching
    the additions, so no architecture has to be known; an output that something else was computed from first writes to
    none. With `like`, an earlier trace, the call ends as soon as as much has been seen as there. Cost: one call,
    without gradients.

    >>> layer, x = nn.Linear(2, 2), torch.ones(3, 2)
    >>> seen = trace({"layer": layer}, lambda: x + layer(x))
    >>> bool((seen["layer"].residual() == x).all())
    True
    """
    seen: dict[str, Seen] = {}
    copies: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}  # with what was copied, so that it keeps its address

    def enough() -> None:
        if like is not None and all(n in like and n in seen and seen[n].size == like[n].size for n in layers):
            raise _Enough

    watch = _Watch(enough)

    def called(name: str, x: torch.Tensor, output: torch.Tensor) -> None:
        own = seen.setdefault(name, Seen())
        key = _identity(x)
        if key not in copies:
            copies[key] = x, x.detach().clone()
        own.inputs.append(copies[key][1])
        rows = x.shape[:-1].numel()
        own.choices += [indices for chosen, indices in watch.chosen if chosen == rows]
        watch.outputs[output.untyped_storage().data_ptr()] = (output, own)
        enough()

    with torch.no_grad(), _hooked(layers, called), watch, suppress(_Enough):
        run()
    return seen


def sources(layers: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, tuple]:
    """Call `run`; what identifies the inputs of each layer, in the order of their first calls.

    Layers with equal values read the same tensors, before anything was written over them.
    """
    found: dict[str, tuple] = {}
    alive: list[torch.Tensor] = []  # so that no address is used again

    def called(name: str, x: torch.Tensor, _: torch.Tensor) -> None:
        found[name] = (*found.get(name, ()), _identity(x))
        alive.append(x)

    with torch.no_grad(), _hooked(layers, called):
        run()
    return found


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], called: Callable[[str, torch.Tensor, torch.Tensor], None]) -> Iterator:
    """Tell `called` the name, the input and the output of every call of a layer."""
    handles = []
    for name, layer in layers.items():

        def hook(_: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor, name: str = name) -> None:
            called(name, args[0] if args else next(iter(kwargs.values())), output)

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _identity(x: torch.Tensor) -> tuple:
    """Equal for tensors with the same numbers in the same memory at the same time; inference tensors never change."""
    return x.data_ptr(), x.shape, x.stride(), 0 if x.is_inference() else x._version


class _Enough(Exception):
    """Ends a call whose rest nobody needs."""


@final
class _Watch(TorchDispatchMode):
    """Finds the other operand when the output of a watched layer is added to something of its shape.

    Keeps the indices by which rows were chosen, each with the number of rows, in the order of the choices.
    """

    def __init__(self, found: Callable[[], None]) -> None:
        super().__init__()
        self.found = found
        self.outputs: dict[int, tuple[torch.Tensor, Seen]] = {}  # kept alive, so that no address is used again
        self.chosen: list[tuple[int, torch.Tensor]] = []

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
        if func in SELECTIONS and result.ndim:
            indices = [x for x in _tensors(args[1:]) if not x.is_floating_point()]
            self.chosen += [(result.shape[:-1].numel(), index.clone()) for index in indices]
        if self.outputs:  # what is computed from an output, and is no view of it, may be what is added to it later
            views = _storages(result)
            for storage in _storages((args, list((kwargs or {}).values()))):
                if storage not in views:
                    self.outputs.pop(storage, None)
        return result


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _storages(values: Any) -> set[int]:
    """Where the tensors in nested lists and tuples keep their numbers."""
    strided = (x for x in _tensors(values) if x.layout == torch.strided and not x.is_nested)
    return {x.untyped_storage().data_ptr() for x in strided}


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


def call_apart(
    module: nn.Module, args: tuple, kwargs: Mapping[str, Any], parameters: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """What a module returns in evaluation mode, without gradients, with other `parameters` by name if wanted.

    Nothing of it changes: it works on copies of its buffers and of the tensors among its arguments, which it may count
    in or write over.

    >>> counter = nn.BatchNorm1d(2)
    >>> y = call_apart(counter, (torch.ones(3, 2),), {}, {"weight": torch.zeros(2)})
    >>> float(y.sum()), counter.weight.tolist()
    (0.0, [1.0, 1.0])
    """

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    held = {name: buffer.clone() for name, buffer in module.named_buffers()} | dict(parameters or {})
    own = tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()}
    with torch.no_grad(), evaluating(module):
        return torch.func.functional_call(module, held, *own)
