"""Contract kit over the registry of projections, and their text."""

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
import torch

from flatwing import Pattern
from flatwing.factorize import PROJECTIONS, Projection
from flatwing.factorize.projections import parse_projections, projections_of
from flatwing.structure import Support

SQUARE, WIDE = (4, 4), (2, 4)
MASK = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]) > 0
# every registered name, with arguments for a 4 x 4 matrix; more than one where arguments change what is done
EXAMPLES = {
    "sp": ["sp(5)"],
    "splin": ["splin(2)"],
    "spcol": ["spcol(1)"],
    "splincol": ["splincol(1)"],
    "skperm": ["skperm(1)", "skperm(2)"],
    "nm": ["nm(1,2)", "nm(2,4)"],
    "block": ["block(2,2,1)"],
    "supp": [MASK],
    "blockdiag": ["blockdiag(2)"],
    "tril": ["tril"],
    "triu": ["triu"],
    "circ": ["circ"],
    "anticirc": ["anticirc"],
    "toeplitz": ["toeplitz"],
    "hankel": ["hankel"],
    "normcol": ["normcol"],
    "normlin": ["normlin"],
    "const": [torch.arange(1.0, 17).reshape(4, 4)],
    "id": ["id"],
}
ALL = [pytest.param(Projection.of(what), id=str(Projection.of(what))) for many in EXAMPLES.values() for what in many]
DTYPES = (torch.float32, torch.float64, torch.complex128)


def test_every_projection_has_an_example() -> None:
    assert list(EXAMPLES) == list(PROJECTIONS)
    assert all(Projection.of(what).name == name for name, many in EXAMPLES.items() for what in many)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("one", ALL)
def test_norm_is_one_and_what_is_in_the_set_stays(one: Projection, dtype: torch.dtype) -> None:
    matrix = torch.randn(SQUARE, dtype=dtype)
    kept = matrix.clone()
    found = one(matrix)
    assert torch.equal(matrix, kept)
    assert found.dtype == dtype
    assert float(torch.linalg.vector_norm(found)) == pytest.approx(1, rel=1e-6)
    torch.testing.assert_close(one(found), found)
    torch.testing.assert_close(one.set(one.set(matrix)), one.set(matrix))


@pytest.mark.parametrize("one", ALL)
def test_scale_and_phase_of_the_matrix_do_not_matter(one: Projection) -> None:
    matrix = torch.randn(SQUARE, dtype=torch.complex128)
    torch.testing.assert_close(one(7 * matrix), one(matrix))
    if one.name not in ("const", "normcol", "normlin"):
        torch.testing.assert_close(one(1j * matrix), 1j * one(matrix))


@pytest.mark.parametrize("one", ALL)
def test_ties_and_zero_are_decided_the_same_way_each_time(one: Projection) -> None:
    for matrix in (torch.ones(SQUARE), torch.zeros(SQUARE)):
        found = one(matrix)
        assert torch.equal(found, one(matrix.clone()))
        assert float(torch.linalg.vector_norm(found)) == pytest.approx(1)
        assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("one", ALL)
def test_support_holds_every_matrix_of_the_set(one: Projection) -> None:
    support = one.support(SQUARE)
    for _ in range(5):
        assert Support.non_zeros(one(torch.randn(SQUARE))) <= support
    assert (support.nnz < 16) == (one.name in ("supp", "blockdiag", "tril", "triu"))


