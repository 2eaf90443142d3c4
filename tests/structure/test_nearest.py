import pytest
from hypothesis import given

from flatwing import Chain
from flatwing.structure.nearest import nearest_chainable
from strategies import chainable_chains, valid_chains


@given(chainable_chains())
def test_a_chainable_chain_is_its_own_nearest(chain: Chain) -> None:
    assert nearest_chainable(chain) == chain


@given(valid_chains())
def test_result_is_chainable_and_of_the_same_size_and_length(chain: Chain) -> None:
    nearest = nearest_chainable(chain)
    assert nearest.chainable
    assert nearest.shape == chain.shape
    assert len(nearest) == len(chain)


@pytest.mark.parametrize(("m", "n"), [(12, 18), (16, 16), (7, 5)])
def test_result_for_another_size(m: int, n: int) -> None:
    nearest = nearest_chainable(Chain.monarch(12, 12, blocks=3), m, n)
    assert nearest.chainable
    assert nearest.shape == (m, n)
    assert len(nearest) == 2


def test_one_entry_off_comes_back() -> None:
    broken = Chain([(1, 8, 9, 8), (8, 9, 8, 1)])  # of rank 9/8
    assert not broken.chainable
    assert nearest_chainable(broken) == Chain.monarch(64, 64, blocks=8)
