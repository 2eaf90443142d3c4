"""Walk: original and compressed network side by side, block by block, so that each layer sees its new inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import nn

from .batch import Batch, main_output
from .moments import Moments
from .trace import Seen, trace

KEPT = 2 << 30  # bytes of activations of one segment that are kept between its stages
Call = tuple[tuple, dict[str, Any]]
Recorded = tuple[torch.Tensor, tuple, dict[str, Any], torch.Tensor]


@final
@dataclass(frozen=True)
class Segment:
    """A part of the network that runs on its own: a block of the trunk, or (`block` None) the whole network.

    `stages` are groups of layers with one common input, in the order in which they run.
    """

    name: str
    block: int | None
    stages: tuple[tuple[str, ...], ...]


@final
class Walk:
    """Both networks on the same batches, in step; memory holds the states between two blocks, not all activations.

    The trunk is a `ModuleList` of equal blocks that pass one tensor on (found and checked by running it). Layers in
    front of it and behind it, and networks without a trunk, are reached by running the whole network.
    `compressed` may be the original itself: then x = h, and nothing is anchored.
    """

    def __init__(self, original: nn.Module, compressed: nn.Module, layers: Sequence[str], batches: Sequence[Batch]):
        self.original, self.compressed, self.batches = original, compressed, list(batches)
        order = self._order(layers)
        self.unused = [name for name in layers if name not in order]
        self.trunk = find_trunk(original, list(order), self.batches[0])
        self.segments = self._segments(order)
        self._calls: list[list[Call]] = []  # [block][batch]: arguments besides the state
        self._states: dict[str, list[torch.Tensor]] = {}
        self._kept: dict[tuple[str, int], dict[str, Seen]] = {}

    def __iter__(self) -> Iterator[Segment]:
        """The segments in order; changes to the compressed network are taken up when the next one begins."""
        for segment in self.segments:
            if segment.block == 0:
                self._enter_trunk()
            yield segment
            if segment.block is not None:
                self._advance(segment)
        self._states, self._calls, self._kept = {}, [], {}

    def moments(self, segment: Segment, stage: Sequence[str], fitted: int) -> tuple[Moments, Moments]:
        """Moments of the common input of a stage, over the first `fitted` batches and over the others."""
        first = self.original.get_submodule(stage[0])
        both = Moments(_inputs(first)), Moments(_inputs(first))
        for i, batch in enumerate(self.batches):
            before = self._seen_before(segment, stage, i)
            after = before
            if self.compressed is not self.original:
                after = self._trace(self.compressed, "compressed", segment, stage, i, before)
            residuals = {}
            for name in stage:
                r, s = before[name].residual(batch.mask), after[name].residual(batch.mask)
                if after is not before and r is not None and s is not None:
                    residuals[name] = r.float() - s.float()
            both[i >= fitted].add(before[stage[0]].x(batch.mask), after[stage[0]].x(batch.mask), residuals)
        return both

    def inputs(self, segment: Segment) -> dict[tuple[str, ...], Moments]:
        """Moments of the inputs of all stages of a segment in the original network, in one pass over the batches."""
        found = {stage: Moments(_inputs(self.original.get_submodule(stage[0]))) for stage in segment.stages}
        firsts = [stage[0] for stage in segment.stages]
        for i, batch in enumerate(self.batches if firsts else []):
            seen = self._trace(self.original, "original", segment, firsts, i)
            for stage, moments in found.items():
                x = seen[stage[0]].x(batch.mask)
                moments.add(x, x, {})
        return found

    def _seen_before(self, segment: Segment, stage: Sequence[str], i: int) -> dict[str, Seen]:
        """What a stage saw in the original network: kept from one run per segment while that fits into memory."""
        key = segment.name, i
        if key not in self._kept:
            names = [name for each in segment.stages for name in each]
            seen = self._trace(self.original, "original", segment, names, i)
            size = sum(x.nbytes for own in seen.values() for x in (*own.inputs, *own.residuals))
            if size * len(self.batches) > KEPT:
                return {name: seen[name] for name in stage}
            if i == 0:
                self._kept = {}
            self._kept[key] = seen
        return {name: self._kept[key][name] for name in stage}

    def _trace(
        self,
        model: nn.Module,
        side: str,
        segment: Segment,
        stage: Sequence[str],
        i: int,
        like: dict[str, Seen] | None = None,
    ) -> dict[str, Seen]:
        layers = {name: model.get_submodule(name) for name in stage}
        return trace(layers, lambda: self._run(model, side, segment, i), like)

    def _run(self, model: nn.Module, side: str, segment: Segment, i: int) -> Any:
        if segment.block is None:
            return self.batches[i].call(model)
        args, kwargs = self._calls[segment.block][i]
        return model.get_submodule(segment.name)(self._states[side][i], *args, **kwargs)

    def _sides(self) -> dict[str, nn.Module]:
        same = self.compressed is self.original
        return {"original": self.original} | ({} if same else {"compressed": self.compressed})

    def _enter_trunk(self) -> None:
        """Record what every block is called with; only the state differs between the two networks."""
        assert self.trunk is not None
        blocks = len(list(self.original.get_submodule(self.trunk).children()))
        self._calls = [[] for _ in range(blocks)]
        for side, model in self._sides().items():
            self._states[side] = []
            for batch in self.batches:
                calls = record(model, self.trunk, batch)
                self._states[side].append(calls[0][0])
                if side == "original":
                    for k, (_, args, kwargs, _) in enumerate(calls):
                        self._calls[k].append((args, kwargs))

    def _advance(self, segment: Segment) -> None:
        for side, model in self._sides().items():
            with torch.no_grad():
                outputs = [main_output(self._run(model, side, segment, i)) for i in range(len(self.batches))]
            self._states[side] = outputs

    def _order(self, layers: Sequence[str]) -> dict[str, int]:
        """Each layer that is used, in the order of first use, with a number that layers of one input share."""
        seen = trace({name: self.original.get_submodule(name) for name in layers}, self._first_call)
        inputs: dict[tuple, int] = {}
        order = {}
        for name, its in seen.items():
            key = tuple((x.data_ptr(), x.shape, x.stride()) for x in its.inputs)
            order[name] = inputs.setdefault(key, len(inputs))
        return order

    def _first_call(self) -> Any:
        return self.batches[0].call(self.original)

    def _segments(self, order: dict[str, int]) -> list[Segment]:
        groups: dict[int, list[str]] = {}
        for name, number in order.items():
            groups.setdefault(number, []).append(name)
        stages = [tuple(group) for group in groups.values()]
        if self.trunk is None:
            return [Segment("", None, tuple(stages))] if stages else []
        prefix = self.trunk + "."
        inside = [[name.startswith(prefix) for name in stage] for stage in stages]
        first = next(i for i, flags in enumerate(inside) if any(flags))
        before = [stage for stage, flags in zip(stages[:first], inside[:first], strict=True) if not any(flags)]
        after = [s for s in stages[first:] if not s[0].startswith(prefix)]
        blocks: dict[int, list[tuple[str, ...]]] = {}
        for stage in stages:
            if stage[0].startswith(prefix):
                blocks.setdefault(int(stage[0][len(prefix) :].split(".")[0]), []).append(stage)
        count = len(list(self.original.get_submodule(self.trunk).children()))
        trunk = [Segment(f"{prefix}{k}", k, tuple(blocks.get(k, ()))) for k in range(count)]
        ends = [[Segment("", None, tuple(part))] if part else [] for part in (before, after)]
        return [*ends[0], *trunk, *ends[1]]


def _inputs(layer: nn.Module) -> int:
    size = getattr(layer, "in_features", None)
    return int(size) if size is not None else layer.get_parameter("weight").shape[0]  # transformers' Conv1D: (in, out)


def find_trunk(model: nn.Module, layers: Sequence[str], batch: Batch) -> str | None:
    """The `ModuleList` or `Sequential` whose blocks hold most of the `layers` and pass one tensor from block to block.

    None if there is no such list, as in a perceptron, or if its blocks do more than pass a tensor on.
    """
    best, held = None, 0
    for name, module in model.named_modules():
        children = list(module.children())
        if not name or not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(children) < 2:
            continue
        inside = sum(layer.startswith(name + ".") for layer in layers)
        if inside > held and len({type(child) for child in children}) == 1 and list(children[0].children()):
            best, held = name, inside
    if best is None:
        return None
    calls = record(model, best, batch)
    if len(calls) != len(list(model.get_submodule(best).children())):
        return None
    for (_, _, _, output), (state, *_) in pairwise(calls):
        if state.shape != output.shape or not torch.equal(state, output):
            return None
    return best


def record(
    model: nn.Module, trunk: str, batch: Batch
) -> list[tuple[torch.Tensor, tuple, dict[str, Any], torch.Tensor]]:
    """Per block, in the order of calls: the state that came in, the other arguments, the state that went out.

    Caches of keys and values become None: they would grow with every replay, and hold keys of the other network.
    """
    calls: list[tuple[torch.Tensor, tuple, dict[str, Any], torch.Tensor]] = []

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        kwargs = {name: _no_cache(value) for name, value in kwargs.items()}
        state = args[0] if args else kwargs.pop("hidden_states", None)
        if isinstance(state, torch.Tensor):
            calls.append((state, tuple(map(_no_cache, args[1:])), kwargs, main_output(output)))

    blocks = model.get_submodule(trunk).children()
    handles = [block.register_forward_hook(hook, with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad():
            batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _no_cache(value: Any) -> Any:
    return None if type(value).__name__.endswith("Cache") else value  # transformers has a dozen classes of them
