"""Gradients of the values of a pair in one launch, in the interpreter: orientations, cuts, splits, layouts, dtypes."""

from pathlib import Path

import pytest
import torch

from flatwing.kernels.gpu.geometry import geometry
from flatwing.kernels.gpu.tiles import Tile
from flatwing.structure import Chain
from kernels.gpu.kit import TOLERANCE, Modules, error, gradients, values, vectors
from kernels.gpu.test_pair import PAIRS

TILE = Tile("pair_weights", 16, 16, 16, 4, 16)


def parts(
    room: Modules, x: torch.Tensor, w: list[torch.Tensor], grad: torch.Tensor, chain: Chain, n: int
) -> list[torch.Tensor]:
    """n parts of the gradients of the left factor and of the right one."""
    left, right = (torch.full((n, *v.shape), torch.nan) for v in w)
    shape = geometry(*chain)
    room.launch.pair_weights_launch(x, grad, w[1], w[0], (right, left), shape, TILE).run()
    return [left, right]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chain", [*PAIRS, *(pair.T for pair in PAIRS[:3])], ids=str)
def test_equals_the_definition(interpreted: Modules, chain: Chain, last: bool) -> None:
    x, grad = (vectors(19, n, torch.float32, last) for n in chain.shape[::-1])
    w = [values(p, torch.float32) for p in chain]
    wanted = gradients(x, w, [p.d for p in chain], grad)[1:]
    for found, right in zip(parts(interpreted, x, w, grad, chain, 1), wanted, strict=True):
        assert error(found[0], right) < TOLERANCE[torch.float32]


def test_each_cut_has_its_columns(interpreted: Modules) -> None:
    chain = Chain.parse("(1,35,2,3)(2,3,20,1)")  # three pieces of the outputs, two of the inputs
    x, grad = (vectors(5, n, torch.float32, False) for n in chain.shape[::-1])
    w = [values(p, torch.float32) for p in chain]
    wanted = gradients(x, w, [p.d for p in chain], grad)[1:]
    for found, right in zip(parts(interpreted, x, w, grad, chain, 1), wanted, strict=True):
        assert error(found[0], right) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(interpreted: Modules, dtype: torch.dtype) -> None:
    chain = PAIRS[1]
    x, grad = (vectors(19, n, dtype, False) for n in chain.shape[::-1])
    w = [values(p, dtype) for p in chain]
    wanted = gradients(x, w, [p.d for p in chain], grad)[1:]
    for found, right in zip(parts(interpreted, x, w, grad, chain, 1), wanted, strict=True):
        assert error(found[0], right) < TOLERANCE[dtype], "what stands between the factors is rounded once"


def test_each_part_has_its_rows(interpreted: Modules) -> None:
    chain, rows = PAIRS[1], 70  # four splits of 32 rows: 32, 32, 6, none
    x, grad = (vectors(rows, n, torch.float32, False) for n in chain.shape[::-1])
    w = [values(p, torch.float32) for p in chain]
    found = parts(interpreted, x, w, grad, chain, 4)
    for s, lo in enumerate((0, 32, 64)):
        wanted = gradients(x[lo : lo + 32], w, [p.d for p in chain], grad[lo : lo + 32])[1:]
        for part, right in zip(found, wanted, strict=True):
            assert error(part[s], right) < TOLERANCE[torch.float32]
    assert all((part[3] == 0).all() for part in found)


def test_any_strides(interpreted: Modules) -> None:
    chain = PAIRS[1]
    x, grad = (torch.randn(21, 2 * n + 1)[::2, 1::2] for n in chain.shape[::-1])
    w = [torch.randn(p.c, 2 * p.blocks, p.b)[:, ::2].permute(1, 2, 0) for p in chain]
    wanted = gradients(x, w, [p.d for p in chain], grad)[1:]
    for found, right in zip(parts(interpreted, x, w, grad, chain, 1), wanted, strict=True):
        assert error(found[0], right) < TOLERANCE[torch.float32]


def test_offsets_beyond_32_bits(interpreted: Modules, tmp_path: Path) -> None:
    # a sparse file: only what is touched takes room
    step, chain = 2**30, Chain.parse("(1,3,2,2)(2,2,3,1)")
    rows = torch.from_file(str(tmp_path / "rows"), shared=True, size=3 * step + 16, dtype=torch.float16)
    x, grad = rows.as_strided((4, 6), (step, 1)), rows.as_strided((4, 6), (step, 1), 8)
    for t in (x, grad):
        t.copy_(torch.randn(t.shape))
    w = [values(p, torch.float16) for p in chain]
    wanted = gradients(x, w, [p.d for p in chain], grad)[1:]
    for found, right in zip(parts(interpreted, x, w, grad, chain, 1), wanted, strict=True):
        assert error(found[0], right) < TOLERANCE[torch.float16]
