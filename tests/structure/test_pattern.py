import dataclasses
from itertools import product
from math import gcd

import pytest
import torch
from hypothesis import given

from flatwing import Pattern
from flatwing.core import divisors
from flatwing.structure import CONDITIONS
from flatwing.structure.pattern import Condition, require_chainable, violated
from strategies import as_user, chainable_chains, chainable_pairs, dense_factor, fitting_pairs, patterns


def counts(pattern: Pattern) -> torch.Tensor:
    """The support as integers, so that a product counts in how many ways an entry is reached."""
    return dense_factor(torch.ones(pattern.a * pattern.d, pattern.b, pattern.c), pattern).long()


def same_support(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first != 0, second != 0)


@given(patterns())
def test_support_is_the_kronecker_product(pattern: Pattern) -> None:
    a, b, c, d = pattern
    kron = torch.kron(torch.kron(torch.eye(a), torch.ones(b, c)), torch.eye(d))
    assert pattern.support().dtype == torch.bool
    assert torch.equal(pattern.support(), kron.bool())
    assert torch.equal(pattern.support(), counts(pattern).bool())


@given(patterns())
def test_numbers_are_those_of_the_support(pattern: Pattern) -> None:
    support = pattern.support()
    assert pattern.shape == tuple(support.shape)
    assert pattern.nnz == int(support.sum())
    assert pattern.density == pytest.approx(pattern.nnz / support.numel(), rel=1e-15)
    assert pattern.blocks * pattern.b * pattern.c == pattern.nnz


@given(patterns())
def test_transpose(pattern: Pattern) -> None:
    assert torch.equal(pattern.T.support(), pattern.support().T)
    assert pattern == pattern.T.T


@given(patterns())
def test_text_round_trip(pattern: Pattern) -> None:
    assert Pattern.parse(str(pattern)) == pattern
    assert Pattern.parse(f"  ( {pattern.a} ,{pattern.b}, {pattern.c} , {pattern.d}) ") == pattern
    assert tuple(pattern) == dataclasses.astuple(pattern)


