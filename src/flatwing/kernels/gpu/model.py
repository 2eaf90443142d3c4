"""How long a launch should take with a given tile: bytes through cache and memory, arithmetic, waves of programs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from ...structure import Pattern
from .device import Device
from .geometry import Geometry, geometry
from .tiles import Arithmetic, Kind, Tile, pieces, table

SECTOR = 32  # bytes that memory moves at least
STEP = 3e-7  # seconds until a step of a loop has its data, if nothing hides it


class Choice(NamedTuple):
    """A tile and the seconds that a launch with it should take."""

    seconds: float
    tile: Tile


class Cost(NamedTuple):
    """What one program does."""

    programs: int
    bytes: float
    """Through the last cache, whole sectors."""
    operations: float
    """On the padded tile."""
    steps: int
    """Of its loop."""


@lru_cache(maxsize=4096)
def factor_choices(pattern: Pattern, rows: int, numbers: Arithmetic, last: bool, device: Device) -> tuple[Choice, ...]:
    """All tiles for y = K x with one factor, best first. `last`: neighbours in memory are vectors, not features."""
    a, b, c, d = pattern
    size = 2 if numbers == "half" else 4
    least = size * (rows * (pattern.shape[0] + pattern.shape[1]) + pattern.nnz)
    found = []
    for tile in table("factor", numbers):
        if not _fits(tile, b, c, d, pattern.blocks, last, device):
            continue
        blocks = tile.depth if tile.kernel != "flat" else 1
        waste = _waste(tile, d, c, size, last)
        deep_blocks = pieces(d, tile.depth) * a if tile.kernel == "deep" else pieces(pattern.blocks, blocks)
        cost = Cost(
            programs=pieces(rows, tile.rows) * pieces(b, tile.outs) * deep_blocks,
            bytes=size * blocks * (tile.rows * (c + tile.outs) * waste + c * tile.outs),
            operations=2 * tile.rows * tile.outs * blocks * pieces(c, tile.ins) * tile.ins,
            steps=pieces(c, tile.ins),
        )
        found.append(Choice(_seconds(cost, least, tile, numbers, device), tile))
    return tuple(sorted(found, key=lambda choice: choice.seconds))


@lru_cache(maxsize=4096)
def weights_choices(pattern: Pattern, rows: int, numbers: Arithmetic, last: bool, device: Device) -> tuple[Choice, ...]:
    """All tiles for the gradient of one factor's values, best first."""
    _, b, c, d = pattern
    size = 2 if numbers == "half" else 4
    found = []
    for tile in table("weights", numbers):
        if not _fits(tile, b, c, d, pattern.blocks, last, device):
            continue
        splits = splits_for((pattern,), rows, tile, device)
        per_split = pieces(rows, splits)
        blocks = tile.depth if tile.kernel != "flat" else 1
        waste = _waste(tile, d, c, size, last)
        cost = Cost(
            programs=_weight_programs((pattern,), tile) * splits,
            bytes=size * blocks * per_split * (tile.outs + tile.ins) * waste + 4 * blocks * tile.outs * tile.ins,
            operations=2 * per_split * tile.outs * tile.ins * blocks,
            steps=pieces(per_split, tile.rows),
        )
        least = size * rows * (pattern.shape[0] + pattern.shape[1]) + 8 * splits * pattern.nnz
        adding = device.launch if splits > 1 else 0.0
        found.append(Choice(_seconds(cost, least, tile, numbers, device) + adding, tile))
    return tuple(sorted(found, key=lambda choice: choice.seconds))


