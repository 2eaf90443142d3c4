import pytest

from flatwing.core import divisors, nearest_divisor


@pytest.mark.parametrize("n", [1, 2, 12, 36, 97, 1024, 3600])
def test_divisors_are_all_and_ascending(n: int) -> None:
    assert divisors(n) == tuple(k for k in range(1, n + 1) if n % k == 0)


def test_divisors_of_a_large_square_list_the_root_once() -> None:
    n = (2**16 * 3) ** 2
    assert divisors(n).count(2**16 * 3) == 1
    assert len(divisors(n)) == 33 * 3


@pytest.mark.parametrize(
    ("n", "k", "nearest"), [(12, 5, 4), (12, 7, 6), (12, 100, 12), (12, 0, 1), (7, 4, 1), (9, 6, 3)]
)
def test_nearest_divisor_takes_the_smaller_on_a_tie(n: int, k: int, nearest: int) -> None:
    assert nearest_divisor(n, k) == nearest
