import json
from functools import reduce
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing import Chain, Pattern
from flatwing.structure import transforms
from flatwing.structure.pattern import violated
from strategies import as_user, chainable_chains, dense_product, draw_product, valid_chains


def support_counts(chain: Chain) -> torch.Tensor:
    return reduce(torch.matmul, [p.support().long() for p in chain])


@given(valid_chains())
def test_numbers_are_those_of_the_supports(chain: Chain) -> None:
    supports = [p.support() for p in chain]
    m, n = supports[0].shape[0], supports[-1].shape[1]
    assert chain.shape == (m, n)
    assert chain.nnz == sum(int(s.sum()) for s in supports)
    assert chain.flops == 2 * chain.nnz
    assert chain.density == pytest.approx(chain.nnz / (m * n), rel=1e-15)


@given(valid_chains())
def test_chainable_is_the_rule_of_pairs(chain: Chain) -> None:
    broken = [i for i, (p, q) in enumerate(pairwise(chain)) if violated(p, q) is not None]
    assert chain.chainable == (not broken)
    if broken:
        message = rf"factors {broken[0]} and {broken[0] + 1}, .* are not chainable: they violate '"
        for use in (chain.require_chainable, lambda: chain.ranks, lambda: chain.pattern, lambda: chain.radices):
            with pytest.raises(ValueError, match=message):
                use()
    else:
        chain.require_chainable()


@given(chainable_chains())
def test_support_of_the_whole_product(chain: Chain) -> None:
    ways = torch.tensor(chain.ranks).prod().item() if chain.ranks else 1
    assert torch.equal(support_counts(chain), int(ways) * chain.pattern.support().long())


@given(chainable_chains(), st.data())
def test_support_of_a_part(chain: Chain, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(chain) - 1))
    stop = data.draw(st.integers(start + 1, len(chain)))
    assert torch.equal(support_counts(chain[start:stop]) > 0, chain[start:stop].pattern.support())


@given(valid_chains())
def test_transpose(chain: Chain) -> None:
    assert torch.equal(support_counts(chain.T), support_counts(chain).T)
    assert chain == chain.T.T
    assert chain.T.shape == chain.shape[::-1]
    assert chain.T.nnz == chain.nnz


def test_transpose_is_the_dual_flavour() -> None:
    assert Chain.butterfly(8).chainable
    assert not Chain.butterfly(8).T.chainable
    assert Chain.low_rank(4, 6, rank=2).T.chainable  # a and d do not change along it


@given(valid_chains())
def test_text_and_json_round_trip(chain: Chain) -> None:
    assert Chain.parse(str(chain)) == chain
    assert Chain.parse(str(chain).replace(")(", ") (").replace(",", " , ")) == chain
    assert eval(repr(chain)) == chain
    assert Chain.from_json(chain.to_json()) == chain
    assert hash(Chain(chain.patterns)) == hash(chain)


def test_equality_is_that_of_the_patterns() -> None:
    assert Chain([(1, 2, 2, 2), Pattern(2, 2, 2, 1)]) == Chain.butterfly(4)
    assert Chain.butterfly(4) != Chain.monarch(4, 4, blocks=1)
    assert Chain.dense(2, 2) != Pattern(1, 2, 2, 1)
    assert len({Chain.butterfly(4), Chain.monarch(4, 4, blocks=2)}) == 1


@given(chainable_chains(), st.data())
def test_slices_concatenate(chain: Chain, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(chain)))
    if 0 < cut < len(chain):
        assert chain[:cut] + chain[cut:] == chain
    assert chain[:] == chain
    assert list(chain) == [chain[i] for i in range(len(chain))] == list(chain.patterns)


def test_bad_slices() -> None:
    chain = Chain.butterfly(8)
    with pytest.raises(ValueError, match=r"sliced with step 1, got step -1\. For the reverse use chain\.T"):
        chain[::-1]
    with pytest.raises(ValueError, match=r"at least one pattern, got none\. Try Chain\.dense"):
        chain[2:2]
    with pytest.raises(IndexError, match="out of range"):
        chain[3]
    with as_user(), pytest.raises(TypeError, match="unsupported operand"):
        chain + chain[0]  # type: ignore[operator]


def test_concatenation_must_fit() -> None:
    with pytest.raises(
        ValueError, match=r"factors 1 and 2 do not fit: \(2,2,2,1\) has 4 columns, \(1,3,5,1\) has 3 rows"
    ):
        Chain.butterfly(4) + Chain.dense(3, 5)


@given(chainable_chains(), st.data())
def test_merged_keeps_the_product_pattern(chain: Chain, data: st.DataObject) -> None:
    splits = data.draw(st.sets(st.integers(1, len(chain) - 1))) if len(chain) > 1 else set()
    merged = chain.merged(splits)
    assert merged.pattern == chain.pattern
    assert merged.ranks == tuple(r for s, r in enumerate(chain.ranks, start=1) if s not in splits)


@pytest.mark.parametrize("split", [0, 3, -1])
def test_merged_at_an_unknown_split(split: int) -> None:
    with pytest.raises(ValueError, match=rf"has splits 1 to 2, got {split}"):
        Chain.butterfly(8).merged([split])


