"""Verdicts on supports, against a search of its own: which limits there are, and which matrices are products."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations_with_replacement, permutations

import numpy as np
import pytest
import scipy.optimize
import torch

from flatwing import Chain, Pattern
from flatwing.structure import Support, Verdict, tractability, wellposedness
from flatwing.structure.closed import closed_because, rest_of
from flatwing.structure.diverging import Family, _only_matching, rank_family, window_family
from flatwing.structure.recognize import recognized

Box = tuple[int, int]
LOWER = np.tril(np.ones((2, 2), dtype=bool))


def supports_of(boxes: tuple[Box, ...]) -> tuple[np.ndarray, np.ndarray]:
    bits = [[box[side] >> place & 1 for place in range(3)] for side in (0, 1) for box in boxes]
    both = np.array(bits, dtype=bool).reshape(2, len(boxes), 3)
    return both[0].T, both[1]


@cache
def catalogue() -> tuple[tuple[Box, ...], ...]:
    """All supports (3, r) and (r, 3) with r <= 3, up to the order of rows, columns and inner indices.

    A smaller matrix is one with rows or columns that nothing reaches.
    """
    moves = [[sum(1 << p[b] for b in range(3) if s >> b & 1) for s in range(8)] for p in permutations(range(3))]
    boxes = [(rows, columns) for rows in range(1, 8) for columns in range(1, 8)]
    found = set()
    for r in (1, 2, 3):
        for some in combinations_with_replacement(boxes, r):
            if some[0][0] in (1, 3, 7):  # rows can be ordered so
                found.add(min(tuple(sorted((p[a], q[b]) for a, b in some)) for p in moves for q in moves))
    return tuple(sorted(found, key=lambda one: (len(one), one)))


@cache
def verdicts() -> dict[tuple[Box, ...], Verdict]:
    return {boxes: wellposedness(*supports_of(boxes)) for boxes in catalogue()}


def zero_patterns(boxes: tuple[Box, ...]) -> set[int]:
    """Zero patterns (bit 3 i + j) that a product might have: where it is 0, no product of entries stands alone."""
    parts = [
        [
            (a, b)
            for a in range(8)
            for b in range(8)
            if a | rows == rows and b | columns == columns and (a > 0) == (b > 0)
        ]
        for rows, columns in boxes
    ]
    counts = {(0,) * 9}
    for some in parts:
        grids = [tuple(a >> i & b >> j & 1 for i in range(3) for j in range(3)) for a, b in some]
        counts = {tuple(min(x + y, 2) for x, y in zip(c, g, strict=True)) for c in counts for g in grids}
    found = set()
    for count in counts:
        sure = sum(1 << place for place, k in enumerate(count) if k == 1)
        open_places = [place for place, k in enumerate(count) if k == 2]
        for choice in range(1 << len(open_places)):
            found.add(sure | sum(1 << place for b, place in enumerate(open_places) if choice >> b & 1))
    return found


def descend(A: np.ndarray, S: np.ndarray, T: np.ndarray, seed: int, tolerance: float = 1e-8) -> tuple[float, float]:
    """Error and norm where least squares ends from random factors."""
    count = int(S.sum())

    def factors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X, Y = np.zeros(S.shape), np.zeros(T.shape)
        X[S], Y[T] = values[:count], values[count:]
        return X, Y

    def residual(values: np.ndarray) -> np.ndarray:
        X, Y = factors(values)
        return (X @ Y - A).ravel()

    first = np.random.default_rng(seed).standard_normal(count + int(T.sum()))
    method = "trf" if A.size < len(first) else "lm"
    ends = dict.fromkeys(("xtol", "ftol", "gtol"), tolerance)
    with np.errstate(all="ignore"):  # of a step to nowhere, at the end
        done = scipy.optimize.least_squares(residual, first, method=method, max_nfev=300, **ends)
    X, Y = factors(done.x)
    return float(np.linalg.norm(residual(done.x))), float(np.linalg.norm(X) + np.linalg.norm(Y))


def test_the_catalogue_and_how_many_are_undecided() -> None:
    assert len(catalogue()) == 1135
    count = {status: sum(v.status == status for v in verdicts().values()) for status in ("closed", "not closed")}
    assert count == {"closed": 832, "not closed": 293}, "10 are undecided"


def test_families_run_away_on_their_supports_to_their_limit() -> None:
    for boxes, verdict in verdicts().items():
        assert (verdict.family is not None) == (verdict.status == "not closed")
        if verdict.family is None:
            continue
        S, T = supports_of(boxes)
        assert set(np.unique(verdict.family.limit)) <= {-1.0, 0.0, 1.0}
        for eps, error, norm in verdict.family.table:
            X, Y = verdict.family(eps)
            assert not X[~S].any()
            assert not Y[~T].any()
            assert np.linalg.norm(X @ Y - verdict.family.limit) == error
            assert error < 4 * eps**2
            assert 2.8 / eps < norm < 6 / eps


def test_limits_are_not_attained_by_zero_pattern_or_by_rank() -> None:
    """A check of the proofs that shares no code with them: all patterns of the whole, and descents for the rest."""
    by_pattern, others = 0, []
    for boxes, verdict in verdicts().items():
        if verdict.family is None:
            continue
        pattern = sum(1 << int(place) for place in np.flatnonzero(verdict.family.limit))
        if pattern in zero_patterns(boxes):
            others.append((boxes, verdict.family.limit))
        else:
            by_pattern += 1
    assert by_pattern >= 280
    for boxes, limit in others:
        S, T = supports_of(boxes)
        for seed in range(5):
            error, norm = descend(limit, S, T, seed)
            assert error > 1e-9 or norm > 100, (boxes, error, norm)  # no bounded factors


def curves(boxes: tuple[Box, ...]) -> set[int]:
    """Zero patterns of limits of two inner indices that cancel in one entry, any others being 0 or constant 0/1."""
    found = set()
    for a, (rows, columns) in enumerate(boxes):
        for b, (more_rows, more_columns) in enumerate(boxes):
            if a < b:
                for i in range(3):
                    for j in range(3):
                        if rows >> i & more_rows >> i & columns >> j & more_columns >> j & 1:
                            w = [s for s in range(3) if (rows | more_rows) >> s & 1]
                            z = [t for t in range(3) if (columns | more_columns) >> t & 1 and t != j]
                            places = [3 * s + j for s in w] + [3 * i + t for t in z]
                            for choice in range(1 << len(places)):
                                found.add(sum(1 << p for n, p in enumerate(places) if choice >> n & 1))
    return found


def test_closed_verdicts_stand_against_a_search_for_limits() -> None:
    """No limit of two inner indices that cancel, of a pattern that no product has, on supports called closed."""
    for boxes, verdict in verdicts().items():
        if verdict.closed:
            assert curves(boxes) <= zero_patterns(boxes), boxes


def test_closed_verdicts_stand_against_descents() -> None:
    """0/1 matrices nearest to some product: descents end at bounded factors, or do not reach them at all."""
    closed = [boxes for boxes, verdict in verdicts().items() if verdict.closed]
    generator = np.random.default_rng(5)
    for boxes in generator.permutation(np.arange(len(closed)))[:60]:
        S, T = supports_of(closed[int(boxes)])
        reach = S.astype(int) @ T.astype(int) > 0
        for seed in range(3):
            A = (generator.random((3, 3)) < 0.6) * reach * 1.0
            ends = [descend(A, S, T, start) for start in range(6)]
            best = min(error for error, _ in ends)
            assert min(norm for error, norm in ends if error <= best + 1e-7) < 100, (closed[int(boxes)], A, ends, seed)


def test_the_lu_example() -> None:
    verdict = wellposedness(LOWER, LOWER.T)
    assert verdict.status == "not closed"
    family = verdict.family
    assert family is not None
    assert np.array_equal(family.limit, [[0, 1], [1, 0]])
    X, Y = family(0.01)
    assert np.allclose(X, [[0.01, 0], [100, -100]])
    assert np.allclose(Y, [[0.01, 100], [0, 100]])
    for eps, error, norm in family.table:
        assert error == pytest.approx(eps**2)
        assert norm == pytest.approx(2 * np.sqrt(2) / eps, rel=5e-3)
    assert "X[0,0] Y[0,0] = 0, but X[0,0] Y[0,1] = 1 and X[1,0] Y[0,0] = 1" in str(verdict)
    assert "eps 1e-04: error 1e-08, norms 2.828e+04" in str(verdict)
    assert np.array_equal(verdict.cells, [[True, True], [True, False]])


@pytest.mark.parametrize("n", [3, 5])
def test_lu_of_any_size_is_not_closed(n: int) -> None:
    lower = np.tril(np.ones((n, n), dtype=bool))
    assert wellposedness(lower, lower.T).status == "not closed"


def test_rank_families_of_several_inner_indices() -> None:
    """All entries of rank 2 but one, which another inner index holds: no limit of too high a rank is a product."""
    S, T = np.ones((4, 3), dtype=bool), np.ones((3, 4), dtype=bool)
    S[:, 2] = [0, 0, 0, 1]
    T[2] = [0, 0, 0, 1]
    verdict = wellposedness(S, T)
    assert verdict.status == "not closed"
    assert verdict.family is not None
    assert np.linalg.matrix_rank(verdict.family.limit) == 3
    assert "the 3 ones are the only matching" in verdict.family.proof
    rows = verdict.family.limit.any(1) * np.arange(1, 5)
    assert 4 in rows, "the free entry is part of the proof"


def test_proofs_hold_beside_free_entries() -> None:
    """Where other values of the free entry do not change the determinant: it is 1 for any of them."""
    S, T = np.ones((3, 3), dtype=bool), np.ones((3, 3), dtype=bool)
    S[:, 2], T[2] = [0, 0, 1], [0, 0, 1]
    family = wellposedness(S, T).family
    assert family is not None
    for value in (-3.0, 0.0, 7.5):
        A = family.limit.copy()
        A[2, 2] = value
        assert abs(np.linalg.det(A)) == pytest.approx(1)


def test_a_second_matching_is_no_proof() -> None:
    """Where others reach (0,1) and (1,0), they can undo the determinant of ones at (0,0) and (1,1)."""
    own = np.ones((3, 3), dtype=bool)
    own[1, 0] = False
    assert _only_matching(own, [(0, 0), (1, 1), (2, 2)])
    own[0, 1] = False
    assert not _only_matching(own, [(0, 0), (1, 1), (2, 2)])
    own[0, 1], own[2, 1], own[0, 2] = True, False, False  # a cycle of three
    assert not _only_matching(own, [(0, 0), (1, 1), (2, 2)])


def test_reasons_to_be_closed() -> None:
    ones = np.ones((4, 4), dtype=bool)
    assert "disjoint or equal" in wellposedness(ones[:, :2], ones[:2]).reason
    single = np.array([[True, False, True]])
    assert "single output row" in wellposedness(single, np.tril(ones)[1:]).reason
    assert "single output column" in wellposedness(np.tril(ones)[:, 1:], single.T).reason
    assert wellposedness([ones]).reason.startswith("one factor")
    # nested columns on equal rows: rank conditions of nested blocks
    nested = wellposedness(np.ones((3, 2), dtype=bool), np.array([[True, True, True, False], [True] * 4]))
    assert (nested.status, "nested" in nested.reason) == ("closed", True)
    # two inner indices cross: [[x, v], [w, 0]] of rank 2
    cross = wellposedness(np.array([[1, 1], [1, 1], [0, 1]], dtype=bool), np.array([[1, 1, 1], [1, 1, 0]], dtype=bool))
    assert cross.status == "closed"
    # three inner indices on pairs of columns: two generic ones for each column
    pairs = wellposedness(np.ones((2, 3), dtype=bool), ~np.eye(3, dtype=bool))
    assert (pairs.status, "every matrix" in pairs.reason) == ("closed", True)


def taken_pairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Supports on which everything is attained, as long as columns of A may be put into columns of X."""
    generator = np.random.default_rng(4)
    pairs = [supports_of(boxes) for boxes in catalogue()]
    for _ in range(300):
        m, r, n = generator.integers(2, 6, 3)
        S, T = generator.random((m, r)) < 0.7, generator.random((r, n)) < 0.7
        if (S.any(0) & T.any(1)).any():
            pairs.append((S, T))
    pairs = [pair for pair in pairs if not rest_of(tractability(*pair)).pieces]
    with monkeypatch.context() as without:
        without.setattr("flatwing.structure.closed.MOST_TAKEN", 0)
        return [pair for pair in pairs if rest_of(tractability(*pair)).pieces]


