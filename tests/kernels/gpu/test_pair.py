"""Two factors in one launch, in the interpreter: ranks, a > 1, d > 1, both directions, layouts, dtypes."""

import pytest
import torch

from flatwing.kernels.gpu.geometry import geometry
from flatwing.kernels.gpu.tiles import Tile
from flatwing.structure import Chain, Pattern
from kernels.gpu.kit import TOLERANCE, Modules, error, only_inside, product, unwritten, values, vectors

TILE = Tile("pair", 16, 16, 16, 4, 16)
PAIRS = [
    Chain.parse("(1,8,4,16)(4,16,20,1)"),
    Chain.parse("(1,5,6,7)(3,14,4,1)"),  # rank 2
    Chain.from_radices((3, 5), (4, 2), (2,), a1=2, dL=3),
    Chain.parse("(2,3,4,1)(2,4,5,1)"),  # one group
    Chain.parse("(1,3,2,6)(1,12,5,1)"),  # one block that is applied first
]


def fused(room: Modules, x: torch.Tensor, chain: Chain, w: list[torch.Tensor], last: bool) -> torch.Tensor:
    left, right = chain
    y = unwritten(len(x), left.shape[0], x.dtype, last)
    shape = geometry(left, right)
    for launch in room.launch.pair_launches(x, w[1], w[0], y, shape, TILE):
        launch.run()
    assert only_inside(y)
    return y


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chain", PAIRS, ids=str)
def test_equals_the_definition(interpreted: Modules, chain: Chain, last: bool) -> None:
    x, w = vectors(19, chain.shape[1], torch.float32, last), [values(p, torch.float32) for p in chain]
    y = fused(interpreted, x, chain, w, last)
    assert error(y, product(x, w, [p.d for p in chain])) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chain", PAIRS, ids=str)
def test_the_transposed_pair_is_the_same_kernel(interpreted: Modules, chain: Chain, last: bool) -> None:
    grad, w = vectors(19, chain.shape[0], torch.float32, last), [values(p, torch.float32) for p in chain]
    back = [v.mT for v in reversed(w)]
    y = fused(interpreted, grad, chain.T, back, last)
    wanted = product(grad, [v.contiguous() for v in back], [p.d for p in chain.T])
    assert error(y, wanted) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(interpreted: Modules, dtype: torch.dtype) -> None:
    chain = PAIRS[1]
    x, w = vectors(19, chain.shape[1], dtype, False), [values(p, dtype) for p in chain]
    y = fused(interpreted, x, chain, w, False)
    assert error(y, product(x, w, [p.d for p in chain])) < TOLERANCE[dtype]


def test_any_strides(interpreted: Modules) -> None:
    chain = PAIRS[1]
    x = torch.randn(21, 2 * chain.shape[1] + 1)[::2, 1::2]
    w = [torch.randn(p.c, 2 * p.blocks, p.b)[:, ::2].permute(1, 2, 0) for p in chain]
    assert error(fused(interpreted, x, chain, w, False), product(x, w, [p.d for p in chain])) < TOLERANCE[torch.float32]


def test_pattern_is_not_a_pair() -> None:
    assert geometry(Pattern(2, 2, 2, 1), Pattern(1, 2, 2, 2)) is not None  # the dual flavour
    assert geometry(Pattern(3, 2, 2, 2), Pattern(2, 3, 2, 2)) is None