def irredundant(chain: Chain) -> bool:
    return all(p.rank(q) < min(p.b, q.c) for p, q in pairwise(chain))


@given(chainable_chains())
def test_reduced_is_irredundant_and_no_larger(chain: Chain) -> None:
    reduced = chain.reduced()
    assert irredundant(reduced)
    assert reduced == chain.merged(chain.redundant_splits)
    assert reduced.pattern == chain.pattern
    assert reduced.reduced() == reduced
    assert (reduced == chain) == irredundant(chain)


@given(chainable_chains())
def test_redundant_splits_can_be_merged_in_their_order(chain: Chain) -> None:
    """Each split of the list is redundant, r >= min(b, c), once the ones before it are merged."""
    gone: set[int] = set()
    for split in chain.redundant_splits:
        whole = chain.merged(gone)
        at = split - sum(s < split for s in gone)  # where the split is now
        left, right = whole[at - 1], whole[at]
        assert left.rank(right) >= min(left.b, right.c)
        gone.add(split)


@given(chainable_chains())
def test_a_redundant_split_costs_nothing_in_expression(chain: Chain) -> None:
    """The reduced chain spans the same set: any product of it is one of the longer chain, and the other way round."""
    product = draw_product(chain.reduced())
    longer = product.expanded(chain)
    assert longer.chain == chain
    torch.testing.assert_close(dense_product(longer), dense_product(product), rtol=1e-13, atol=1e-13)
    other = draw_product(chain, seed=1)
    assert other.reduced().chain == chain.reduced()
    torch.testing.assert_close(dense_product(other.reduced()), dense_product(other), rtol=1e-12, atol=1e-12)


def test_redundancy_cascades() -> None:
    chain = Chain.butterfly(16, rank=4)  # ends of size 2 are redundant, and then the middle is too
    assert chain.redundant_splits == (1, 2, 3)
    assert chain.reduced() == Chain.dense(16, 16)


def test_irredundant_split_restricts() -> None:
    """Just below the threshold the blocks have too small a rank, so the set of products is smaller."""
    chain = Chain.low_rank(5, 4, rank=3)
    assert chain.redundant_splits == ()
    assert Chain.low_rank(5, 4, rank=4).redundant_splits == (1,)
    assert torch.linalg.matrix_rank(dense_product(draw_product(chain))) == 3


def test_empty_chain() -> None:
    with pytest.raises(ValueError, match=r"a chain needs at least one pattern, got none\. Try Chain\.dense"):
        Chain([])


def test_sizes_that_do_not_fit() -> None:
    message = (
        r"factors 1 and 2 do not fit: \(2,2,2,2\) has 8 columns, \(1,4,2,1\) has 4 rows\. Rule: a\*c\*d on the left"
    )
    with pytest.raises(ValueError, match=message):
        Chain([(1, 2, 2, 4), (2, 2, 2, 2), (1, 4, 2, 1)])


@pytest.mark.parametrize("entry", ["1221", (1, 2, 2), 7, None])
def test_entries_that_are_no_patterns(entry: object) -> None:
    with as_user(), pytest.raises(TypeError, match=r"a chain is made of patterns, got .* Write Chain\(\[Pattern\(a, b"):
        Chain([entry])  # type: ignore[list-item]


def chain_json(**changes: object) -> str:
    return json.dumps({"format": "flatwing.chain", "version": 1, "patterns": [[1, 2, 2, 1]]} | changes)


def test_the_json_below_is_good_without_changes() -> None:
    assert Chain.from_json(chain_json()) == Chain.dense(2, 2)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "Expecting value"),
        ("[1]", "list indices"),
        ("{}", "'format'"),
        ("[" * 100_000, "nested more than 8 deep"),
        (chain_json(format="other"), "format 'other' version 1"),
        (chain_json(version=2), "format 'flatwing.chain' version 2"),
        (chain_json(patterns=[]), "at least one pattern"),
        (chain_json(patterns=[[1, 2, 2]]), "made of patterns"),
        (chain_json(patterns="1221"), "made of patterns"),
        (chain_json(patterns=None), "not iterable"),
        (chain_json(patterns=[[1, 2, 2, 1], [1, 3, 2, 1]]), "do not fit"),
        (chain_json(patterns=[[1, 2.5, 2, 1]]), "b=2.5"),
        (chain_json(patterns=[[1, float("nan"), 2, 1]]), "b=nan"),
        (chain_json(patterns=[[1, True, 2, 1]]), "a bool"),
    ],
    ids=lambda text: text[:50],
)
def test_json_of_something_else(text: str, cause: str) -> None:
    with (
        as_user(),
        pytest.raises(ValueError, match=rf"this is not the JSON of a chain \(.*({cause}).* Rule: an object"),
    ):
        Chain.from_json(text)


def test_dual_chains_are_reduced_too() -> None:
    """A transposed chain is not chainable, but its redundancy is that of its transpose."""
    chain = Chain.butterfly(16, rank=2)
    assert chain.T.reduced() == chain.reduced().T
    product = transforms.random_product(chain).T
    torch.testing.assert_close(product.reduced().dense(), product.dense())
    assert product.reduced().expanded(chain.T).chain == chain.T


def test_sizes_beyond_any_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="larger than any matrix"):
        Chain.butterfly(10**20)
