"""Makes the table of tiles that flatwing ships: candidates are compiled for sm_80 and sm_90, and must not spill.

    python benchmarks/gpu_tiles.py                        # no GPU needed; about fifteen minutes
    python benchmarks/gpu_tiles.py --kind pair_weights    # these only, the rest of the table stays

Writes src/flatwing/kernels/gpu/tiles.json. What a tile needs hardly depends on the pattern, so each is compiled for a
large pattern in all orientations, and for one whose sizes fit nothing: tiles that only spill there are marked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from flatwing.core import replacing
from flatwing.kernels.gpu import ahead, launch, tiles
from flatwing.kernels.gpu.geometry import geometry
from flatwing.kernels.gpu.tiles import Tile
from flatwing.structure import Pattern

TABLE = Path(tiles.__file__).with_name("tiles.json")
ROWS = 4096
ODD_STACK = 64  # bytes; the assembler itself gives up a few registers where it likes another program better
# rows, outs, ins, depth, middle, warps, stages
FLAT = [
    (rows, outs, ins, 1, 1, warps, 2 if ins == 16 else 3)
    for rows, outs, ins, warps in (
        *((16, 32, 32, 4), (16, 64, 64, 4), (16, 128, 64, 4), (32, 32, 32, 4), (32, 64, 64, 4), (64, 16, 16, 4)),
        *((64, 16, 64, 4), (64, 32, 32, 4), (64, 64, 16, 4), (64, 64, 32, 4), (64, 64, 64, 4), (128, 16, 16, 4)),
        *((128, 16, 64, 4), (128, 32, 32, 4), (128, 64, 16, 8), (128, 64, 32, 4), (128, 64, 64, 4)),
        *((128, 128, 16, 8), (128, 128, 32, 8), (128, 128, 64, 8), (32, 32, 16, 4), (32, 64, 16, 4), (64, 32, 16, 4)),
        *((64, 64, 16, 8), (64, 64, 32, 8), (128, 32, 16, 8), (128, 32, 32, 8), (128, 64, 32, 8)),
    )
]
DEEP = [
    (rows, outs, ins, depth, 1, warps, 2)
    for rows, outs, ins, depth, warps in (
        *((16, 16, 16, 16, 4), (32, 16, 16, 16, 8), (16, 32, 32, 16, 8), (32, 32, 32, 16, 8), (32, 16, 32, 16, 8)),
        *((16, 32, 16, 8, 4), (32, 16, 16, 8, 4), (32, 32, 16, 8, 8), (32, 32, 32, 8, 8), (64, 32, 16, 8, 8)),
        *((64, 32, 32, 8, 8), (32, 32, 16, 4, 4), (32, 32, 32, 4, 4), (64, 32, 32, 4, 8), (64, 32, 32, 2, 4)),
        *((64, 32, 16, 2, 4), (64, 64, 32, 2, 8)),
    )
]
TINY = [
    (rows, outs, 1, depth, 1, 4, 1)
    for rows, outs, depth in ((8, 2, 64), (32, 2, 64), (8, 4, 64), (32, 4, 32), (16, 8, 32), (1, 4, 128), (64, 4, 16))
]
FLAT_WEIGHTS = [
    (rows, outs, ins, 1, 1, 8 if outs * ins > 8192 else 4, 3)
    for rows, outs, ins in (
        *((32, 16, 16), (64, 16, 16), (64, 16, 64), (64, 64, 16), (32, 32, 32), (64, 32, 32), (32, 64, 64)),
        *((64, 64, 64), (64, 128, 64), (64, 64, 128), (32, 128, 128)),
    )
]
DEEP_WEIGHTS = [
    (rows, outs, ins, depth, 1, warps, 2)
    for rows, outs, ins, depth, warps in (
        *((16, 16, 16, 16, 4), (32, 16, 16, 16, 4), (16, 32, 32, 16, 8), (32, 32, 32, 16, 8), (16, 16, 16, 8, 4)),
        *((32, 32, 32, 8, 8), (16, 32, 32, 8, 8), (32, 32, 32, 4, 4), (16, 32, 32, 4, 4), (32, 32, 32, 2, 4)),
    )
]
TINY_WEIGHTS = [
    (rows, outs, 1, depth, 1, 4, 1)
    for rows, outs, depth in ((16, 2, 64), (32, 2, 16), (64, 4, 8), (16, 4, 32), (8, 8, 32))
]
PAIR = [
    (rows, outs, ins, groups, middle, warps, 2)
    for middle, rows, outs, ins, groups, warps in (
        *((16, 16, 16, 16, 16, 8), (16, 32, 32, 32, 16, 8), (16, 64, 32, 32, 16, 8), (16, 64, 32, 16, 16, 16)),
        *((16, 32, 16, 16, 32, 8), (16, 32, 32, 32, 32, 16), (32, 16, 16, 16, 16, 8), (32, 32, 16, 16, 16, 8)),
        *((32, 64, 32, 16, 16, 8), (32, 32, 32, 32, 16, 16), (32, 32, 32, 16, 16, 16), (32, 16, 16, 16, 32, 8)),
        *((32, 32, 16, 16, 32, 16), (64, 16, 16, 16, 16, 8), (64, 16, 16, 16, 16, 16), (64, 16, 32, 16, 16, 16)),
        *((64, 32, 32, 16, 16, 16), (128, 16, 16, 16, 16, 8), (128, 16, 16, 16, 16, 16)),
    )
]
PAIR_WEIGHTS = [
    (rows, outs, ins, groups, middle, warps, 2)
    for middle, rows, outs, ins, groups, warps in (
        *((16, 16, 16, 16, 16, 8), (16, 32, 16, 16, 16, 8), (16, 16, 32, 16, 16, 8), (16, 16, 16, 32, 16, 8)),
        *((16, 16, 16, 16, 8, 8), (16, 16, 32, 32, 8, 8), (16, 32, 16, 32, 8, 8), (16, 32, 32, 16, 8, 8)),
        *((16, 64, 16, 16, 8, 8), (32, 16, 16, 16, 8, 8), (32, 16, 32, 16, 8, 8), (32, 16, 16, 32, 8, 8)),
        *((64, 16, 16, 16, 8, 8),),
    )
]
CANDIDATES = {
    "factor": {"flat": FLAT, "deep": DEEP, "tiny": TINY},
    "weights": {"flat": FLAT_WEIGHTS, "deep": DEEP_WEIGHTS, "tiny": TINY_WEIGHTS},
    "pair": {"pair": PAIR},
    "pair_weights": {"pair_weights": PAIR_WEIGHTS},
}


def launches(kind: str, tile: Tile, dtype: torch.dtype, even: bool) -> Iterator[launch.Launch]:
    """The tile on a pattern whose sizes are multiples of 16, or on one that nothing divides, in each orientation."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    def rows(n: int, last: bool) -> torch.Tensor:
        return tensor(n, ROWS if even else 4099).T if last else tensor(ROWS, n)

    if kind == "pair_weights":
        left, right = neighbours(tile.middle, even)
        for one, other, last in ((left, right, False), (right.T, left.T, False), (left, right, True)):
            shape = geometry(one, other)
            assert shape is not None
            w, v = (tensor(p.blocks, p.b, p.c) for p in (one, other))
            parts = [torch.empty(8, *t.shape, device="meta") for t in (v, w)]
            x, y = rows(other.shape[1], last), rows(one.shape[0], last)
            yield launch.pair_weights_launch(x, y, v, w, (parts[0], parts[1]), shape, tile)
        return
    if kind == "pair":
        left, right = neighbours(tile.middle, even)
        shape, back = geometry(left, right), geometry(right.T, left.T)
        assert shape is not None
        assert back is not None
        w, v = tensor(left.blocks, left.b, left.c), tensor(right.blocks, right.b, right.c)
        x, y = rows(right.shape[1], False), rows(left.shape[0], False)
        yield from launch.pair_launches(x, v, w, y, shape, tile)
        yield from launch.pair_launches(y, w.mT, v.mT, x, back, tile)
        return
    depth = 1 if tile.kernel == "flat" else 64 if even else 3
    pattern = Pattern(4, 256, 256, depth) if even else Pattern(3, 67, 53, depth)
    for last in (False, True) if tile.kernel != "deep" else (False,):
        w, x, y = (
            tensor(pattern.blocks, pattern.b, pattern.c),
            rows(pattern.shape[1], last),
            rows(pattern.shape[0], last),
        )
        if kind == "weights":
            yield launch.weights_launch(x, y, depth, torch.empty(8, *w.shape, device="meta"), tile)
        else:
            yield from launch.apply_launches(x, w, depth, y, tile)
            if not last:
                yield from launch.apply_launches(y, w.mT, depth, x, tile)


