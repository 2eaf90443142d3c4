import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

from flatwing import Chain
from flatwing.core import as_matrix, as_permutation, from_numpy
from flatwing.structure.transforms import random_product

REAL = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "matrix",
    [
        REAL,
        REAL.tolist(),
        torch.tensor(REAL),
        REAL[::-1].copy()[::-1],
        REAL.astype(">f8"),
        np.asfortranarray(REAL),
        np.broadcast_to(REAL, (2, 3)),
    ],
    ids=["numpy", "nested", "torch", "reversed", "big endian", "Fortran", "read-only"],
)
def test_every_kind_of_matrix_is_read(matrix: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(as_matrix(matrix), torch.arange(6.0, dtype=torch.float64).reshape(2, 3))


def test_no_copy_if_it_can() -> None:
    tensor = torch.ones(2, 3)
    array = np.ones((2, 3))
    assert as_matrix(tensor).data_ptr() == tensor.data_ptr()
    assert as_matrix(array).data_ptr() == array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
        (torch.complex128, torch.complex128),
    ],
    ids=str,
)
def test_dtype_to_compute_in(given: torch.dtype, computed: torch.dtype) -> None:
    assert as_matrix(torch.ones(1, 2, dtype=given)).dtype == computed


def test_history_is_cut() -> None:
    assert not as_matrix(torch.ones(1, 2, requires_grad=True)).requires_grad


def test_batch_only_if_asked_for() -> None:
    stack = torch.ones(4, 2, 3)
    assert as_matrix(stack, batch=True).shape == (4, 2, 3)
    with pytest.raises(ValueError, match=r"B has shape \(4, 2, 3\)\. Rule: a matrix \(2 dimensions\)\. .*B\[i\]"):
        as_matrix(stack, "B")


@pytest.mark.parametrize("shape", [(), (3,)])
def test_rank_below_two(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"A has shape \(.*\)\. Rule: a matrix .* Write A\.reshape\(1, -1\)"):
        as_matrix(torch.ones(shape))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"A of shape \({shape[0]}, {shape[1]}\) is empty\. Rule: at least one row"):
        as_matrix(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn], ids=str)
def test_dtype_of_no_use(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=rf"A has dtype {name}\. Rule: .*floating-point matrix.* A\.double\(\)"):
        as_matrix(torch.ones(2, 2).to(dtype))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 2], [3, 4]], r"A has dtype int64.* A\.double\(\)"),
        ("text", r"A has dtype <U4\. Rule: .* dtype='float64'"),
        (None, r"A has dtype object\. Rule: .* dtype='float64'"),
        (np.ones((2, 2), np.longdouble), r"A has dtype \w+\. Rule: at most float64 or complex128"),
        (np.ones((2, 2), np.clongdouble), r"A has dtype \w+\. Rule: at most float64 or complex128"),
        (scipy.sparse.eye_array(2), r"A is a sparse dia_array\. Rule: a dense matrix; write A\.toarray\(\)"),
        (torch.eye(2).to_sparse(), r"A is a sparse tensor .* write A\.to_dense\(\)"),
        (random_product(Chain.dense(2, 2)), r"A is a sparse SparseProduct\. Rule: .* A\.dense\(\)"),
        ([torch.ones(2, requires_grad=True)], r"A is a list that numpy cannot read .* Rule: a torch tensor, a numpy"),
    ],
)
def test_kinds_of_no_use(matrix: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_matrix(matrix)


def test_ragged_rows() -> None:
    with pytest.raises(ValueError, match=r"A is ragged: .* Rule: rows of equal length"):
        as_matrix([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex128], ids=str)
def test_entries_that_are_not_finite_are_counted_and_found(bad: float, dtype: torch.dtype) -> None:
    matrix = torch.ones(3, 4, dtype=dtype)
    matrix[1, 2] = matrix[2, 0] = bad
    with pytest.raises(
        ValueError, match=r"A has 2 entries that are NaN or Inf, the first is .* at \(1, 2\)\. Rule: all"
    ):
        as_matrix(matrix)


def test_infinities_of_both_signs_do_not_hide() -> None:
    with pytest.raises(ValueError, match="A has 2 entries that are NaN or Inf"):
        as_matrix([[float("inf"), -float("inf")]])


def test_a_sum_that_overflows_is_no_error() -> None:
    assert as_matrix(np.full((2, 2), 1e308)).max() == 1e308


@pytest.mark.parametrize(
    "indices",
    [[2, 0, 1], (2, 0, 1), np.array([1, 0, 2])[::-1], torch.tensor([2, 0, 1], dtype=torch.uint8)],
    ids=["list", "tuple", "reversed numpy", "uint8"],
)
def test_permutations_are_read(indices: object) -> None:
    perm = as_permutation(indices, 3, "perm")
    assert perm.dtype == torch.int64
    assert perm.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1], r"p must be a permutation of 0\.\.2: 3 whole numbers, got shape \(2,\) of int64"),
        ([[0, 1, 2]], r"3 whole numbers, got shape \(1, 3\) of int64"),
        ([0.0, 1.0, 2.0], r"3 whole numbers, got shape \(3,\) of float32"),
        ([True, False, True], r"3 whole numbers, got shape \(3,\) of bool"),
        ([0, 1, 1], r"p must hold each of 0\.\.2 exactly once; it has 2 of them"),
        ([0, 1, 3], r"p must hold each of 0\.\.2 exactly once"),
        ([0, 1, -1], r"p must hold each of 0\.\.2 exactly once"),
        (None, r"p must be a permutation of 0\.\.2, got NoneType"),
        ("abc", r"p must be a permutation of 0\.\.2, got str"),
    ],
)
def test_what_is_no_permutation(indices: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_permutation(indices, 3, "p")


def test_from_numpy_shares_what_it_can() -> None:
    array = np.zeros(3)
    from_numpy(array)[1] = 5
    assert array.tolist() == [0, 5, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "array", [np.arange(4)[::-2], np.arange(3, dtype=">i4"), np.broadcast_to(np.int8(7), 3)], ids=str
)
def test_from_numpy_copies_what_torch_cannot_share(array: np.ndarray) -> None:
    assert from_numpy(array).tolist() == array.tolist()
