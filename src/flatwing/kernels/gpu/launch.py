"""Launches: tensors of any strides turned into what a kernel is called with; no choice is made here.

Vectors are always rows here: x (rows, n) and y (rows, m), where columns are meant, transposed views. A factor's values
(a*d, b, c) are passed as `w`; for the transposed factor pass `w.mT`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from . import factor, pair, pair_weights, weights
from .geometry import Geometry
from .language import interpreted
from .model import cuts
from .tiles import Tile, arithmetic, pieces

LARGEST_GRID = 2**31 - 1


class Launch(NamedTuple):
    """One call of a kernel."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        """Start it on the device of its first argument, on the current stream."""
        device = self.args[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self.kernel[(self.programs,)](*self.args, **self.options)
        else:
            self.kernel[(self.programs,)](*self.args, **self.options)


def apply_launches(x: torch.Tensor, w: torch.Tensor, d: int, y: torch.Tensor, tile: Tile) -> Iterator[Launch]:
    """y (rows, m) <- one factor applied to x (rows, n); all of any strides."""
    blocks, b, c = w.shape
    work = pieces(b, tile.outs) * _block_tiles(tile, blocks, d)
    kernel = getattr(factor, tile.kernel)
    options = _options(kernel, x.dtype, tile, BM=tile.rows, BN=tile.outs, BC=tile.ins, DK=tile.depth)
    for xs, ys in _parts(x, y, tile.rows, work):
        args = (xs, w, ys, xs.shape[0], blocks, b, c, d, *xs.stride(), *w.stride(), *ys.stride())
        yield Launch(kernel, work * pieces(xs.shape[0], tile.rows), args, options)


def pair_launches(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, y: torch.Tensor, shape: Geometry, tile: Tile
) -> Iterator[Launch]:
    """y (rows, m) <- two factors applied to x (rows, n), `first` first; all of any strides."""
    work = pieces(shape.groups, tile.depth) * shape.outer
    sizes = {"BM": tile.rows, "BU": tile.middle, "BG": tile.depth, "BP": tile.ins, "BS": tile.outs}
    options = _options(pair.pair, x.dtype, tile, **sizes)
    for xs, ys in _parts(x, y, tile.rows, work):
        args = (
            *(xs, first, second, ys, xs.shape[0]),
            *(shape.depth, shape.outer, shape.inputs, shape.middle, shape.groups, shape.outputs),
            *(*shape.block, *shape.t),
            *_steps(xs, shape.x),
            *_strides(first, shape.first),
            *_strides(second, shape.second),
            *_steps(ys, shape.y),
        )
        yield Launch(pair.pair, work * pieces(xs.shape[0], tile.rows), args, options)


def weights_launch(x: torch.Tensor, grad: torch.Tensor, d: int, parts: torch.Tensor, tile: Tile) -> Launch:
    """parts (splits, a*d, b, c) <- gradients of the values of a factor, one part per run of rows.

    Parts behind the last row are filled with zeros.
    """
    splits, blocks, b, c = parts.shape
    rows = x.shape[0]
    per_split = pieces(pieces(rows, splits), tile.rows) * tile.rows
    columns = c if tile.kernel == "tiny" else pieces(c, tile.ins)
    work = pieces(b, tile.outs) * columns * _block_tiles(tile, blocks, d)
    kernel = getattr(weights, tile.kernel)
    options = _options(kernel, x.dtype, tile, BM=tile.rows, BN=tile.outs, BC=tile.ins, DK=tile.depth)
    args = (x, grad, parts, rows, per_split, blocks, b, c, d, *x.stride(), *grad.stride(), *parts.stride())
    return Launch(kernel, work * splits, args, options)


def pair_weights_launch(
    x: torch.Tensor,
    grad: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    parts: tuple[torch.Tensor, torch.Tensor],
    shape: Geometry,
    tile: Tile,
) -> Launch:
    """parts (splits, a*d, b, c), of `first` and of `second` <- gradients of the values of a pair, one per run of rows.

    x (rows, n) is what `first` was applied to, grad (rows, m) the gradient of what `second` gave; any strides. Parts
    behind the last row are filled with zeros.
    """
    splits, rows = len(parts[0]), x.shape[0]
    per_split = pieces(pieces(rows, splits), tile.rows) * tile.rows
    sizes = {"BM": tile.rows, "BU": tile.middle, "BG": tile.depth, "BP": tile.ins, "BS": tile.outs}
    kernel = pair_weights.pair_weights
    args = (
        *(x, grad, first, second, *parts, rows, per_split),
        *(shape.depth, shape.outer, shape.inputs, shape.middle, shape.groups, shape.outputs),
        *(*shape.block, *shape.t),
        *_steps(x, shape.x),
        *_steps(grad, shape.y),
        *_strides(first, shape.first),
        *_strides(second, shape.second),
        *(parts[0].stride(0), *_strides(parts[0][0], shape.first)),
        *(parts[1].stride(0), *_strides(parts[1][0], shape.second)),
    )
    programs = pieces(shape.groups, tile.depth) * cuts(shape, tile) * shape.outer * splits
    return Launch(kernel, programs, args, _options(kernel, x.dtype, tile, **sizes))


def _block_tiles(tile: Tile, blocks: int, d: int) -> int:
    if tile.kernel == "deep":
        return pieces(d, tile.depth) * (blocks // d)
    return pieces(blocks, tile.depth) if tile.kernel == "tiny" else blocks


def _options(kernel: Any, dtype: torch.dtype, tile: Tile, **sizes: int) -> dict[str, Any]:
    precision = "tf32" if arithmetic(dtype) == "tf32" else "ieee"
    # fusing a product and a sum is said explicitly: what Triton does by default changes between its versions
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return {**sizes, "PRECISION": precision, "UP": interpreted(kernel), **options}


def _steps(x: torch.Tensor, features: Sequence[int]) -> list[int]:
    return [x.stride(0), *(step * x.stride(1) for step in features)]


def _strides(w: torch.Tensor, steps: Sequence[tuple[int, int, int]]) -> list[int]:
    block, row, column = w.stride()
    return [i * block + j * row + k * column for i, j, k in steps]


def _parts(x: torch.Tensor, y: torch.Tensor, height: int, work: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """x and y, cut along the rows if one grid would have too many programs (`work` for every `height` rows)."""
    most = max(1, LARGEST_GRID // work) * height
    return list(zip(x.split(most), y.split(most), strict=True)) if x.shape[0] > most else [(x, y)]