def neighbours(middle: int, even: bool) -> tuple[Pattern, Pattern]:
    """Two factors that fill a tile of that middle, or with sizes that nothing divides."""
    if even:
        return Pattern(1, 64, middle, 64), Pattern(middle, 64, 64, 1)
    return Pattern(1, 37, middle - 1, 21), Pattern(middle - 1, 21, 35, 1)


def checked(numbers: str, kind: str, tile: Tile) -> list[Any] | None:
    """The entry of the table, or None if the tile spills, or is too large, on the newest GPU."""
    torch.set_float32_matmul_precision("high" if numbers == "tf32" else "highest")
    dtype = torch.bfloat16 if numbers == "half" else torch.float32
    oldest, only_even, shared = 90, False, 0
    for capability in (90, 80):
        fits = [ahead.compile_for(capability, one) for one in launches(kind, tile, dtype, even=True)]
        if any(found.stack or found.shared > ahead.SHARED_LIMIT[capability] for found in fits):
            break
        odd = [ahead.compile_for(capability, one) for one in launches(kind, tile, dtype, even=False)]
        only_even = only_even or any(found.stack > ODD_STACK for found in odd)
        oldest, shared = capability, max(shared, *(found.shared for found in fits + odd))
    return [*dataclasses.astuple(tile)[:-3], only_even, oldest, shared] if shared else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes that compile (default: 2)")
    parser.add_argument("--kind", choices=CANDIDATES, help="tiles of this kind only; the others stay as they are")
    wanted = parser.parse_args()
    tasks = [
        (numbers, kind, Tile(kernel, *sizes))
        for numbers in ("half", "single", "tf32")
        for kind, kernels in CANDIDATES.items()
        if wanted.kind in (None, kind)
        for kernel, all_sizes in kernels.items()
        for sizes in all_sizes
    ]
    table: dict[str, dict[str, list[Any]]] = {}
    if wanted.kind:
        table = json.loads(TABLE.read_text(encoding="utf-8"))
        for kinds in table.values():
            kinds.pop(wanted.kind, None)
    with ProcessPoolExecutor(wanted.workers) as pool:
        for (numbers, kind, tile), entry in zip(tasks, pool.map(checked, *zip(*tasks, strict=True)), strict=True):
            entries = table.setdefault(numbers, {}).setdefault(kind, [])
            if entry is None:
                print("left out:", numbers, kind, tile, flush=True)
            else:
                entries.append(entry)
    text = json.dumps(table, indent=1)
    text = re.sub(r"\[\s+(\"\w+\",[^]]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)
    with replacing(TABLE) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print({numbers: {kind: len(entries) for kind, entries in kinds.items()} for numbers, kinds in table.items()})


if __name__ == "__main__":
    main()
