import pytest
import torch
from hypothesis import given

from flatwing import Chain, Pattern
from flatwing.structure.factor import extract
from flatwing.structure.split import Split
from strategies import chainable_pairs, dense_factor

Pair = tuple[Pattern, Pattern]


def values_of(pattern: Pattern, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(pattern.blocks, pattern.b, pattern.c, dtype=torch.float64, generator=g)


@given(chainable_pairs())
def test_multiply_is_the_dense_product(pair: Pair) -> None:
    left, right = pair
    x, y = values_of(left), values_of(right, 1)
    split = Split(left, right)
    dense = dense_factor(x, left) @ dense_factor(y, right)
    torch.testing.assert_close(dense_factor(split.multiply(x, y), split.pattern), dense, rtol=1e-13, atol=1e-13)


@given(chainable_pairs())
def test_views_are_inverse_to_each_other(pair: Pair) -> None:
    split = Split(*pair)
    whole, x, y = values_of(split.pattern), values_of(split.left), values_of(split.right)
    assert torch.equal(split.unblock(split.blocks(whole)), whole)
    assert torch.equal(split.left_values(split.left_blocks(x)), x)
    assert torch.equal(split.right_values(split.right_blocks(y)), y)
    assert split.blocks(whole).shape == (*split.grid, *split.block_shape)
    assert split.left_blocks(x).shape == (*split.grid, split.block_shape[0], split.rank)
    assert split.right_blocks(y).shape == (*split.grid, split.rank, split.block_shape[1])


@given(chainable_pairs())
def test_blocks_tile_the_support_and_are_submatrices(pair: Pair) -> None:
    """Each entry of the matrix lies in exactly one block, and a block is a set of rows times a set of columns."""
    split = Split(*pair)
    shape = split.pattern.shape
    where = torch.arange(shape[0] * shape[1]).reshape(shape)
    blocks = split.blocks(extract(where, split.pattern)).reshape(-1, *split.block_shape)
    on_support = where[split.pattern.support()]
    assert torch.equal(blocks.flatten().sort().values, on_support)
    rows, columns = blocks // shape[1], blocks % shape[1]
    assert bool((rows == rows[:, :, :1]).all())
    assert bool((columns == columns[:, :1]).all())
    assert len(blocks) == split.regions[0] * split.regions[1]
    assert len(rows[:, :, 0].unique(dim=0)) == split.left.blocks
    assert len(columns[:, 0].unique(dim=0)) == split.right.blocks


@given(chainable_pairs())
def test_products_are_exactly_the_blocks_of_low_rank(pair: Pair) -> None:
    left, right = pair
    split = Split(left, right)
    blocks = split.blocks(split.multiply(values_of(left), values_of(right)))
    ranks = torch.linalg.matrix_rank(blocks)
    assert bool((ranks <= split.rank).all())
    u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    keep = min(split.rank, s.shape[-1])
    u, v = u[..., :keep] * s[..., None, :keep], vh[..., :keep, :]
    if keep == split.rank:  # back to factors, from nothing but the blocks
        again = split.multiply(split.left_values(u), split.right_values(v))
        torch.testing.assert_close(split.blocks(again), blocks, rtol=1e-10, atol=1e-10)


@given(chainable_pairs())
def test_expand_is_exact_for_a_redundant_split(pair: Pair) -> None:
    split = Split(*pair)
    whole = values_of(split.pattern)
    if split.rank >= min(split.block_shape):
        x, y = split.expand(whole)
        assert x.shape == (split.left.blocks, split.left.b, split.left.c)
        assert y.shape == (split.right.blocks, split.right.b, split.right.c)
        assert torch.equal(split.multiply(x, y), whole)
    else:
        with pytest.raises(ValueError, match=rf"has rank {split.rank} and blocks of .* Rule: rank >= the smaller side"):
            split.expand(whole)


def test_expand_on_both_sides_with_padding() -> None:
    for m, n, rank in ((2, 5, 3), (5, 2, 4), (3, 3, 3)):
        split = Split(*Chain.low_rank(m, n, rank))
        whole = values_of(split.pattern)
        x, y = split.expand(whole)
        assert (x.shape, y.shape) == ((1, m, rank), (1, rank, n))
        assert torch.equal(x[0] @ y[0], whole[0])
