"""Each example is the matrix that it says it is, and has the chain that it says it has."""

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch

from flatwing.data import MATRICES
from flatwing.structure import SparseProduct, transforms


def test_names_are_frozen() -> None:
    names = "hadamard dft dct dst hartley smooth gaussian hilbert noisy-butterfly digits"
    assert list(MATRICES) == names.split()


@pytest.mark.parametrize("name", MATRICES)
def test_example_obeys_the_contract(name: str) -> None:
    example, again = MATRICES[name](16), MATRICES[name](16)
    assert example.name == name
    assert example.note
    assert example.matrix.dtype in (torch.float64, torch.complex128)
    assert torch.isfinite(example.matrix).all()
    assert torch.equal(example.matrix, again.matrix), "an example is the same each time"
    assert (example.perm == "none") == (example.perm_in is None)
    assert example.perm in ("none", "bitrev", "own")
    assert example.chain is None or example.chain.shape == tuple(example.matrix.shape)


@pytest.mark.parametrize("n", [2, 7, 12, 16, 60])
@pytest.mark.parametrize("name", ["dft", "dct", "dst", "hartley"])
def test_matrix_has_its_chain_after_reordering(name: str, n: int) -> None:
    known = {"dft": transforms.dft, "dct": transforms.dct2, "dst": transforms.dst2, "hartley": transforms.hartley}
    example, product = MATRICES[name](n), known[name](n)
    assert example.chain == product.chain
    core = SparseProduct(product.chain, product.factors).dense()
    torch.testing.assert_close(example.matrix[:, example.perm_in], core)


def test_matrices_are_those_of_scipy() -> None:
    n, eye = 24, np.eye(24)
    expected = {
        "dft": scipy.fft.fft(eye, axis=0),
        "dct": scipy.fft.dct(eye, axis=0) / 2,
        "dst": scipy.fft.dst(eye, axis=0) / 2,
        "hilbert": scipy.linalg.hilbert(n),
    }
    for name, matrix in expected.items():
        np.testing.assert_allclose(MATRICES[name](n).matrix.numpy(), matrix, atol=1e-13, err_msg=name)
    hartley = expected["dft"].real - expected["dft"].imag
    np.testing.assert_allclose(MATRICES["hartley"](n).matrix.numpy(), hartley, atol=1e-13)
    np.testing.assert_array_equal(MATRICES["hadamard"](32).matrix.numpy(), scipy.linalg.hadamard(32))


def test_bit_reversal_is_named_only_where_it_is_one() -> None:
    assert MATRICES["dft"](8).perm_in.tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert (MATRICES["dft"](8).perm, MATRICES["dft"](12).perm) == ("bitrev", "own")


def test_smooth_is_its_formula() -> None:
    matrix = MATRICES["smooth"](5).matrix
    assert matrix.diagonal().tolist() == [1] * 5
    assert matrix[0, 1].item() == pytest.approx(1 / 6)


def test_noise_is_one_percent() -> None:
    noisy = MATRICES["noisy-butterfly"](32)
    assert noisy.chain is not None
    clean = transforms.random_product(noisy.chain, generator=torch.Generator().manual_seed(0)).dense()
    assert ((noisy.matrix - clean).norm() / clean.norm()).item() == pytest.approx(0.01)


def test_examples_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    MATRICES["gaussian"](8), MATRICES["noisy-butterfly"](8)
    assert torch.equal(torch.get_rng_state(), before)


def test_digits_are_the_images_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    matrix = MATRICES["digits"]().matrix
    assert matrix.shape == (1792, 64)
    np.testing.assert_array_equal(matrix.numpy(), load_digits(return_X_y=True)[0][:1792])


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [
        ("hadamard", 63, r"n=63. Rule: a power of two. The nearest good value is 64"),
        ("noisy-butterfly", 20, r"n=20. Rule: a power of two. The nearest good value is 16"),
        ("dft", 1, r"n=1. Rule: 2 <= n <= 16384. The nearest good value is 2"),
        ("gaussian", -5, r"n=-5. Rule: 2 <= n <= 16384. The nearest good value is 2"),
        ("smooth", 10**9, r"The nearest good value is 16384"),
        ("digits", 1798, r"n=1798. Rule: 2 <= n <= 1797. The nearest good value is 1797"),
    ],
)
def test_bad_size_names_the_nearest_good_one(name: str, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MATRICES[name](n)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown example matrix 'hadamrd', did you mean 'hadamard'"):
        MATRICES["hadamrd"]
