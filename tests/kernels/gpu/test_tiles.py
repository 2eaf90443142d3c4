"""The shipped table, compiled for GPUs that are not there: no spills, room in shared memory, tensor cores at work."""

from typing import Any, get_args

import pytest
import torch

from flatwing.kernels.gpu import ahead
from flatwing.kernels.gpu.device import Device
from flatwing.kernels.gpu.geometry import geometry
from flatwing.kernels.gpu.model import factor_choices, pair_choices, pair_weights_choices, weights_choices
from flatwing.kernels.gpu.tiles import Arithmetic, Kind, Tile, arithmetic, table
from flatwing.structure import Pattern

ROWS = 4096
DTYPES = {"half": torch.bfloat16, "single": torch.float32, "tf32": torch.float32}
SMALL = {80: Device(capability=(8, 0), shared=163 * 1024), 90: Device()}


@pytest.mark.parametrize("numbers", get_args(Arithmetic))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_table_is_well_formed(kind: Kind, numbers: Arithmetic) -> None:
    tiles = table(kind, numbers)
    kernels = {kind} if kind.startswith("pair") else {"flat", "deep", "tiny"}
    assert {tile.kernel for tile in tiles} == kernels
    assert len(set(tiles)) == len(tiles)
    for tile in tiles:
        sizes = (tile.rows, tile.outs, tile.ins, tile.depth, tile.middle, tile.warps)
        assert all(size & (size - 1) == 0 < size for size in sizes)
        assert 0 < tile.shared <= ahead.SHARED_LIMIT[90]
        assert tile.oldest in ahead.SHARED_LIMIT


def test_arithmetic_follows_torch() -> None:
    assert arithmetic(torch.float32) == "single"
    torch.set_float32_matmul_precision("high")
    try:
        assert arithmetic(torch.float32) == "tf32"
        assert arithmetic(torch.float16) == "half"
    finally:
        torch.set_float32_matmul_precision("highest")


def tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def launch_of(kind: Kind, patterns: tuple[Pattern, ...], numbers: Arithmetic, tile: Tile, last: bool) -> Any:
    from flatwing.kernels.gpu import launch

    dtype = DTYPES[numbers]
    m, n = patterns[0].shape[0], patterns[-1].shape[1]
    x, y = (tensor(k, ROWS, dtype=dtype).T if last else tensor(ROWS, k, dtype=dtype) for k in (n, m))
    if kind == "pair" and patterns[0].a > patterns[-1].a:  # the gradient of a pair: the same values, transposed
        w = [tensor(p.blocks, p.c, p.b, dtype=dtype).mT for p in patterns]
    else:
        w = [tensor(p.blocks, p.b, p.c, dtype=dtype) for p in patterns]
    if kind == "factor":
        return next(launch.apply_launches(x, w[0], patterns[0].d, y, tile))
    if kind == "weights":
        return launch.weights_launch(x, y, patterns[0].d, tensor(8, *w[0].shape, dtype=torch.float32), tile)
    shape = geometry(*patterns)
    assert shape is not None
    if kind == "pair_weights":
        left, right = (tensor(8, *v.shape, dtype=torch.float32) for v in w)
        return launch.pair_weights_launch(x, y, w[1], w[0], (right, left), shape, tile)
    return next(launch.pair_launches(x, w[1], w[0], y, shape, tile))


M16, M32, M64 = [(Pattern(1, m, m, m), Pattern(m, m, m, 1)) for m in (16, 32, 64)]
CASES: list[tuple[Kind, tuple[Pattern, ...], Arithmetic, bool]] = [
    ("factor", M64[1:], "half", False),
    ("factor", M64[:1], "half", False),
    ("factor", M64[:1], "half", True),
    ("factor", (Pattern(1, 2, 2, 2048),), "half", False),
    ("factor", (Pattern(2048, 2, 2, 1),), "half", False),
    ("factor", (Pattern(3, 67, 53, 5),), "half", False),
    ("factor", M64[1:], "single", False),
    ("factor", M64[:1], "single", False),
    ("factor", M64[1:], "tf32", False),
    ("factor", M64[:1], "tf32", False),
    ("weights", M64[1:], "half", False),
    ("weights", M64[:1], "half", False),
    ("weights", (Pattern(1, 2, 2, 2048),), "half", False),
    ("weights", M64[1:], "single", False),
    ("weights", M64[:1], "single", False),
    ("pair", M32, "half", False),
    ("pair", M64, "half", False),
    ("pair", tuple(p.T for p in M32[::-1]), "half", False),
    ("pair", M32, "half", True),
    ("pair", M32, "single", False),
    ("pair_weights", M16, "half", False),
    ("pair_weights", M32, "half", False),
    ("pair_weights", tuple(p.T for p in M16[::-1]), "half", False),
    ("pair_weights", M16, "single", False),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kind", "patterns", "numbers", "last"), CASES)
def test_the_first_choice_compiles_well(
    compiled: None, capability: int, kind: Kind, patterns: tuple[Pattern, ...], numbers: Arithmetic, last: bool
) -> None:
    choices = {
        "factor": factor_choices,
        "weights": weights_choices,
        "pair": pair_choices,
        "pair_weights": pair_weights_choices,
    }
    tile = choices[kind](*patterns, ROWS, numbers, last, SMALL[capability])[0].tile
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if numbers == "tf32" else "highest")
    try:
        found = ahead.compile_for(capability, launch_of(kind, patterns, numbers, tile, last))
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.stack == 0
    assert found.shared <= tile.shared <= ahead.SHARED_LIMIT[capability]
    if tile.kernel == "tiny" or numbers == "single":
        assert found.tensor_core is None
    else:
        wide = capability == 90 and tile.kernel == "flat" and (kind == "weights" or tile.rows >= 64)
        assert found.tensor_core == ("wgmma" if wide else "mma.sync")
    if kind == "factor" and patterns[0].b % 16 == patterns[0].c % 16 == 0:
        assert found.wide > 0, "memory is read 16 bytes at a time"
