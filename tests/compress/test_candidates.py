import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatwing import Chain
from flatwing.compress import STRUCTURES, Candidate
from flatwing.compress.candidates import candidate, make_layer
from flatwing.factorize import Blast, Metric
from flatwing.nn import BlastLinear, StructuredLayer, StructuredLinear
from strategies import as_user

SIZES = st.sampled_from([1, 2, 3, 6, 7, 8, 12, 16, 20])


@given(st.sampled_from(list(STRUCTURES)), SIZES, SIZES)
@settings(max_examples=60)
def test_every_structure_takes_every_layer(name: str, m: int, n: int) -> None:
    with as_user():
        found = candidate(name, m, n)
        A, B = found.blocks
        assert found.rank == 1
        assert found.shape == (m, n)
        assert m % A == 0
        assert n % B == 0
        if found.family == "blast":
            assert found.chain is None
            assert found.parameters == m + n + A * B
        else:
            assert found.chain is not None
            assert found.chain.shape == (m, n)
            assert found.chain.pattern.nnz == m * n, "every entry can be reached"
            assert found.parameters == found.chain.nnz


@given(st.sampled_from(list(STRUCTURES)), SIZES, SIZES, st.floats(0, 1.5))
@settings(max_examples=60)
def test_within_is_the_largest_rank_of_the_budget(name: str, m: int, n: int, share: float) -> None:
    with as_user():
        one, budget = candidate(name, m, n), share * m * n
        found = one.within(budget)
        if found is None:
            assert one.parameters > budget
            return
        assert (found.family, found.blocks, found.shape) == (one.family, one.blocks, one.shape)
        assert found.parameters <= budget
        wider = Candidate(found.family, found.shape, found.blocks, found.rank + 1)
        assert wider.parameters > budget or found.rank == min(m, n)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_fit_has_the_parameters_that_were_counted_and_becomes_a_layer(name: str) -> None:
    W, metric = torch.randn(8, 12, dtype=torch.float64), Metric.identity(12)
    wanted = candidate(name, 8, 12).within(80.0)
    assert wanted is not None
    fit = wanted.fit(W, metric)
    assert fit.structure.nnz == wanted.parameters
    assert 0 < fit.error < 1
    bias = torch.randn(8, dtype=torch.float64)
    layer = make_layer(fit, bias, torch.float32)
    assert isinstance(layer, BlastLinear if name.startswith("blast") else StructuredLinear)
    assert isinstance(layer, StructuredLayer)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert layer.nnz + 8 == sum(p.numel() for p in layer.parameters())
    x = torch.randn(5, 12)
    wanted_y = x.double() @ fit.structure.dense().mT + bias
    torch.testing.assert_close(layer(x).double(), wanted_y, rtol=1e-4, atol=1e-4)
    assert make_layer(fit, None, torch.bfloat16).bias is None


def test_more_effort_is_not_worse_and_the_seed_counts_for_blast_only() -> None:
    x = torch.randn(40, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    W, metric = torch.randn(12, 12, dtype=torch.float64), Metric(x.mT @ x)
    for name in ("monarch_4x4", "blast_4"):
        wanted = candidate(name, 12, 12).within(110.0)
        assert wanted is not None
        quick, long = wanted.fit(W, metric, 0.15), wanted.fit(W, metric, 2.0)
        assert len(quick.history) < len(long.history)
        assert long.error <= quick.error
        same = wanted.fit(W, metric, seed=1).error == wanted.fit(W, metric, seed=2).error
        assert same == (name == "monarch_4x4")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Candidate("low_rank", (8, 8), (1, 1), 3), "low_rank(rank=3)"),
        (Candidate("blast", (8, 8), (4, 4), 3), "blast(blocks=4, rank=3)"),
        (Candidate("monarch", (8, 8), (1, 2), 3), "monarch(blocks=(1, 2), rank=3)"),
    ],
)
def test_words(found: Candidate, words: str) -> None:
    assert str(found) == words


def test_families_are_the_chains_of_their_names() -> None:
    assert Candidate("low_rank", (6, 8), (1, 1), 2).chain == Chain.low_rank(6, 8, 2)
    assert Candidate("monarch", (6, 8), (3, 2), 2).chain == Chain.monarch(6, 8, (3, 2), 2)
    three = Candidate("three_factor", (8, 16), (4, 4), 2).chain
    assert three is not None
    assert len(three) == 3
    assert three.ranks == (2, 2)


@pytest.mark.parametrize(("n", "blocks"), [(7, 1), (6, 3), (9, 3), (12, 4)])
def test_numbers_of_blocks_become_the_nearest_divisor(n: int, blocks: int) -> None:
    assert candidate("monarch_4x4", n, n).blocks == (blocks, blocks)


def test_unknown_structures_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown structure 'monarch_4', did you mean 'monarch_4x4'\?"):
        candidate("monarch_4", 8, 8)


def test_the_layer_is_not_bound_to_the_fit() -> None:
    """Training a layer leaves the fit that the report is written from as it was."""
    fit = candidate("blast_4", 8, 8).fit(torch.randn(8, 8, dtype=torch.float64), Metric.identity(8))
    assert isinstance(fit.structure, Blast)
    before = fit.structure.left.clone()
    layer = make_layer(fit, None, torch.float64)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(fit.structure.left, before)
