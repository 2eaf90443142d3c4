"""`choose`: chains that meet what they promise, the numbers known for them, and refusals."""

from itertools import product

import pytest
import torch

from cases import by_formula, noisy
from flatwing import Chain, Choice, choose, factorize
from flatwing.structure import transforms
from strategies import as_user


def kernel(n: int) -> torch.Tensor:
    x = torch.arange(n).double() / n
    return 1 / (1 + 20 * (x[:, None] - x).abs())


def check_promise(A: torch.Tensor, choice: Choice, order: str = "l2r") -> float:
    error = factorize(A, choice.chain, order=order, perm=choice.perm).certificate.error
    assert error <= choice.bound * (1 + 1e-6) + 1e-7
    return error


def test_hadamard_is_a_chain_of_radix_four() -> None:
    A = transforms.hadamard(256).dense()
    choice = choose(A, tolerance=1e-6)
    assert choice.chain == Chain.butterfly(256, (4, 4, 4, 4))
    assert choice.chain.density == 0.0625
    assert not choice.dense
    assert check_promise(A, choice) < 1e-13


def test_cosine_transform_is_exact_at_a_sixth_of_the_size() -> None:
    known = transforms.dct2(256)
    A = known.dense()[:, known.perm_in]
    choice = choose(A, tolerance=1e-6)
    assert choice.chain.density == pytest.approx(0.164, abs=0.001)
    assert check_promise(A, choice) < 1e-12


def test_smooth_kernel() -> None:
    A = kernel(256)
    choice = choose(A, tolerance=0.1)
    assert choice.chain.density < 0.09
    assert 0.08 < check_promise(A, choice) < 0.1
    assert choice.bound <= 0.1


def test_noise_is_dense() -> None:
    choice = choose(torch.randn(64, 64), tolerance=0.1)
    assert choice.dense
    assert choice.chain == Chain.dense(64, 64)
    assert choice.bound == 0
    assert choice.why == "dense is best: no chain with fewer than 4096 parameters meets the tolerance 0.1"


