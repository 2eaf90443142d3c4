"""Classes of rank-one supports, which of them are complete, and what the theorems need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatwing import Chain
from flatwing.structure import Support, tractability
from flatwing.structure.tractable import two_supports

LOWER = np.tril(np.ones((2, 2), dtype=bool))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    m, r, n = (draw(st.integers(1, 4)) for _ in range(3))
    bits = draw(st.lists(st.booleans(), min_size=m * r + r * n, max_size=m * r + r * n))
    S, T = np.array(bits[: m * r]).reshape(m, r), np.array(bits[m * r :]).reshape(r, n)
    S[0, 0] = T[0, 0] = True  # one inner index at least supports something
    return S, T


@given(pairs())
def test_classes_are_rank_one_supports_grouped(pair: tuple[np.ndarray, np.ndarray]) -> None:
    S, T = pair
    verdict = tractability(S, T)
    boxes = {k: (tuple(S[:, k].nonzero()[0]), tuple(T[k].nonzero()[0])) for k in range(S.shape[1])}
    useful = {k: box for k, box in boxes.items() if box[0] and box[1]}
    assert sorted(int(k) for one in verdict.classes for k in one.members) == sorted(useful)
    for one in verdict.classes:
        assert {boxes[int(k)] for k in one.members} == {(tuple(one.rows), tuple(one.columns))}
        assert one.complete == (len(one.members) >= min(len(one.rows), len(one.columns)))
    assert len({useful[int(one.members[0])] for one in verdict.classes}) == len(verdict.classes)
    assert np.array_equal(verdict.reachable, S.astype(int) @ T.astype(int) > 0)
    assert (verdict.covered <= verdict.reachable).all()


@given(pairs())
def test_theorems_mean_what_they_say(pair: tuple[np.ndarray, np.ndarray]) -> None:
    verdict = tractability(*pair)
    boxes = [np.zeros(verdict.reachable.shape, dtype=bool) for _ in verdict.classes]
    for box, one in zip(boxes, verdict.classes, strict=True):
        box[np.ix_(one.rows, one.columns)] = True
    disjoint = not any((a & b).any() for i, a in enumerate(boxes) for b in boxes[:i])
    rests = [box & ~verdict.covered for box, one in zip(boxes, verdict.classes, strict=True) if not one.complete]
    rectangles = all(np.array_equal(rest, np.outer(rest.any(1), rest.any(0))) for rest in rests)
    apart = not any((a & b).any() for i, a in enumerate(rests) for b in rests[:i])
    assert verdict.theorem == (1 if disjoint else 2 if rectangles and apart else 0)
    assert verdict.tractable == bool(verdict) == (verdict.theorem > 0)
    assert (len(verdict.offending) > 0) == (not verdict.tractable)


def test_verdicts_name_what_is_in_the_way() -> None:
    holes = tractability(LOWER, LOWER.T)
    assert (holes.theorem, len(holes.offending)) == (0, 1)
    assert not holes.offending[0].rectangular
    assert str(holes).endswith("of columns {0} on rows {0, 1} x columns {0, 1} is no rectangle")
    two = tractability(np.ones((3, 2), dtype=bool), np.array([[True, True, False], [False, True, True]]))
    assert [list(one.columns) for one in two.offending] == [[0, 1], [1, 2]]
    assert "overlap where no complete class is" in two.reason
    many = tractability(np.ones((20, 1), dtype=bool), np.ones((1, 20), dtype=bool))
    assert "{0, 1, 2, 3, 4, 5, 6, 7, ...}" in str(many.classes[0])


def test_complete_classes_leave_rectangles() -> None:
    S, T = np.ones((3, 2), dtype=bool), np.ones((2, 3), dtype=bool)
    S[:2, 1] = False  # the last row is free
    verdict = tractability(S, T)
    assert verdict.theorem == 2
    (rest,) = [one for one in verdict.classes if not one.complete]
    assert (list(rest.left_rows), list(rest.left_columns)) == ([0, 1], [0, 1, 2])
    assert verdict.covered.sum() == 3


def test_chainable_pairs_are_of_the_first_kind() -> None:
    for chain in (Chain.monarch(12, 20, blocks=4), Chain.low_rank(5, 6, rank=2), Chain.butterfly(4)):
        verdict = tractability([Support(pattern) for pattern in chain])
        assert verdict.theorem == 1
        assert len({len(one.members) for one in verdict.classes}) == 1


def test_bad_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 3 supports. Rule: two"):
        tractability([LOWER, LOWER, LOWER])
    with pytest.raises(ValueError, match="got 1 supports"):
        two_supports([LOWER])
    with pytest.raises(ValueError, match="the product is zero"):
        tractability(np.array([[True, False]]), np.array([[False], [True]]))
    with pytest.raises(TypeError, match="Rule: boolean"):
        tractability(LOWER, np.eye(2))
