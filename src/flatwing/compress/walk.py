"""Walk: original and compressed network side by side, block by block, so that each layer sees its new inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import nn

from .batch import Batch, main_output
from .moments import Moments
from .trace import Seen, call_apart, sources, trace

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
    `compressed` may be the original itself: then x = h, and nothing is anchored; nor is it for a batch in which a layer
    is not called, or gets other rows, in one of the two, as experts do: x = h there too. Neither network changes.
    Cost, besides that of the segments: one call per batch, and two for the first.
    """

    def __init__(self, original: nn.Module, compressed: nn.Module, layers: Sequence[str], batches: Sequence[Batch]):
        self.original, self.compressed, self.batches = original, compressed, list(batches)
        self._calls: dict[str, list[list[Call]]] = {}  # [side][block][batch]: arguments besides the state
        self._states: dict[str, list[torch.Tensor]] = {}
        self._kept: dict[int, dict[str, Seen]] = {}  # of the segment at hand
        modules = {name: original.get_submodule(name) for name in layers}
        first = self.batches[0]
        called = sources(modules, lambda: call_apart(original, first.args, first.kwargs))
        self.trunk = find_trunk(original, list(called), first)
        uses = _merged(self._enter(modules) if self.trunk is None else self._enter_trunk("original", modules))
        self.unused = [name for name in layers if name not in uses]
        if "original" not in self._calls:
            self.trunk = None  # there is none, or some batch skips blocks
        self.segments = self._segments(uses)

    def __iter__(self) -> Iterator[Segment]:
        """The segments in order; changes to the compressed network are taken up when the next one begins."""
        for segment in self.segments:
            self._kept = {}
            if segment.block == 0:
                for side in self._sides():
                    if side not in self._calls:
                        self._enter_trunk(side, {})
                        self._calls.setdefault(side, self._calls["original"])
            yield segment
            if segment.block is not None:
                self._advance(segment)
        self._states, self._calls, self._kept = {}, {}, {}

    def moments(self, segment: Segment, stage: Sequence[str], fitted: int) -> tuple[Moments, Moments]:
        """Moments of the common input of a stage, over the first `fitted` batches and over the others."""
        first = self.original.get_submodule(stage[0])
        both = Moments(_inputs(first)), Moments(_inputs(first))
        for i, batch in enumerate(self.batches):
            before = self._seen_before(segment, stage, i)
            after = before
            if self.compressed is not self.original:
                after = self._trace(self.compressed, "compressed", segment, stage, i, before)
            if stage[0] not in after:
                continue
            if stage[0] not in before or not before[stage[0]].same_rows(after[stage[0]]):
                before = after
            residuals = {}
            for name in stage if after is not before else ():
                r, s = (side[name].residual(batch.mask) if name in side else None for side in (before, after))
                if r is not None and s is not None:
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
                if stage[0] not in seen:
                    continue
                x = seen[stage[0]].x(batch.mask)
                moments.add(x, x, {})
        return found

    def _seen_before(self, segment: Segment, stage: Sequence[str], i: int) -> dict[str, Seen]:
        """What a stage saw in the original network: kept from one run per segment while that fits into memory."""
        if i not in self._kept:
            names = [name for each in segment.stages for name in each]
            seen = self._trace(self.original, "original", segment, names, i)
            size = sum(x.nbytes for own in seen.values() for x in (*own.inputs, *own.residuals))
            if size * len(self.batches) > KEPT:
                return {name: seen[name] for name in stage if name in seen}
            self._kept[i] = seen
        return {name: self._kept[i][name] for name in stage if name in self._kept[i]}

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
            return call_apart(model, self.batches[i].args, self.batches[i].kwargs)
        args, kwargs = self._calls[side][segment.block][i]
        return call_apart(model.get_submodule(segment.name), (self._states[side][i], *args), kwargs)

    def _sides(self) -> dict[str, nn.Module]:
        same = self.compressed is self.original
        return {"original": self.original} | ({} if same else {"compressed": self.compressed})

    def _enter(self, layers: Mapping[str, nn.Module]) -> list[dict[str, tuple]]:
        return [sources(layers, lambda b=b: call_apart(self.original, b.args, b.kwargs)) for b in self.batches]

    def _enter_trunk(self, side: str, layers: Mapping[str, nn.Module]) -> list[dict[str, tuple]]:
        """Record what every block is called with, unless a batch skips blocks; per batch, the sources of the layers."""
        assert self.trunk is not None
        model, used, arguments = self._sides()[side], [], []
        blocks = len(list(model.get_submodule(self.trunk).children()))
        self._states[side] = []
        for batch in self.batches:
            calls: list[Recorded] = []
            used.append(sources(layers, lambda b=batch, c=calls: c.extend(record(model, str(self.trunk), b))))
            self._states[side] += [state for state, *_ in calls[:1]]
            arguments.append([(args, kwargs) for _, args, kwargs, _ in calls])
        if all(len(calls) == blocks for calls in arguments):
            self._calls[side] = [list(calls) for calls in zip(*arguments, strict=True)]
        return used

    def _advance(self, segment: Segment) -> None:
        for side, model in self._sides().items():
            self._states[side] = [main_output(self._run(model, side, segment, i)) for i in range(len(self.batches))]

    def _block(self, name: str) -> int | None:
        prefix = f"{self.trunk}."
        return int(name[len(prefix) :].split(".")[0]) if self.trunk and name.startswith(prefix) else None

    def _segments(self, uses: dict[str, tuple]) -> list[Segment]:
        groups: dict[tuple, list[str]] = {}
        for name, inputs in uses.items():
            groups.setdefault((self._block(name), inputs), []).append(name)
        stages = [(block, tuple(group)) for (block, _), group in groups.items()]
        if self.trunk is None:
            return [Segment("", None, tuple(stage for _, stage in stages))] if stages else []
        first = next(i for i, (block, _) in enumerate(stages) if block is not None)
        ends = [[stage for block, stage in part if block is None] for part in (stages[:first], stages[first:])]
        before, after = ([Segment("", None, tuple(part))] if part else [] for part in ends)
        count = len(list(self.original.get_submodule(self.trunk).children()))
        blocks = [tuple(stage for block, stage in stages if block == k) for k in range(count)]
        return [*before, *(Segment(f"{self.trunk}.{k}", k, own) for k, own in enumerate(blocks)), *after]