MATRICES = {
    "kernel": lambda: kernel(48),
    "hilbert": lambda: by_formula("hilbert", 36, 60),
    "complex product": lambda: noisy(
        transforms.random_product(Chain.butterfly(36), dtype=torch.complex128).dense(), 0.05
    ),
    "block diagonal": lambda: torch.block_diag(*torch.randn(4, 8, 6, dtype=torch.float64)),
    "low rank": lambda: torch.randn(30, 2, dtype=torch.float64) @ torch.randn(2, 42, dtype=torch.float64),
    "rows": lambda: torch.randn(1, 12, dtype=torch.float64),
    "columns": lambda: torch.randn(12, 1, dtype=torch.float64),
    "prime": lambda: by_formula("invabs", 31, 29),
    "float32": lambda: kernel(32).float(),
    "tiny": lambda: kernel(32) * 1e-250,
    "huge": lambda: kernel(32) * 1e250,
    "zero": lambda: torch.zeros(12, 18, dtype=torch.float64),
    "one": lambda: torch.ones(1, 1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("tolerance", [0.0, 1e-9, 1e-3, 0.1, 0.5])
def test_a_tolerance_is_kept(name: str, tolerance: float) -> None:
    A = MATRICES[name]()
    choice = choose(A, tolerance=tolerance)
    m, n = A.shape
    assert choice.chain.shape == (m, n)
    assert choice.chain.chainable
    assert choice.chain == choice.chain.reduced()
    assert choice.chain.nnz <= m * n
    assert choice.dense == (choice.chain == Chain.dense(m, n))
    assert choice.bound <= max(tolerance, 1e-7)
    for order in ("l2r", "r2l"):
        assert check_promise(A, choice, order) <= max(tolerance, 1e-7) * (1 + 1e-6)
    assert str(choice) == f"{choice.chain}: {choice.why}"


def test_a_larger_tolerance_needs_no_more_parameters() -> None:
    A = kernel(64)
    sizes = [choose(A, tolerance=t).chain.nnz for t in (1e-6, 1e-4, 1e-2, 0.05, 0.1, 0.3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 3


@pytest.mark.parametrize("budget", [0.1, 0.3, 0.8, 600, 2000])
def test_a_budget_is_kept(budget: float) -> None:
    A = kernel(64)
    choice = choose(A, budget=budget)
    allowed = int(budget * A.numel()) if isinstance(budget, float) else budget
    assert choice.chain.nnz <= allowed
    check_promise(A, choice)
    cheaper = choose(A, tolerance=min(choice.bound * 1.0001, 0.999)).chain.nnz
    assert cheaper <= 1.1 * allowed  # errors are counted in steps, so the two searches may differ a little
    assert f"best within {allowed}" in choice.why


def test_a_larger_budget_has_no_larger_error() -> None:
    A = kernel(64)
    bounds = [choose(A, budget=b).bound for b in (300, 600, 1200, 2400, 4096)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] <= 1e-7


def test_a_budget_of_everything_is_not_spent_in_vain() -> None:
    A = transforms.hadamard(64).dense()
    assert choose(A, budget=1.0).chain.nnz == choose(A, tolerance=0.0).chain.nnz < 64 * 64


def test_no_other_chain_is_much_better() -> None:
    """Against every chain within the parameters found, by their real guarantee."""
    A = by_formula("invabs", 12, 12) + torch.eye(12, dtype=torch.float64)
    for tolerance in (0.02, 0.05, 0.1):
        choice = choose(A, tolerance=tolerance)
        for chain in Chain.search(12, 12, choice.chain.nnz - 1, max_factors=3):
            with as_user():
                guarantee = factorize(A, chain, order="l2r").certificate.guarantee
            assert guarantee > tolerance or chain.nnz >= 0.9 * choice.chain.nnz


def test_permutations_are_found_and_passed_on() -> None:
    F = torch.fft.fft(torch.eye(64, dtype=torch.complex128))
    assert choose(F, tolerance=1e-6).chain.nnz > 2000
    for perm in ("bitrev", "auto"):
        choice = choose(F, tolerance=1e-6, perm=perm)
        assert choice.chain.nnz == 768
        assert check_promise(F, choice) < 1e-13
    given = choose(F, tolerance=1e-6, perm=(transforms.digit_reversal((2,) * 6), None))
    assert given.chain.nnz == 768
    assert choose(F, budget=768, perm="auto").bound < 1e-6


def test_progress_and_no_change_of_the_input() -> None:
    calls, A = [], kernel(24)
    before = A.clone()
    choose(A, tolerance=0.1, progress=lambda *call: calls.append(call))
    assert torch.equal(A, before)
    assert [done for _, done, _ in calls] == list(range(1, calls[0][2] + 1))


def test_choices_are_the_same_twice() -> None:
    A = torch.randn(24, 36)
    for tolerance, seed in product((0.3, 0.6), range(2)):
        torch.manual_seed(seed)
        assert choose(A, tolerance=tolerance).chain == choose(A, tolerance=tolerance).chain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "choose needs one of tolerance=None and budget=None"),
        ({"tolerance": 0.1, "budget": 0.1}, "choose needs one of tolerance=0.1 and budget=0.1"),
        ({"tolerance": -0.1}, "tolerance=-0.1. Rule: a relative error with 0 <= tolerance < 1"),
        ({"tolerance": 1.0}, "tolerance=1.0. Rule"),
        ({"tolerance": float("nan")}, "tolerance=nan. Rule"),
        ({"budget": 0}, "budget=0. Rule: a share of the entries"),
        ({"budget": -0.5}, "budget=-0.5. Rule"),
        ({"budget": float("nan")}, "budget=nan. Rule"),
        ({"budget": 3}, "budget=3 allows 3 parameters, too few for any chain.*Nearest good value: budget=16"),
        ({"budget": float("inf")}, "budget=inf. Rule"),
        ({"tolerance": 0.1, "perm": "what"}, "perm='what' is unknown"),
    ],
    ids=repr,
)
def test_bad_options(options: dict, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        choose(torch.ones(8, 8), **options)


@pytest.mark.parametrize("options", [{"budget": True}, {"budget": "0.5"}, {"tolerance": "0.1"}], ids=repr)
def test_limits_are_numbers(options: dict) -> None:
    with as_user(), pytest.raises(TypeError, match="Rule: a number, such as"):
        choose(torch.ones(8, 8), **options)


def test_blocks_of_zeros_are_used() -> None:
    """Block-diagonal and strided matrices take chains with outer numbers a1 and dL."""
    inner, eye = torch.randn(4, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    assert choose(torch.kron(eye, inner), tolerance=0.1).chain == Chain([(4, 4, 4, 1)])
    strided = choose(torch.kron(inner, eye), budget=0.3)
    assert strided.chain == Chain([(1, 4, 4, 4)])
    assert strided.bound < 1e-12
    noisy = torch.kron(eye, inner) + 0.01 * torch.randn(16, 16, dtype=torch.float64)
    choice = choose(noisy, tolerance=0.1)
    assert factorize(noisy, choice.chain).certificate.error <= choice.bound <= 0.1


def test_tolerances_below_those_of_gram_matrices() -> None:
    """Noise of 1e-8 is no rounding: a tolerance of 1e-10 needs another chain than one of 1e-6."""
    clean = transforms.random_product(Chain.butterfly(32)).dense()
    A = clean + 1e-8 * clean.norm() / 32 * torch.randn(32, 32, dtype=torch.float64)
    assert choose(A, tolerance=1e-6).chain.nnz <= Chain.butterfly(32).nnz
    for tolerance in (1e-10, 1e-13):
        assert choose(A, tolerance=tolerance).bound <= tolerance


def test_bad_matrices() -> None:
    with pytest.raises(ValueError, match=r"A has shape \(2, 8, 8\). Rule: a matrix \(2 dimensions\)"):
        choose(torch.ones(2, 8, 8), tolerance=0.1)
    with pytest.raises(TypeError, match="A has dtype int64"):
        choose(torch.ones(8, 8, dtype=torch.int64), tolerance=0.1)
