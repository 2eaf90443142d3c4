"""The fused kernel's formula, computed with the strides of `geometry` in plain loops, is the product."""

from itertools import product as every

import pytest
import torch

from flatwing.kernels.gpu.geometry import Geometry, geometry
from flatwing.structure import Chain, Pattern
from kernels.gpu.kit import product, values


def by_formula(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, shape: Geometry, m: int) -> torch.Tensor:
    """What `pair.pair` says that it computes, one number at a time."""

    def at(w: torch.Tensor, steps: tuple[tuple[int, int, int], ...], *indices: int) -> torch.Tensor:
        return w[tuple(sum(n * step[axis] for n, step in zip(indices, steps, strict=True)) for axis in range(3))]

    def feature(steps: tuple[int, ...], *indices: int) -> int:
        return sum(n * step for n, step in zip(indices, steps, strict=True))

    y = torch.zeros(len(x), m, dtype=x.dtype)
    for o, g in every(range(shape.outer), range(shape.groups)):
        i, k = divmod(o, shape.depth)
        h = []
        for u in range(shape.middle):
            block, t = u // shape.block[0] % shape.block[1], u // shape.t[0] % shape.t[1]
            inputs = range(shape.inputs)
            h.append(
                sum(
                    at(first, shape.first, i, k, block, t, g, p) * x[:, feature(shape.x, i, k, block, p)]
                    for p in inputs
                )
            )
        for s in range(shape.outputs):
            y[:, feature(shape.y, i, k, g, s)] = sum(
                at(second, shape.second, i, k, g, s, u) * h[u] for u in range(shape.middle)
            )
    return y


@pytest.mark.parametrize(
    "chain",
    [
        Chain.from_radices((3, 2), (2, 4), (1,)),
        Chain.from_radices((3, 2), (2, 3), (2,), a1=2),
        Chain.from_radices((2, 5), (4, 2), (3,), dL=2),
        Chain.butterfly(4),
        Chain.low_rank(5, 4, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("transposed", [False, True])
def test_formula_is_the_product(chain: Chain, transposed: bool) -> None:
    chain = chain.T if transposed else chain
    w = [values(p, torch.float64) for p in chain]
    x = torch.randn(2, chain.shape[1], dtype=torch.float64)
    shape = geometry(*chain)
    assert shape is not None
    torch.testing.assert_close(by_formula(x, w[1], w[0], shape, chain.shape[0]), product(x, w, [p.d for p in chain]))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Pattern(3, 2, 2, 2), Pattern(2, 3, 2, 2)),  # neither 2 divides 3 nor 3 divides 2
        (Pattern(1, 2, 2, 2), Pattern(1, 3, 2, 2)),  # sizes do not fit
        (Pattern(1, 4, 6, 2), Pattern(4, 3, 2, 1)),  # 4 does not divide 6
    ],
)
def test_no_geometry_without_a_chainable_pair(left: Pattern, right: Pattern) -> None:
    assert geometry(left, right) is None
