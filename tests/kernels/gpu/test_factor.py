"""Single factors in the interpreter: every way to cut, masks, layouts, dtypes, offsets beyond 32 bits."""

from pathlib import Path

import pytest
import torch

from flatwing.kernels.gpu.tiles import Tile
from flatwing.structure import Pattern
from kernels.gpu.kit import TOLERANCE, Modules, error, only_inside, product, unwritten, values, vectors

TILES = {
    "flat": Tile("flat", 16, 16, 16),
    "deep": Tile("deep", 16, 16, 16, 4),
    "tiny": Tile("tiny", 16, 4, 1, 8),
}
PATTERNS = [Pattern(1, 16, 32, 1), Pattern(2, 5, 7, 3), Pattern(3, 2, 2, 8), Pattern(2, 19, 3, 1), Pattern(1, 1, 1, 5)]


def applied(room: Modules, x: torch.Tensor, w: torch.Tensor, pattern: Pattern, tile: Tile, last: bool) -> torch.Tensor:
    y = unwritten(len(x), pattern.shape[0], x.dtype, last)
    for launch in room.launch.apply_launches(x, w, pattern.d, y, tile):
        launch.run()
    assert only_inside(y)
    return y


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kernel", TILES)
def test_equals_the_definition(interpreted: Modules, kernel: str, pattern: Pattern, last: bool) -> None:
    x, w = vectors(19, pattern.shape[1], torch.float32, last), values(pattern, torch.float32)
    y = applied(interpreted, x, w, pattern, TILES[kernel], last)
    assert error(y, product(x, [w], [pattern.d])) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", TILES)
def test_sixteen_bits(interpreted: Modules, kernel: str, dtype: torch.dtype) -> None:
    pattern = Pattern(2, 5, 17, 3)
    x, w = vectors(19, pattern.shape[1], dtype, False), values(pattern, dtype)
    y = applied(interpreted, x, w, pattern, TILES[kernel], False)
    assert y.dtype == dtype
    assert error(y, product(x, [w], [pattern.d])) < TOLERANCE[dtype]


@pytest.mark.parametrize("kernel", TILES)
def test_sums_are_in_float32(interpreted: Modules, kernel: str) -> None:
    # one and many small numbers: in float16 the sum would stay 1
    pattern = Pattern(1, 1, 64, 1)
    x = torch.full((1, 64), 2.0**-12, dtype=torch.float16)
    x[0, 0] = 1.0
    y = applied(interpreted, x, torch.ones(1, 1, 64, dtype=torch.float16), pattern, TILES[kernel], False)
    assert y.item() == pytest.approx(1 + 63 / 4096, abs=1e-3)


@pytest.mark.parametrize("kernel", TILES)
def test_transposed_blocks_are_strides(interpreted: Modules, kernel: str) -> None:
    pattern = Pattern(2, 5, 7, 3)
    grad, w = vectors(19, pattern.shape[0], torch.float32, False), values(pattern, torch.float32)
    y = applied(interpreted, grad, w.mT, pattern.T, TILES[kernel], False)
    assert error(y, product(grad, [w.mT.contiguous()], [pattern.d])) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("kernel", TILES)
def test_any_strides(interpreted: Modules, kernel: str) -> None:
    pattern = Pattern(2, 5, 7, 3)
    x = torch.randn(21, 2 * pattern.shape[1] + 1)[::2, 1::2]
    w = torch.randn(pattern.c, 2 * pattern.blocks, pattern.b)[:, ::2].permute(1, 2, 0)
    whole = torch.full((11, 3 * pattern.shape[0]), 7.0)
    y = whole[:, 2::3]
    for launch in interpreted.launch.apply_launches(x, w, pattern.d, y, TILES[kernel]):
        launch.run()
    assert error(y, product(x, [w], [pattern.d])) < TOLERANCE[torch.float32]
    assert (whole[:, 0::3] == 7).all()
    assert (whole[:, 1::3] == 7).all()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kernel", TILES)
def test_offsets_beyond_32_bits(interpreted: Modules, tmp_path: Path, kernel: str, last: bool) -> None:
    # a sparse file: only what is touched takes room
    step = 2**30
    x = torch.from_file(str(tmp_path / "x"), shared=True, size=3 * step + 16, dtype=torch.float16)
    pattern = Pattern(1, 4, 4, 1)
    x = x.as_strided((4, 4), (1, step) if last else (step, 1))
    x.copy_(torch.randn(4, 4))
    w = values(pattern, torch.float16)
    y = applied(interpreted, x, w, pattern, TILES[kernel], last)
    assert error(y, product(x, [w], [1])) < TOLERANCE[torch.float16]


def test_a_grid_too_large_is_cut(interpreted: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreted.launch, "LARGEST_GRID", 5)
    pattern = Pattern(2, 3, 4, 1)
    x, w = vectors(50, 8, torch.float32, False), values(pattern, torch.float32)
    y = unwritten(50, 6, torch.float32, False)
    launches = list(interpreted.launch.apply_launches(x, w, 1, y, TILES["flat"]))
    assert [launch.programs for launch in launches] == [4, 4]
    for launch in launches:
        launch.run()
    assert error(y, product(x, [w], [1])) < TOLERANCE[torch.float32]
