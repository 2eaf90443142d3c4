import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing import Pattern
from flatwing.structure.factor import apply_factor, embed, extract, with_batch
from strategies import dense_factor, patterns


def values_of(pattern: Pattern) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(pattern.blocks, pattern.b, pattern.c, dtype=torch.float64, generator=g)


@given(patterns(), st.integers(1, 3))
def test_apply_factor_is_the_definition(pattern: Pattern, k: int) -> None:
    w, x = values_of(pattern), torch.randn(pattern.shape[1], k, dtype=torch.float64)
    torch.testing.assert_close(apply_factor(w, x, pattern.d), dense_factor(w, pattern) @ x, rtol=1e-13, atol=1e-13)


@given(patterns())
def test_embed_and_extract(pattern: Pattern) -> None:
    values = values_of(pattern)
    matrix = embed(values, pattern)
    assert torch.equal(matrix, dense_factor(values, pattern))
    assert torch.equal(extract(matrix, pattern), values)
    noise = torch.randn(pattern.shape, dtype=torch.float64)
    projected = embed(extract(noise, pattern), pattern)
    assert torch.equal(projected, noise * pattern.support())


def test_embed_and_extract_batches() -> None:
    pattern = Pattern(2, 3, 2, 2)
    values = torch.randn(5, 7, *values_of(pattern).shape)
    matrices = embed(values, pattern)
    assert matrices.shape == (5, 7, *pattern.shape)
    assert torch.equal(matrices[3, 4], dense_factor(values[3, 4], pattern))
    assert torch.equal(extract(matrices, pattern), values)


@given(patterns(), st.integers(1, 3))
def test_a_batch_is_a_block_diagonal_matrix(pattern: Pattern, batch: int) -> None:
    stack = torch.stack([(i + 1) * values_of(pattern) for i in range(batch)])
    whole = dense_factor(stack.flatten(0, 1), with_batch(pattern, batch))
    assert torch.equal(whole, torch.block_diag(*(dense_factor(w, pattern) for w in stack)))