def test_columns_of_a_that_become_columns_of_x(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descents reach all kinds of matrices: with zeros, of low rank, with equal columns."""
    S = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 0]], dtype=bool)
    T = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0]], dtype=bool)
    assert wellposedness(S, T).reason == "every matrix on the entries that X Y reaches is attained"
    pairs = taken_pairs(monkeypatch)
    assert len(pairs) > 60
    generator = np.random.default_rng(3)
    for S, T in pairs[::2]:
        reach = S.astype(int) @ T.astype(int) > 0
        m, n = reach.shape
        low = np.outer(generator.standard_normal(m), generator.standard_normal(n))
        equal = generator.standard_normal((m, n))
        equal[:, 0] = equal[:, -1]
        for A in (generator.integers(-1, 2, (m, n)) * 1.0, low, equal, (generator.random((m, n)) < 0.5) * 1.0):
            error = min(iter_until(lambda seed, A=A * reach, S=S, T=T: descend(A, S, T, seed, 1e-15)[0], 40))
            assert error < 1e-12, (S, T, A * reach)


def iter_until(error_of: Callable[[int], float], most: int) -> Iterator[float]:
    """Errors of descents from other and other starts, up to the first that is nothing but rounding."""
    for seed in range(most):
        yield (error := error_of(seed))
        if error < 1e-12:
            return


def test_what_a_column_of_a_may_be_is_no_help() -> None:
    """The one inner index takes a column of A; another column needs an entry of it that may be zero."""
    assert wellposedness(LOWER, LOWER.T).status == "not closed"
    three = np.array([[1, 1], [1, 1], [1, 1]], dtype=bool), np.array([[1, 1, 0], [0, 1, 1]], dtype=bool)
    assert wellposedness(*three).status == "not closed"


def test_neighbours_that_share_a_column_are_not_closed() -> None:
    """[x, x b + y c, y]: as y tends to x the middle becomes anything."""
    verdict = wellposedness(np.ones((2, 2), dtype=bool), np.array([[True, True, False], [False, True, True]]))
    assert verdict.status == "not closed"
    assert verdict.family is not None
    assert "all of them were gone through" in verdict.family.proof
    assert np.linalg.matrix_rank(verdict.family.limit) == 2


def test_undecided_says_what_was_tried() -> None:
    undecided = [verdict for verdict in verdicts().values() if verdict.status == "undecided"]
    verdict = undecided[0]
    assert len(verdict.tried) == 3
    assert str(verdict).count("tried:") == 3
    assert not verdict.closed
    assert verdict.cells is not None
    assert verdict.cells.any()


def test_verdicts_do_not_depend_on_order_or_transposition() -> None:
    generator = np.random.default_rng(0)
    for _ in range(8):
        S, T = generator.random((4, 3)) < 0.6, generator.random((3, 4)) < 0.6
        status = wellposedness(S, T).status
        rows, inner, columns = map(generator.permutation, (4, 3, 4))
        assert wellposedness(S[rows][:, inner], T[inner][:, columns]).status == status
        assert wellposedness(T.T, S.T).status == status


def test_chains() -> None:
    chain = Chain.butterfly(16)
    verdict = wellposedness(chain)
    assert verdict.closed
    assert f"chain, {chain}" in verdict.reason
    assert [pair.status for pair in verdict.pairs] == ["closed"] * 3
    assert wellposedness(chain.T).closed
    assert wellposedness(Chain.monarch(12, 20, blocks=4)).closed
    masks = [Support(pattern).mask for pattern in chain]
    assert wellposedness(masks).reason == verdict.reason
    assert wellposedness(*masks).reason == verdict.reason


def test_more_factors() -> None:
    ones = np.ones((2, 2), dtype=bool)
    two = wellposedness(LOWER, LOWER.T, np.eye(2, dtype=bool))  # a diagonal: LU still
    assert (two.status, len(two.pairs)) == ("not closed", 2)
    assert two.family is not None
    assert "3 factors that act as 2" in two.reason
    assert wellposedness(LOWER, LOWER.T, ones).closed, "the last two make everything"
    assert wellposedness(ones, ones, LOWER).closed, "the first two make everything"
    four = wellposedness(LOWER, LOWER.T, LOWER, LOWER.T)
    assert [pair.status for pair in four.pairs] == ["not closed"] * 3
    assert four.status == "undecided"
    assert "factors 0 and 1, 1 and 2, 2 and 3" in four.reason
    assert "factors 1 and 2: not closed" in str(four)


def test_patterns_are_recognized() -> None:
    for pattern in [Pattern(1, 1, 1, 1), Pattern(2, 3, 2, 4), Pattern(3, 1, 2, 1), Pattern(1, 2, 1, 5)]:
        assert recognized(Support(pattern)) == pattern
    assert recognized(Support(np.eye(4, dtype=bool))) == Pattern(4, 1, 1, 1)
    for mask in (LOWER, [[False, True], [True, False]], [[True, True, False], [True, False, True]]):
        assert recognized(Support(np.array(mask))) is None


def test_sides_of_pieces_are_chosen_together() -> None:
    """Three that overlap: any two could be normalized, not all three."""
    S = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]], dtype=bool)
    T = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool)
    rest = rest_of(tractability(S, T))
    reason, pieces = closed_because(rest)
    verdict = wellposedness(S, T)
    assert (reason == "") == (len(pieces) > 0)
    assert verdict.closed == bool(reason)


def test_searches_alone() -> None:
    rest = rest_of(tractability(LOWER, LOWER.T))
    left, right = Support(LOWER), Support(LOWER.T)
    assert rank_family(rest, left, right) is not None
    found, windows = window_family(rest, left, right)
    assert (found, windows) == (None, 0), "one piece is no meeting of two"


def test_large_supports_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatwing.structure.wellposed.LARGEST", 10)
    assert wellposedness(np.ones((3, 9), dtype=bool), np.ones((9, 3), dtype=bool)).closed, "one class of 9 entries"
    lower = np.tril(np.ones((3, 3), dtype=bool))
    verdict = wellposedness(lower, lower.T)
    assert (verdict.status, verdict.reason.split(",")[0]) == ("undecided", "14 entries in different classes")


@pytest.mark.parametrize("eps", [0.0, 1.0, -0.1, float("nan")])
def test_eps_is_small_and_positive(eps: float) -> None:
    family = wellposedness(LOWER, LOWER.T).family
    assert isinstance(family, Family)
    with pytest.raises(ValueError, match=r"eps is .* Rule: a number, above 0 and below 1"):
        family(eps)


def test_one_argument_may_hold_all_masks() -> None:
    wanted = str(wellposedness(LOWER, LOWER.T))
    both = np.array([LOWER, LOWER.T])
    masks = {"S1": LOWER, "S2": LOWER.T}
    for given in (both, torch.from_numpy(both), (mask for mask in both), iter(both), masks.values()):
        assert str(wellposedness(given)) == wanted
    assert wellposedness(LOWER).reason.startswith("one factor")
    assert wellposedness(Pattern(1, 2, 2, 1)).reason.startswith("one factor")
    assert wellposedness(Support(LOWER)).closed


def test_bad_supports_are_refused() -> None:
    with pytest.raises(TypeError, match="support 0: the mask has dtype float64"):
        wellposedness(np.eye(2), LOWER)
    with pytest.raises(ValueError, match="columns need as many rows"):
        wellposedness(LOWER, np.ones((3, 2), dtype=bool))
    with pytest.raises(ValueError, match="allows no entry"):
        wellposedness(LOWER, np.zeros((2, 2), dtype=bool))
    with pytest.raises(ValueError, match="the product is zero"):
        wellposedness(np.array([[True, False]]), np.array([[False], [True]]))
    with pytest.raises(ValueError, match="there is no support"):
        wellposedness([])
    with pytest.raises(TypeError, match=r"the supports are a dict. Rule: .* wellposedness\(list\(masks.values"):
        wellposedness({"S1": LOWER, "S2": LOWER.T})
    with pytest.raises(ValueError, match=r"support 0: the mask has shape \(2,\)"):
        wellposedness(np.array([True, False]))
    assert wellposedness([torch.ones(2, 2) > 0, torch.ones(2, 3) > 0]).closed