def splits_for(patterns: tuple[Pattern, ...], rows: int, tile: Tile, device: Device) -> int:
    """Into how many runs the rows are cut for the gradient of one factor's values, or of a pair's.

    Programs for all processors, but parts that cost little to write and to add.
    """
    wanted = pieces(4 * device.processors, _weight_programs(patterns, tile))
    features, nnz = patterns[0].shape[0] + patterns[-1].shape[1], sum(p.nnz for p in patterns)
    return max(1, min(wanted, rows * features // (8 * nnz), rows // (2 * tile.rows), 64))


@lru_cache(maxsize=4096)
def pair_choices(
    left: Pattern, right: Pattern, rows: int, numbers: Arithmetic, last: bool, device: Device
) -> tuple[Choice, ...]:
    """All tiles for two factors in one launch, best first; none if the two cannot be fused, or not well."""
    shape = geometry(left, right)
    if shape is None:
        return ()
    size = 2 if numbers == "half" else 4
    least = size * (rows * (left.shape[0] + right.shape[1]) + left.nnz + right.nnz)
    found = []
    for tile in _pair_tiles("pair", shape, numbers, last, device):
        cost = Cost(
            programs=pieces(rows, tile.rows) * pieces(shape.groups, tile.depth) * shape.outer,
            bytes=size * _pair_elements(shape, tile, size, last),
            operations=2
            * (tile.rows * tile.depth * tile.middle)
            * (pieces(shape.inputs, tile.ins) * tile.ins + pieces(shape.outputs, tile.outs) * tile.outs),
            steps=pieces(shape.inputs, tile.ins) + pieces(shape.outputs, tile.outs),
        )
        found.append(Choice(_seconds(cost, least, tile, numbers, device), tile))
    return tuple(sorted(found, key=lambda choice: choice.seconds))


@lru_cache(maxsize=4096)
def pair_weights_choices(
    left: Pattern, right: Pattern, rows: int, numbers: Arithmetic, last: bool, device: Device
) -> tuple[Choice, ...]:
    """All tiles for the gradients of the values of a pair in one launch, best first; none as for `pair_choices`."""
    shape = geometry(left, right)
    if shape is None:
        return ()
    size, nnz = 2 if numbers == "half" else 4, left.nnz + right.nnz
    found = []
    for tile in _pair_tiles("pair_weights", shape, numbers, last, device):
        splits = splits_for((left, right), rows, tile, device)
        per_split = pieces(rows, splits)
        times = pieces(per_split, tile.rows)
        groups = min(tile.depth, shape.groups)
        run = 16 if last else max(groups if shape.y[2] == 1 else 0, tile.outs if shape.y[3] == 1 else 0, 1)
        per_row = shape.middle * (shape.inputs + tile.ins)
        per_row += groups * (shape.outputs + tile.outs) * max(1.0, SECTOR / (size * run))
        both, inner = shape.inputs + shape.outputs, pieces(shape.inputs, tile.ins) + pieces(shape.outputs, tile.outs)
        tall = pieces(shape.inputs, tile.ins) * tile.ins + pieces(shape.outputs, tile.outs) * tile.outs
        cost = Cost(
            programs=_weight_programs((left, right), tile) * splits,
            bytes=size * (per_split * per_row + times * shape.middle * groups * both)
            + 4 * shape.middle * groups * (tile.ins + tile.outs),
            operations=2 * times * (tile.rows * tile.depth * tile.middle) * (tall + tile.ins + tile.outs),
            steps=times * (inner + 2),
        )
        least = size * (rows * (left.shape[0] + right.shape[1]) + nnz) + 8 * splits * nnz
        adding = 2 * device.launch if splits > 1 else 0.0
        found.append(Choice(_seconds(cost, least, tile, numbers, device) + adding, tile))
    return tuple(sorted(found, key=lambda choice: choice.seconds))


def cuts(shape: Geometry, tile: Tile) -> int:
    """Into how many pieces the sums of a tile of `pair_weights` are cut."""
    return max(pieces(shape.inputs, tile.ins), pieces(shape.outputs, tile.outs))


def _pair_tiles(kind: Kind, shape: Geometry, numbers: Arithmetic, last: bool, device: Device) -> Iterator[Tile]:
    if shape.depth > 1 and not last:
        return  # features that lie `depth` apart would be gathered one by one
    odd = any(n % 16 for n in (shape.inputs, shape.middle, shape.groups, shape.outputs))
    for tile in table(kind, numbers):
        # the sums of `pair_weights` take all registers: even in columns, odd sizes leave none for the addresses
        spills = kind == "pair_weights" and tile.even and odd
        if _suits(tile, odd, last, device) and not spills and tile.middle / 2 < max(shape.middle, 9) <= tile.middle:
            yield tile


def _pair_elements(shape: Geometry, tile: Tile, size: int, last: bool) -> float:
    groups = min(tile.depth, shape.groups)
    written = min(
        tile.rows if last else max(groups if shape.y[2] == 1 else 0, shape.outputs if shape.y[3] == 1 else 0), 32
    )
    read = tile.rows * shape.middle * shape.inputs
    weights = shape.middle * groups * (shape.inputs + shape.outputs)
    return read + weights + tile.rows * groups * shape.outputs * max(1.0, SECTOR / (size * max(1, written)))


def _fits(tile: Tile, b: int, c: int, d: int, blocks: int, last: bool, device: Device) -> bool:
    if not _suits(tile, any(n % 16 for n in (b, c, *((d,) if d > 1 else ()))), last, device):
        return False
    if tile.kernel == "deep":
        return d > 1 and not last and tile.depth < 2 * d
    if tile.kernel == "tiny":  # without tensor cores: only where these would multiply padding
        return min(b, c) < 16 and tile.outs < 2 * b
    return True


def _suits(tile: Tile, odd: bool, last: bool, device: Device) -> bool:
    """Whether it fits the device without spilling; devices before sm_80 take what sm_80 takes."""
    major, minor = max(device.capability, (8, 0))
    return tile.shared <= device.shared and tile.oldest <= 10 * major + minor and not (tile.even and odd and not last)


def _waste(tile: Tile, d: int, c: int, size: int, last: bool) -> float:
    """Bytes moved per byte used, as memory moves whole sectors."""
    if last:
        run = tile.rows
    elif tile.kernel == "deep":
        run = min(d, tile.depth)
    elif tile.kernel == "tiny":
        run = min(d, tile.depth) if d > 1 else tile.depth
    else:
        run = c if d == 1 else 1
    return max(1.0, SECTOR / (size * run))


def _weight_programs(patterns: tuple[Pattern, ...], tile: Tile) -> int:
    """Programs for one run of rows."""
    if tile.kernel == "pair_weights":
        shape = geometry(*patterns)
        assert shape is not None
        return pieces(shape.groups, tile.depth) * cuts(shape, tile) * shape.outer
    a, b, c, d = patterns[0]
    if tile.kernel == "tiny":
        return pieces(b, tile.outs) * c * pieces(a * d, tile.depth)
    blocks = pieces(d, tile.depth) * a if tile.kernel == "deep" else a * d
    return pieces(b, tile.outs) * pieces(c, tile.ins) * blocks


def _seconds(cost: Cost, least: int, tile: Tile, numbers: Arithmetic, device: Device) -> float:
    if tile.kernel == "tiny" or numbers == "single":
        rate = device.single * (0.25 if tile.kernel == "tiny" else 0.6)
    else:
        rate = device.half / (1 if numbers == "half" else 2)
        # the wide instructions of Hopper multiply 2-D tiles of at least 64 rows only
        if device.capability >= (9, 0) and (tile.kernel != "flat" or tile.rows < 64):
            rate *= 0.5
    at_once = min(8, max(1, device.shared // max(1, tile.shared)), max(1, 64 // tile.warps))
    if tile.kernel == "pair_weights":  # its sums take all registers
        at_once = 1
    waves = pieces(cost.programs, device.processors)
    busy = max(cost.bytes * device.processors / device.cache, cost.operations * device.processors / rate)
    waiting = STEP * (cost.steps + 2) / min(at_once, waves)
    return device.launch + max(least / device.memory, waves * (busy + waiting))
