"""Numbers of threads hold for a while, and are restored whatever happens."""

import pytest
import torch

from flatwing.core import threads_for, using_threads
from flatwing.core.threads import SMALL


def test_a_number_holds_inside_and_is_restored() -> None:
    with using_threads(3):
        assert torch.get_num_threads() == 3
        with using_threads(2):
            assert torch.get_num_threads() == 2
        with using_threads(None):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1  # of all tests


def test_it_is_restored_after_errors_and_after_others() -> None:
    with pytest.raises(KeyError, match="inside"), using_threads(3):
        raise KeyError("inside")
    assert torch.get_num_threads() == 1
    with using_threads(None):
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 1


def test_too_few_are_refused_and_nothing_changes() -> None:
    with pytest.raises(ValueError, match=r"number of threads is 0\. Rule: a whole number"), using_threads(0):
        pass
    assert torch.get_num_threads() == 1


def test_small_blocks_get_one_thread_and_large_ones_all() -> None:
    with using_threads(3):
        with threads_for(SMALL):
            assert torch.get_num_threads() == 1
        with threads_for(SMALL + 1):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