def test_frozen_hashable_ordered() -> None:
    assert len({Pattern(1, 2, 3, 4), Pattern(1, 2, 3, 4), Pattern(1, 2, 3, 5)}) == 2
    assert Pattern(1, 2, 3, 4) < Pattern(1, 2, 4, 1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'a'"):
        Pattern(1, 2, 3, 4).a = 5  # type: ignore[misc]


@given(chainable_pairs())
def test_support_of_a_product(pair: tuple[Pattern, Pattern]) -> None:
    left, right = pair
    assert torch.equal(counts(left) @ counts(right), left.rank(right) * counts(left * right))


@given(fitting_pairs())
def test_chainable_means_that_every_entry_is_reached_equally_often(pair: tuple[Pattern, Pattern]) -> None:
    left, right = pair
    if violated(left, right) is None:
        together = counts(left) @ counts(right)
        assert set(together.unique().tolist()) <= {0, left.rank(right)}
        assert same_support(together, counts(left * right))


@given(chainable_chains(min_factors=3, max_factors=3))
def test_product_is_associative(chain: tuple[Pattern, Pattern, Pattern]) -> None:
    first, second, third = chain
    assert (first * second) * third == first * (second * third)
    assert first.rank(second * third) == first.rank(second)
    assert (first * second).rank(third) == second.rank(third)


def test_a_dense_pattern_is_neutral_only_as_identity() -> None:
    pattern = Pattern(2, 3, 4, 5)
    left, right = Pattern(2, 3, 3, 5), Pattern(2, 4, 4, 5)
    assert left * pattern == pattern == pattern * right


def is_multiple_of_a_support(matrix: torch.Tensor) -> bool:
    m, n = matrix.shape
    shapes = [(a, d) for a in divisors(gcd(m, n)) for d in divisors(gcd(m, n) // a)]
    supports = [Pattern(a, m // (a * d), n // (a * d), d).support() for a, d in shapes]
    return any(torch.equal(matrix, matrix.max() * support) for support in supports)


@pytest.mark.parametrize(("condition", "needed"), list(zip(CONDITIONS[1:], (True, False, True), strict=True)), ids=str)
def test_which_condition_makes_a_product_a_pattern(condition: Condition, needed: bool) -> None:
    """Pairs that fit in size and violate one condition only: is their product still a multiple of a support?

    Without "d shrinks" it is, with gcd(d, d') in the place of d'; what is lost then is the formula of the product.
    """
    spoiled = 0
    for a, c, d, a2, d2 in product((1, 2, 3, 4), repeat=5):
        left, right = Pattern(a, 1, c, d), Pattern(a2, max(1, a * c * d // (a2 * d2)), 1, d2)
        if [rule for rule in CONDITIONS if not rule.holds(left, right)] == [condition]:
            spoiled += not is_multiple_of_a_support(counts(left) @ counts(right))
    assert (spoiled > 0) == needed


def test_third_condition_on_an_example() -> None:
    left, right = Pattern(1, 1, 3, 2), Pattern(2, 3, 1, 1)  # 1 | 2 and 1 | 2, sizes 6 and 6, but 2 does not divide 1*3
    assert str(violated(left, right)) == "the rank is whole: a' divides a*c"
    assert (counts(left) @ counts(right)).tolist() == [[2, 1], [1, 2]]  # not a multiple of any support


@pytest.mark.parametrize(
    ("left", "right", "condition"),
    [
        ((1, 2, 2, 2), (1, 3, 2, 1), r"sizes fit: a\*c\*d = a'\*b'\*d'"),
        ((2, 2, 2, 1), (1, 2, 2, 2), r"a grows: a divides a'"),
        ((1, 2, 4, 1), (1, 2, 2, 2), r"d shrinks: d' divides d"),
        ((1, 1, 3, 2), (2, 3, 1, 1), r"the rank is whole: a' divides a\*c"),
    ],
)
def test_violation_is_named_with_values_and_rule(left: tuple, right: tuple, condition: str) -> None:
    left, right = Pattern(*left), Pattern(*right)
    message = rf"not chainable: they violate '{condition}', with a={left.a}, c={left.c}.*Chainable means a\*c\*d = "
    for operation in (lambda: left * right, lambda: left.rank(right), lambda: require_chainable(left, right)):
        with pytest.raises(ValueError, match=message):
            operation()
    with pytest.raises(ValueError, match=r"^here, \("):
        require_chainable(left, right, "here, ")


@pytest.mark.parametrize(("value", "nearest"), [(0, 1), (-3, 1)])
def test_entries_are_positive(value: int, nearest: int) -> None:
    with pytest.raises(ValueError, match=rf"entries >= 1, got c={value}\. The nearest good value is c={nearest}"):
        Pattern(1, 2, value, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2.0, r"needs integers, got b=2\.0 of type float.*four whole numbers"),
        ("2", r"needs integers, got b='2' of type str"),
        (True, r"needs integers, got b=True \(a bool\)\. Write b=1"),
        (None, r"needs integers, got b=None of type NoneType"),
    ],
)
def test_entries_are_integers(value: object, message: str) -> None:
    with as_user(), pytest.raises(TypeError, match=message):
        Pattern(1, value, 3, 4)  # type: ignore[arg-type]


def test_integers_of_other_libraries_become_python_integers() -> None:
    with as_user():
        pattern = Pattern(*torch.tensor([1, 2, 3, 4]))
    assert pattern == Pattern(1, 2, 3, 4)
    assert all(type(entry) is int for entry in pattern)


def test_product_with_something_else() -> None:
    with as_user(), pytest.raises(TypeError, match="unsupported operand"):
        Pattern(1, 2, 2, 1) * 3  # type: ignore[operator]


@pytest.mark.parametrize(
    "text", ["", "(1,2,2)", "(1,2,2,1,1)", "1,2,2,1", "(1,2,-2,1)", "(1,2,2.0,1)", "(1,2,x,1)", "(1,2,2,1)(2,1,1,1)"]
)
def test_text_that_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a pattern\. Rule: four whole numbers in brackets"):
        Pattern.parse(text)


def test_text_with_a_zero() -> None:
    with pytest.raises(ValueError, match="entries >= 1, got d=0"):
        Pattern.parse("(1,2,2,0)")
