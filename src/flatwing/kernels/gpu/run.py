"""Multiplication by a chain, and its gradients: which launches, with which tiles, in which order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...structure import Pattern
from ..backend import chain_of
from ..wisdom import rounded
from .device import Device, device_of
from .geometry import geometry
from .groups import backward_grouped, grouped, runs
from .launch import apply_launches, pair_launches, pair_weights_launch, weights_launch
from .model import factor_choices, pair_choices, pair_weights_choices, splits_for, weights_choices
from .tiles import Arithmetic, Tile, arithmetic
from .tune import tile_for


def forward(x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool) -> torch.Tensor:
    """x (rows, n) times the transposed product, (rows, m); both are views of columns if `last`."""
    return _through(x, factors, chain_of(factors, depths).patterns, last)


def backward(
    x: torch.Tensor,
    factors: Sequence[torch.Tensor],
    depths: Sequence[int],
    grad: torch.Tensor,
    last: bool,
    need_x: bool = True,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Gradients for x (if needed) and the factors. Nothing was saved: the inputs of the groups are computed again."""
    patterns = chain_of(factors, depths).patterns
    groups = list(runs(backward_grouped(patterns, *_setup(x, last))[1], len(patterns)))
    inputs = [x]  # of the groups, that of the last group first
    for lo, hi in groups[:-1]:
        inputs.append(_through(inputs[-1], factors[lo : hi + 1], patterns[lo : hi + 1], last))
    found = []
    for lo, hi in reversed(groups):
        values, part = factors[lo : hi + 1], patterns[lo : hi + 1]
        if lo == hi:
            found.append(weights_gradient(inputs.pop(), grad, part[0], last))
        else:
            found += pair_weights_gradient(inputs.pop(), grad, values, part, last)
        if need_x or inputs:
            grad = _through(grad, [w.mT for w in values[::-1]], tuple(p.T for p in part[::-1]), last)
    return (grad if need_x else None), found


def input_gradient(
    factors: Sequence[torch.Tensor], depths: Sequence[int], grad: torch.Tensor, last: bool
) -> torch.Tensor:
    """Gradient for x alone: the transposed chain, fused where that is faster."""
    return forward(grad, [w.mT for w in reversed(factors)], list(reversed(depths)), last)


def _through(
    x: torch.Tensor, factors: Sequence[torch.Tensor], patterns: tuple[Pattern, ...], last: bool
) -> torch.Tensor:
    """x through a chain, two factors at a time where that is faster."""
    for lo, hi in runs(grouped(patterns, *_setup(x, last))[1], len(patterns)):
        if lo == hi:
            x = apply(x, factors[lo], patterns[lo], last)
        else:
            x = apply_pair(x, factors[lo], patterns[lo], factors[hi], patterns[hi], last)
    return x


def apply(x: torch.Tensor, w: torch.Tensor, pattern: Pattern, last: bool) -> torch.Tensor:
    """One factor."""
    y = _new(x, pattern.shape[0], last)
    if y.numel():
        rows, numbers, _, device = _setup(x, last)

        def start(tile: Tile) -> None:
            for launch in apply_launches(x, w, pattern.d, y, tile):
                launch.run()

        choices = factor_choices(pattern, rows, numbers, last, device)
        start(tile_for("factor", (pattern,), rows, x, last, choices, start))
    return y


def apply_pair(
    x: torch.Tensor, left: torch.Tensor, outer: Pattern, right: torch.Tensor, inner: Pattern, last: bool
) -> torch.Tensor:
    """Two factors of patterns `outer` and `inner`, the second of them first, in one launch."""
    y = _new(x, outer.shape[0], last)
    if y.numel():
        rows, numbers, _, device = _setup(x, last)
        shape = geometry(outer, inner)
        assert shape is not None

        def start(tile: Tile) -> None:
            for launch in pair_launches(x, right, left, y, shape, tile):
                launch.run()

        choices = pair_choices(outer, inner, rows, numbers, last, device)
        start(tile_for("pair", (outer, inner), rows, x, last, choices, start))
    return y


def weights_gradient(x: torch.Tensor, grad: torch.Tensor, pattern: Pattern, last: bool) -> torch.Tensor:
    """Gradient (a*d, b, c) of the values of one factor from its input and the gradient of its output."""
    shape = (pattern.blocks, pattern.b, pattern.c)
    if not len(x):
        return x.new_zeros(shape)
    rows, numbers, _, device = _setup(x, last)
    parts = {}

    def start(tile: Tile) -> None:
        splits = splits_for((pattern,), rows, tile, device)
        if splits not in parts:
            parts[splits] = x.new_empty(splits, *shape, dtype=torch.float32 if splits > 1 else x.dtype)
        weights_launch(x, grad, pattern.d, parts[splits], tile).run()

    choices = weights_choices(pattern, rows, numbers, last, device)
    tile = tile_for("weights", (pattern,), rows, x, last, choices, start)
    start(tile)
    return _sum(parts[splits_for((pattern,), rows, tile, device)], x.dtype)


def pair_weights_gradient(
    x: torch.Tensor, grad: torch.Tensor, factors: Sequence[torch.Tensor], patterns: tuple[Pattern, ...], last: bool
) -> list[torch.Tensor]:
    """Gradients (a*d, b, c) of the values of two factors in one launch, as a list of left and right.

    From the input of the right one and the gradient of the output of the left one.
    """
    (left, right), (outer, inner) = factors, patterns
    if not len(x):
        return [w.new_zeros(w.shape) for w in factors]
    rows, numbers, _, device = _setup(x, last)
    shape = geometry(outer, inner)
    assert shape is not None
    parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def start(tile: Tile) -> None:
        splits = splits_for((outer, inner), rows, tile, device)
        if splits not in parts:
            kind = torch.float32 if splits > 1 else x.dtype
            parts[splits] = (
                x.new_empty(splits, *right.shape, dtype=kind),
                x.new_empty(splits, *left.shape, dtype=kind),
            )
        pair_weights_launch(x, grad, right, left, parts[splits], shape, tile).run()

    choices = pair_weights_choices(outer, inner, rows, numbers, last, device)
    tile = tile_for("pair_weights", (outer, inner), rows, x, last, choices, start)
    start(tile)
    return [_sum(done, x.dtype) for done in parts[splits_for((outer, inner), rows, tile, device)][::-1]]


def _sum(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)


def _setup(x: torch.Tensor, last: bool) -> tuple[int, Arithmetic, bool, Device]:
    """Rows, rounded up to a power of two so that few different choices are made; arithmetic; layout; device."""
    return rounded(len(x)), arithmetic(x.dtype), last, device_of(x.device.index)


def _new(x: torch.Tensor, m: int, last: bool) -> torch.Tensor:
    """Room for (rows, m): rows in memory, or columns."""
    return x.new_empty(m, len(x)).T if last else x.new_empty(len(x), m)
