"""The block computes what its formula says, sees no future, and knows distances, not places."""

import pytest
import torch
from torch.nn import functional as F

from flatwing.train import Block
from flatwing.train.block import rotate


def by_hand(block: Block, x: torch.Tensor) -> torch.Tensor:
    """Single-head attention and MLP, written out."""
    h = block.norm1(x)
    q, k, v = block.q(h), block.k(h), block.v(h)
    if block.causal:
        q, k = rotate(q), rotate(k)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if block.causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    x = x + block.o(scores.softmax(-1) @ v)
    return x + block.down(F.gelu(block.up(block.norm2(x))))


@pytest.mark.parametrize("causal", [False, True])
def test_block_equals_its_formula(causal: bool) -> None:
    block, x = Block(8, 1, causal=causal, bias=True), torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), by_hand(block, x))


def test_heads_attend_separately() -> None:
    one, two = Block(8, 1), Block(8, 2)
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 5, 8)
    assert not torch.allclose(one(x), two(x))


def test_causal_block_sees_no_future() -> None:
    block, x = Block(8, 2, causal=True), torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(block(x)[:, :4], block(changed)[:, :4])
    assert not torch.allclose(block(x)[:, 4:], block(changed)[:, 4:])


def test_block_without_mask_ignores_order() -> None:
    block, x, order = Block(8, 2), torch.randn(1, 6, 8), torch.randperm(6)
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]))


def test_rotated_dot_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(8).expand(10, 8), torch.randn(8).expand(10, 8)
    products = rotate(q) @ rotate(k).T
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1])
    assert not torch.allclose(products[0, 0], products[0, 3])


def test_linear_layers_have_their_names_and_bias_is_optional() -> None:
    names = {"q", "k", "v", "o", "up", "down"}
    for bias in (False, True):
        linears = {n: m for n, m in Block(8, 2, bias=bias).named_modules() if isinstance(m, torch.nn.Linear)}
        assert set(linears) == names
        assert all((m.bias is not None) == bias for m in linears.values())


@pytest.mark.parametrize(("width", "heads", "causal"), [(8, 3, False), (8, 8, True), (6, 2, True)])
def test_heads_that_do_not_divide_are_refused(width: int, heads: int, causal: bool) -> None:
    with pytest.raises(ValueError, match=f"heads is {heads} for width {width}"):
        Block(width, heads, causal=causal)


@pytest.mark.parametrize("name", ["width", "heads", "mlp"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Block(**({"width": 8, "heads": 2} | {name: 0}))
