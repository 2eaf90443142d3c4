import pytest
import torch

from flatwing.optim.control import random_scores


@pytest.mark.parametrize("shape", [(60_000,), (300, 200), (2, 100, 300)])
def test_numbers_are_uniform_and_of_no_order(shape: tuple[int, ...]) -> None:
    x = random_scores(torch.zeros(shape), (3, 1, 4)).flatten()
    assert x.dtype == torch.float32
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    counts = torch.histc(x, 20, 0, 1)
    assert float(((counts - 3000) ** 2 / 2850).sum()) < 43.8  # chi-square with 19 degrees of freedom, 99.9 %
    for lag in (1, 2, 200, 300):
        assert abs(float(torch.corrcoef(torch.stack([x[lag:], x[:-lag]]))[0, 1])) < 0.015


def test_every_part_of_the_key_counts() -> None:
    p = torch.zeros(1000)
    first, *others = (random_scores(p, key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)))
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.1


def test_no_generator_is_used() -> None:
    state = torch.get_rng_state()
    first = random_scores(torch.zeros(5, 5), (0,))
    torch.manual_seed(99)
    assert torch.equal(random_scores(torch.zeros(5, 5), (0,)), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_number_has_one_entry() -> None:
    assert random_scores(torch.zeros(()), (0,)).shape == ()
    assert random_scores(torch.zeros(0, 3), (0,)).shape == (0, 3)