def _merged(used: Sequence[Mapping[str, tuple]]) -> dict[str, tuple]:
    """Each layer that some batch uses, in the order of use, with what identifies its inputs in every batch."""
    order: list[str] = []
    for own in used:
        place = 0
        for name in own:  # a layer that earlier batches did not use comes behind the one before it
            if name not in order:
                order.insert(place, name)
            place = order.index(name) + 1
    return {name: tuple(own.get(name) for own in used) for name in order}


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


def record(model: nn.Module, trunk: str, batch: Batch) -> list[Recorded]:
    """Per block, in the order of calls: the state that came in, the other arguments, the state that went out.

    Caches of keys and values become None: they would grow with every replay, and hold keys of the other network.
    """
    begun: list[Call] = []
    calls: list[Recorded] = []

    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kwargs = {name: _no_cache(value) for name, value in kwargs.items()}
        state = args[0] if args else kwargs.pop("hidden_states", None)
        copy = state.clone() if isinstance(state, torch.Tensor) else state  # the block may write over it
        begun.append(((copy, *map(_no_cache, args[1:])), kwargs))

    def after(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        (state, *others), named = begun.pop()
        if isinstance(state, torch.Tensor):
            calls.append((state, tuple(others), named, main_output(output).clone()))

    handles = []
    for block in model.get_submodule(trunk).children():
        handles += [
            block.register_forward_pre_hook(before, with_kwargs=True),
            block.register_forward_hook(after, with_kwargs=True),
        ]
    try:
        call_apart(model, batch.args, batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _no_cache(value: Any) -> Any:
    return None if type(value).__name__.endswith("Cache") else value  # transformers has a dozen classes of them
