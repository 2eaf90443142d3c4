"""Gradients of a factor's values in the interpreter: splits of the rows, masks, layouts, dtypes."""

from pathlib import Path

import pytest
import torch

from flatwing.kernels.gpu.tiles import Tile
from flatwing.structure import Pattern
from kernels.gpu.kit import TOLERANCE, Modules, error, gradients, values, vectors

TILES = {
    "flat": Tile("flat", 16, 16, 16),
    "deep": Tile("deep", 16, 16, 16, 4),
    "tiny": Tile("tiny", 16, 4, 1, 8),
}


def parts(room: Modules, x: torch.Tensor, grad: torch.Tensor, pattern: Pattern, tile: Tile, n: int) -> torch.Tensor:
    found = torch.full((n, pattern.blocks, pattern.b, pattern.c), torch.nan)
    room.launch.weights_launch(x, grad, pattern.d, found, tile).run()
    return found


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pattern", [Pattern(2, 5, 7, 3), Pattern(3, 2, 2, 8), Pattern(2, 17, 3, 1)], ids=str)
@pytest.mark.parametrize("kernel", TILES)
def test_equals_the_definition(interpreted: Modules, kernel: str, pattern: Pattern, last: bool) -> None:
    x, grad = (vectors(19, n, torch.float32, last) for n in pattern.shape[::-1])
    wanted = gradients(x, [values(pattern, x.dtype)], [pattern.d], grad)[1]
    assert error(parts(interpreted, x, grad, pattern, TILES[kernel], 1)[0], wanted) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", TILES)
def test_sixteen_bits(interpreted: Modules, kernel: str, dtype: torch.dtype) -> None:
    pattern = Pattern(2, 5, 7, 3)
    x, grad = (vectors(19, n, dtype, False) for n in pattern.shape[::-1])
    wanted = gradients(x, [values(pattern, dtype)], [pattern.d], grad)[1]
    # products of 16-bit numbers are exact in float32, and so are the parts
    assert error(parts(interpreted, x, grad, pattern, TILES[kernel], 1)[0], wanted) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("kernel", TILES)
def test_each_part_has_its_rows(interpreted: Modules, kernel: str) -> None:
    pattern, rows = Pattern(2, 3, 4, 2), 70  # four splits of 32 rows: 32, 32, 6, none
    x, grad = (vectors(rows, n, torch.float32, False) for n in pattern.shape[::-1])
    found = parts(interpreted, x, grad, pattern, TILES[kernel], 4)
    for s, lo in enumerate((0, 32, 64)):
        wanted = gradients(x[lo : lo + 32], [values(pattern, x.dtype)], [pattern.d], grad[lo : lo + 32])[1]
        assert error(found[s], wanted) < TOLERANCE[torch.float32]
    assert (found[3] == 0).all()


@pytest.mark.parametrize("kernel", TILES)
def test_offsets_beyond_32_bits(interpreted: Modules, tmp_path: Path, kernel: str) -> None:
    # a sparse file: only what is touched takes room
    step, pattern = 2**30, Pattern(1, 4, 4, 1)
    x = torch.from_file(str(tmp_path / "x"), shared=True, size=3 * step + 16, dtype=torch.float16)
    x = x.as_strided((4, 4), (step, 1))
    x.copy_(torch.randn(4, 4))
    grad = torch.randn(4, 4).half()
    wanted = gradients(x, [values(pattern, x.dtype)], [1], grad)[1]
    assert error(parts(interpreted, x, grad, pattern, TILES[kernel], 1)[0], wanted) < TOLERANCE[torch.float32]