def masks_of(one: Projection, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Every support of the set, by its definition: brute force."""
    m, n = shape
    name, numbers = one.name, one.arguments
    if one.rule.fixed:
        yield one.support(shape).array.copy()
        return
    lines = {"splin": (m, n), "spcol": (n, m)}
    if name in lines:
        count, length = lines[name]
        rows = [[i in chosen for i in range(length)] for chosen in combinations(range(length), numbers[0])]
        for chosen in product(rows, repeat=count):
            mask = np.array(chosen)
            yield mask if name == "splin" else mask.T
        return
    if name == "nm":
        k, size = numbers
        groups = [[i in chosen for i in range(size)] for chosen in combinations(range(size), k)]
        for chosen in product(groups, repeat=m * n // size):
            yield np.array(chosen).reshape(shape)
        return
    if name == "block":
        k, rows, columns = numbers
        grid = (m // rows, n // columns)
        for chosen in combinations(range(grid[0] * grid[1]), k):
            yield np.kron(np.isin(np.arange(grid[0] * grid[1]), chosen).reshape(grid), np.ones((rows, columns))) > 0
        return
    entries = {"sp": numbers[0], "skperm": numbers[0] * n}[name] if numbers else m * n
    for chosen in combinations(range(m * n), entries):
        mask = np.isin(np.arange(m * n), chosen).reshape(shape)
        if name == "sp" or ((mask.sum(0) == numbers[0]).all() and (mask.sum(1) == numbers[0]).all()):
            yield mask


ENTRIES = ["sp(3)", "splin(2)", "spcol(1)", "skperm(1)", "skperm(2)", "nm(1,2)", "block(2,1,2)", "blockdiag(2)"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("text", [*ENTRIES, "tril", "triu", "id"])
def test_no_support_holds_more(text: str, dtype: torch.dtype) -> None:
    one = Projection.of(text)
    shape = (3, 3) if one.name == "skperm" else WIDE if one.name in ("nm", "block", "splin") else (4, 2)
    energies = torch.randn(shape, dtype=dtype).abs().square()
    best = max(float(energies[torch.from_numpy(mask)].sum()) for mask in masks_of(one, shape))
    kept = one.set(energies.sqrt().to(dtype))
    assert float(kept.abs().square().sum()) == pytest.approx(best, rel=1e-12)
    assert any(np.array_equal(mask | (kept != 0).numpy(), mask) for mask in masks_of(one, shape))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("circ", lambda i, j: (i - j) % 4),
        ("anticirc", lambda i, j: (i + j) % 4),
        ("toeplitz", lambda i, j: i - j),
        ("hankel", lambda i, j: i + j),
    ],
)
def test_structured_ones_are_least_squares(text: str, label) -> None:
    labels = np.array([[label(i, j) for j in range(4)] for i in range(4)])
    basis = np.stack([(labels == value).reshape(-1) for value in np.unique(labels)], axis=1).astype(float)
    matrix = torch.randn(4, 4, dtype=torch.float64)
    wanted = basis @ np.linalg.lstsq(basis, matrix.numpy().reshape(-1))[0]
    np.testing.assert_allclose(Projection.of(text).set(matrix).numpy().reshape(-1), wanted, atol=1e-12)


def test_equal_norms_are_nearest() -> None:
    matrix = torch.randn(5, 3, dtype=torch.float64)
    found = Projection.of("normcol")(matrix)
    norms = torch.linalg.vector_norm(found, dim=0)
    torch.testing.assert_close(norms, torch.full_like(norms, 3**-0.5))
    # no other matrix with columns of this norm has a larger product with the given one
    for _ in range(200):
        other = torch.randn(5, 3, dtype=torch.float64)
        other = other / torch.linalg.vector_norm(other, dim=0) * 3**-0.5
        assert float((other * matrix).sum()) <= float((found * matrix).sum())
    torch.testing.assert_close(Projection.of("normlin")(matrix.T), found.T)


def test_rows_or_columns() -> None:
    matrix = torch.tensor([[9.0, 8, 1], [7, 2, 3], [6, 4, 5]])
    kept = Projection.of("splincol(1)").set(matrix) != 0
    assert kept.tolist() == [[True, True, False], [True, False, False], [True, False, True]]
    assert not PROJECTIONS["splincol"].closest


def test_of_equal_entries_the_first_stay() -> None:
    ones = torch.ones(2, 3)
    assert Projection.of("sp(4)").set(ones).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert Projection.of("splin(2)").set(ones).tolist() == [[1, 1, 0], [1, 1, 0]]
    assert Projection.of("spcol(1)").set(ones).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert Projection.of("block(1,2,1)").set(ones).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_more_than_there_is_keeps_all() -> None:
    matrix = torch.randn(3, 3)
    for text in ("sp(99)", "splin(9)", "spcol(9)", "splincol(3)", "skperm(9)"):
        assert torch.equal(Projection.of(text).set(matrix), matrix), text


def test_text() -> None:
    found = parse_projections(" spcol(2)*2splin( 3 ), nm(2,4); id tril *2")
    assert [str(one) for one in found] == ["spcol(2)", "spcol(2)", "splin(3)", "nm(2,4)", "id", "tril", "tril"]
    assert parse_projections(" ".join(map(str, found))) == found


def test_what_stands_for_a_projection() -> None:
    pattern = Pattern(2, 1, 2, 1)
    found = projections_of([pattern, MASK.numpy(), Support(MASK), "sp(3)", Projection("id"), 2 * np.ones((2, 3))])
    assert [one.name for one in found] == ["supp", "supp", "supp", "sp", "id", "const"]
    assert [one.shape for one in found] == [(2, 4), (4, 4), (4, 4), None, None, (2, 3)]
    assert [str(one) for one in found][0::5] == ["supp(2x4)", "const(2x3)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spcl(2)", "unknown projection 'spcl', did you mean 'spcol'"),
        ("spcol", r"'spcol' does not fit spcol\(k\)"),
        ("nm(2)", r"'nm\(2\)' does not fit nm\(n, m\)"),
        ("tril(2)", r"'tril\(2\)' does not fit tril\. Rule"),
        ("sp(0)", r"'sp\(0\)' does not fit sp\(k\)\. Rule: whole numbers >= 1"),
        ("sp(2)*0", "does not fit sp"),
        ("sp(2) + id", r"'\+ id' in 'sp\(2\) \+ id' is no projection"),
        ("sp(-1)", r"does not fit sp\(k\)"),
        ("sp(1.5)*2", r"'sp\(1\.5\)\*2' does not fit sp\(k\)"),
        ("sp(2)*2.5", r"'sp\(2\)\*2\.5' does not fit sp\(k\)"),
        ("sp(4", r"'sp\(4' does not fit sp\(k\)"),
        ("SP(4)", "unknown projection 'SP'"),
        ("sp(4)*99999999", "holds more than 1000 projections"),
        ("supp", "'supp' takes no text"),
        ("", "holds no projection"),
        ("sp(2) sp(2)", "holds 2 projections. Rule: one"),
    ],
)
def test_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Projection.of(text)


def test_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no projection"):
        projections_of([])
    with pytest.raises(TypeError, match=r"projections are a Tensor\. Rule: a list"):
        projections_of(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"projection 0: the constant has 1 entries that are NaN"):
        projections_of([np.array([[np.nan]])])


@pytest.mark.parametrize(
    ("what", "shape", "message"),
    [
        ("nm(2,4)", (4, 6), "1 | 4 and 4 | 6"),
        ("block(1,2,2)", (3, 4), "2 | 3"),
        ("blockdiag(3)", (3, 4), "3 | 4"),
        ("circ", (3, 4), "circ of 3 x 4. Rule: a square factor"),
        ("skperm(1)", (3, 4), "square"),
        (MASK, (3, 4), r"a support of \(4, 4\) for a factor of \(3, 4\)"),
        (torch.randn(2, 2), (3, 4), r"a constant of \(2, 2\) for a factor of \(3, 4\)"),
    ],
)
def test_sizes_that_do_not_fit(what, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Projection.of(what)(torch.ones(shape))


def test_rules_speak_for_themselves() -> None:
    assert PROJECTIONS["nm"].parameters == ("n", "m")
    assert PROJECTIONS["sp"].summary == "The k largest entries."
    assert all(rule.summary.endswith(".") for rule in PROJECTIONS.values())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64, torch.complex64], ids=str)
def test_zeros_and_ones_that_are_not_boolean_could_be_either(kind: torch.dtype) -> None:
    mask = torch.eye(3).to(kind)
    with pytest.raises(
        TypeError, match=r"projection 1: a matrix of \(3, 3\), torch\.\w+, has only zeros and ones\. Rule"
    ):
        projections_of(["id", mask])
    assert Projection.of(mask != 0).name == "supp"
    if kind != torch.int64:
        assert Projection("const", (mask,)).name == "const"


def test_what_stands_for_no_projection() -> None:
    with pytest.raises(TypeError, match=r"projection 0: None is no projection\. Rule: a text such as"):
        projections_of([None])
    with pytest.raises(TypeError, match=r"projection 0: \['sp\(3\)'\] is no projection"):
        projections_of([["sp(3)"]])
    for single in (np.ones((2, 2), bool), Support(np.ones((2, 2), bool)), {"sp(3)": 1}, None):
        with pytest.raises(TypeError, match=r"projections are a \w+\. Rule: a list, one per factor"):
            projections_of(single)


def test_arguments_are_checked_however_they_come() -> None:
    with pytest.raises(ValueError, match=r"sp has arguments \(\)\. Rule: sp\(k\)"):
        Projection("sp")
    with pytest.raises(ValueError, match=r"k is 1\.5\. Rule: a whole number"):
        Projection("sp", (1.5,))
    with pytest.raises(ValueError, match="unknown projection 'spp'"):
        Projection("spp", (1,))
    with pytest.raises(ValueError, match=r"the constant is zero everywhere\. Rule: an entry that is not zero"):
        Projection("const", (np.zeros((2, 2)),))
    assert Projection("supp", (np.eye(2) > 0,)) == Projection.of(np.eye(2) > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sizes_that_only_rounding_tells_apart_are_equal(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    row = torch.tensor([[1, 1 + 8 * eps, 1 + 500 * eps, 1 + 16 * eps]], dtype=dtype)
    assert (Projection.of("splin(2)").set(row) != 0).tolist() == [[True, False, True, False]]
    assert (Projection.of("splin(3)").set(row) != 0).tolist() == [[True, True, True, False]]
    assert (Projection.of("splin(1)").set(row) != 0).tolist() == [[False, False, True, False]]
