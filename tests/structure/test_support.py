import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.utils.prune
from hypothesis import given
from hypothesis import strategies as st

from flatwing import Pattern
from flatwing.structure import Support
from flatwing.structure.support import as_supports, product_support
from strategies import as_user

masks = st.integers(1, 9).flatmap(
    lambda m: st.integers(1, 9).flatmap(
        lambda n: (
            st.lists(st.booleans(), min_size=m * n, max_size=m * n)
            .filter(any)
            .map(lambda bits: np.array(bits).reshape(m, n))
        )
    )
)


@given(masks)
def test_what_goes_in_comes_out(mask: np.ndarray) -> None:
    support = Support(mask)
    assert support.shape == mask.shape
    assert support.nnz == mask.sum()
    assert np.array_equal(support.array, mask)
    assert torch.equal(support.mask, torch.from_numpy(mask))
    assert support == support.T.T
    assert np.array_equal(support.T.array, mask.T)
    assert Support(torch.from_numpy(mask)) == Support(scipy.sparse.csr_array(mask * 2.5)) == support
    assert hash(Support(mask.copy())) == hash(support)


@given(masks, masks)
def test_union_and_order(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        assert not Support(first) <= Support(second)
        return
    a, b = Support(first), Support(second)
    assert np.array_equal((a | b).array, first | second)
    assert a <= (a | b)
    assert (a <= b) == bool((~first | second).all())


@given(masks)
def test_product_is_that_of_matrices_without_cancellation(mask: np.ndarray) -> None:
    support = Support(mask)
    assert np.array_equal((support @ support.T).array, mask.astype(int) @ mask.T.astype(int) > 0)


def test_pattern_is_a_support() -> None:
    pattern = Pattern(2, 3, 1, 2)
    support = Support(pattern)
    assert support.shape == pattern.shape
    assert support.nnz == pattern.nnz
    wanted = np.kron(np.eye(2), np.kron(np.ones((3, 1)), np.eye(2))) > 0
    assert np.array_equal(support.array, wanted)


def test_masks_of_pruned_modules() -> None:
    layer = torch.nn.Linear(4, 3)
    torch.nn.utils.prune.l1_unstructured(layer, "weight", amount=5)
    assert Support(layer.weight_mask.bool()).nnz == 7
    with pytest.raises(TypeError, match="non_zeros"):
        Support(layer.weight_mask)
    assert Support.non_zeros(layer.weight_mask).nnz == 7


def test_two_of_four_keeps_the_largest_and_breaks_ties_in_order() -> None:
    weights = torch.tensor([[1.0, -5, 2, 0, 0, 0, 0, 0], [1, 1, 1, 1, 9, 8, -7, 10]])
    assert Support.n_of_m(weights).array.astype(int).tolist() == [[0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 1]]
    with pytest.raises(ValueError, match="m divides the columns"):
        Support.n_of_m(weights, 2, 3)
    with pytest.raises(ValueError, match="1 <= n <= m"):
        Support.n_of_m(weights, 5, 4)
    with (
        as_user(),
        pytest.raises(ValueError, match=r"n is 1\.5\. Rule: a whole number, at least 1.* value: 2"),
    ):
        Support.n_of_m(weights, 1.5)
    with as_user(), pytest.raises(ValueError, match=r"m is 4\.0\. Rule: a whole number"):
        Support.n_of_m(weights, 2, 4.0)
    with pytest.raises(ValueError, match="the matrix has NaN entries"):
        Support.n_of_m(np.array([[1, np.nan, 3, 4]]))
    with pytest.raises(ValueError, match=r"2:4 for a shape of \(0, 4\)"):
        Support.n_of_m(np.ones((0, 4)))
    with pytest.raises(TypeError, match=r"the matrix has dtype <U1\. Rule: numbers"):
        Support.n_of_m([list("abcd")])


def test_blocks() -> None:
    support = Support.blocks(np.array([[True, False], [True, True]]), 2, 1)
    assert str(support) == "#.\n#.\n##\n##"
    with pytest.raises(ValueError, match=r"rows is 0\. Rule: a whole number, at least 1"):
        Support.blocks(np.eye(2, dtype=bool), 0, 1)


def test_entries_cannot_be_changed() -> None:
    support = Support(np.eye(2, dtype=bool))
    with pytest.raises(ValueError, match="read-only"):
        support.array[0, 1] = True
    support.mask[0, 1] = True
    assert support.nnz == 2


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (np.eye(2), TypeError, "dtype float64. Rule: boolean"),
        (np.eye(2, dtype=int), TypeError, "boolean"),
        (np.zeros((2, 2), dtype=bool), ValueError, "allows no entry"),
        (np.ones(3, dtype=bool), ValueError, "a matrix"),
        (np.ones((0, 3), dtype=bool), ValueError, "rows and columns"),
        (np.ones((2, 2, 2), dtype=bool), ValueError, "a matrix"),
        (None, TypeError, r"^the mask is a NoneType \(dtype object\)\. Rule: a boolean matrix: [^!]*$"),
        ("abc", TypeError, r"^the mask is a str \(dtype <U3\)\. Rule: a boolean matrix: [^!]*$"),
        ([[True, False], [True]], ValueError, "the mask has rows of different lengths"),
        (torch.ones(2, 2, device="meta") > 0, TypeError, r"the mask is a meta tensor \(2, 2\), without values"),
    ],
)
def test_bad_masks_are_refused(mask: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Support(mask)


def test_weights_without_values_are_refused_by_name() -> None:
    weights = torch.empty(4, 8, device="meta")
    for work in (Support.n_of_m, Support.non_zeros):
        with pytest.raises(TypeError, match=r"the matrix is a meta tensor \(4, 8\), without values\. Rule: values"):
            work(weights)
    with pytest.raises(TypeError, match="support 1: the mask is a meta tensor"):
        as_supports([np.ones((4, 4), dtype=bool), weights > 0])
    with pytest.raises(ValueError, match="the matrix has rows of different lengths"):
        Support.non_zeros([[1.0, 2.0], [3.0]])


def test_nan_is_no_support() -> None:
    with pytest.raises(ValueError, match="NaN"):
        Support.non_zeros(np.array([[np.nan]]))


def test_supports_of_a_product_fit() -> None:
    wide = np.ones((2, 5), dtype=bool)
    with pytest.raises(ValueError, match=r"support 0 is \(2, 5\), support 1 is \(2, 5\)"):
        as_supports([wide, wide])
    with pytest.raises(TypeError, match="support 1: the mask has dtype"):
        as_supports([wide, np.ones((5, 2))])
    with pytest.raises(ValueError, match="no support"):
        as_supports([])
    with pytest.raises(ValueError, match="do not multiply"):
        Support(wide) @ Support(wide)
    assert product_support(as_supports([wide, wide.T, wide])) == Support(wide)


def test_dtypes_that_numpy_does_not_have() -> None:
    weights = torch.tensor([[0.0, 1.5], [-2.0, 0.0]])
    assert Support.non_zeros(weights.bfloat16()) == Support.non_zeros(weights)
    with pytest.raises(TypeError, match="to_dense"):
        Support((weights != 0).to_sparse())


def test_unions_are_of_equal_shapes() -> None:
    with pytest.raises(ValueError, match="no union"):
        Support(np.ones((2, 2), dtype=bool)) | Support(np.ones((1, 2), dtype=bool))


def test_other_kinds_are_refused_by_name() -> None:
    support = Support(np.eye(2) > 0)
    for work in (lambda: support @ 3, lambda: support | 3, lambda: support <= 3):
        with as_user(), pytest.raises(TypeError, match="Support"):
            work()
    with pytest.raises(TypeError, match=r"the matrix has dtype object\. Rule: numbers"):
        Support.non_zeros(None)
    with as_user(), pytest.raises(ValueError, match=r"rows is 1\.5\. Rule: a whole number"):
        Support.blocks(np.eye(2) > 0, 1.5, 2)
