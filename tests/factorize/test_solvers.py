"""One contract kit for every registered block solver, and the proof of `top_vector` on matrices that resist it."""

import pytest
import torch

from flatwing.factorize.solvers import (
    ANGLE_TOLERANCE,
    SOLVERS,
    TOLERANCE,
    BlockSolver,
    Truncation,
    energy,
    select_solver,
    top_vector,
)

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SHAPES = [(2, 2, 1), (2, 9, 1), (3, 3, 1), (5, 8, 1), (20, 24, 1), (3, 7, 2), (8, 8, 3), (6, 30, 5)]


def double(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float64))


def tied(k: int, small: int, large: int, dtype: torch.dtype) -> torch.Tensor:
    """All singular values are equal."""
    return torch.linalg.qr(torch.randn(k, large, small, dtype=dtype)).Q.mH


def with_spectrum(k: int, small: int, large: int, dtype: torch.dtype, sigma: torch.Tensor) -> torch.Tensor:
    u, v = torch.linalg.qr(torch.randn(k, small, small, dtype=dtype)).Q, tied(k, small, large, dtype)
    return (u * sigma.to(u.real.dtype)) @ v


def blocks_of(kind: str, small: int, large: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    k = 30
    noise = torch.randn(k, small, large, dtype=dtype)
    product = torch.randn(k, small, rank, dtype=dtype) @ torch.randn(k, rank, large, dtype=dtype)
    steps = torch.arange(small)
    if kind == "noise and zero blocks":
        return noise * (torch.arange(k) % 3 > 0)[:, None, None]
    return {
        "noise": noise,
        "zero": torch.zeros_like(noise),
        "exact": product,
        "nearly exact": product + 1e-3 * noise,
        "almost exact": product + 1e-6 * noise,
        "rank one of many": product[:, :, :1] @ torch.ones(1, large, dtype=dtype),
        "tied": tied(k, small, large, dtype),
        "nearly tied": with_spectrum(k, small, large, dtype, 1 - 1e-4 * steps),
        "two tied above the rest": with_spectrum(k, small, large, dtype, torch.where(steps <= rank, 1.0, 1e-2)),
        "wide spectrum": with_spectrum(k, small, large, dtype, 10.0 ** -(2.0 * steps)),
        "one entry": noise * torch.nn.functional.one_hot(torch.tensor(large - 1), large),
        "tiny next to large": noise * 10.0 ** -(torch.arange(k) % 4 * 2.0)[:, None, None],
    }[kind]


KINDS = [
    "noise", "zero", "noise and zero blocks", "exact", "nearly exact", "almost exact", "rank one of many", "tied",
    "nearly tied", "two tied above the rest", "wide spectrum", "one entry", "tiny next to large",
]  # fmt: skip


def check_law(blocks: torch.Tensor, rank: int, found: Truncation) -> None:
    """The law of `BlockSolver`, each block against its own size."""
    eps = torch.finfo(blocks.dtype).eps
    B, basis, coefficients = double(blocks), double(found.basis), double(found.coefficients)
    size = B.flatten(1).norm(dim=1)
    assert found.basis.dtype == found.coefficients.dtype == blocks.dtype
    assert found.basis.shape == (*B.shape[:2], rank)
    assert found.coefficients.shape == (B.shape[0], rank, B.shape[2])
    assert found.tail.dtype == torch.float64
    identity = torch.eye(rank, dtype=B.dtype)
    assert float((basis.mH @ basis - identity).abs().max()) <= 32 * eps
    off = (coefficients - basis.mH @ B).flatten(1).norm(dim=1)
    assert bool((off <= 32 * eps * size).all())
    true = (B - basis @ coefficients).flatten(1).norm(dim=1)
    assert bool(((found.tail.sqrt() - true).abs() <= 32 * eps * size).all()), "the tail is the residual"
    best = torch.linalg.svdvals(B)[:, rank:].norm(dim=1)
    tolerance = TOLERANCE if eps < 1e-10 else 1e-6
    assert bool((found.tail.sqrt() <= best * (1 + tolerance) + 64 * eps * size).all()), "near the best there is"
    assert bool((found.tail.sqrt() >= best * (1 - 32 * eps) - 64 * eps * size).all()), "never better than possible"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_solver_obeys_its_law(name: str, dtype: torch.dtype, kind: str) -> None:
    supported = 0
    for small, large, rank in SHAPES:
        reason = SOLVERS[name].unsupported_because(small, large, rank, CPU)
        if reason is None:
            blocks = blocks_of(kind, small, large, rank, dtype)
            before = blocks.clone()
            check_law(blocks, rank, SOLVERS[name].truncate(blocks, rank))
            assert torch.equal(blocks, before), "the input is not modified"
            supported += 1
        else:
            assert "only for" in reason
    assert supported > 0


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_does_not_need_contiguous_blocks(name: str) -> None:
    small, large = 2, 7
    blocks = torch.randn(large, 11, small, dtype=torch.complex128).permute(1, 2, 0).conj()
    check_law(blocks, 1, SOLVERS[name].truncate(blocks, 1))


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_is_the_same_twice(name: str) -> None:
    blocks = torch.randn(50, 2, 9)
    first, second = (SOLVERS[name].truncate(blocks, 1) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_small_tails_keep_their_digits_in_the_closed_form() -> None:
    """A tail far below rounding of the block is still right when rows are orthogonal."""
    blocks = torch.tensor([[[1.0, 0], [0, 1e-12]], [[0, 1e-9], [1, 0]]], dtype=torch.float64)
    assert SOLVERS["closed_form"].truncate(blocks, 1).tail.sqrt().tolist() == pytest.approx([1e-12, 1e-9])


@pytest.mark.parametrize(
    ("small", "large", "rank", "device", "name"),
    [
        (2, 2, 1, "cpu", "compiled"),
        (3, 5, 1, "cpu", "compiled"),
        (2, 100, 1, "cuda", "closed_form"),
        (3, 5, 1, "cuda", "power"),
        (3, 5, 2, "cpu", "compiled"),
    ],
)
def test_the_preferred_solver_is_chosen(small: int, large: int, rank: int, device: str, name: str) -> None:
    assert select_solver(small, large, rank, torch.device(device)) is SOLVERS[name]


def test_no_solver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOLVERS, "_entries", {})
    with pytest.raises(ValueError, match="no block solver supports blocks of 2 x 3, rank 1, on cpu"):
        select_solver(2, 3, 1, CPU)


def test_a_solver_without_its_methods_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        BlockSolver()  # type: ignore[abstract]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_energy_is_the_squared_norm_in_double(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 5, dtype=dtype)
    assert energy(x).dtype == torch.float64
    assert energy(x).tolist() == pytest.approx(double(x).flatten(1).norm(dim=1).square().tolist(), rel=1e-5)


def gram_matrices(kind: str, size: int, dtype: torch.dtype) -> torch.Tensor:
    k = 40
    x = torch.randn(k, size, 3 * size, dtype=dtype)
    values = torch.linspace(1, 0, size)
    spectrum = {
        "tied": torch.ones(size),
        "close": 1 - 1e-3 * (1 - values),
        "pair": torch.cat([torch.ones(2), 1e-3 * torch.ones(size)])[:size],
        "gap": torch.cat([torch.ones(1), 0.4 * torch.ones(size)])[:size],
        "rank one": torch.cat([torch.ones(1), torch.zeros(size)])[:size],
    }
    if kind == "noise":
        return x @ x.mH
    if kind == "zero":
        return torch.zeros(k, size, size, dtype=dtype)
    q = torch.linalg.qr(x @ x.mH).Q
    return (q * spectrum[kind]) @ q.mH


GRAMS = ["noise", "zero", "tied", "close", "pair", "gap", "rank one"]


def check_proof(gram: torch.Tensor, rounds: int, start: torch.Tensor | None = None) -> torch.Tensor:
    """Nothing reaches more than theta + missing; returns the share of proofs that say something."""
    u, theta, rest, missing = top_vector(gram, ANGLE_TOLERANCE[gram.dtype], rounds, start)
    eps = torch.finfo(gram.dtype).eps
    values = torch.linalg.eigvalsh(double(gram))
    slack = (64 * eps) * values[:, -1].clamp_min(1e-300)
    assert bool((theta + missing >= values[:, -1] - slack).all())
    assert bool((theta <= values[:, -1] + slack).all())
    assert float((u.norm(dim=1) - 1).abs().max()) <= 16 * eps
    rayleigh = (double(u).mH @ double(gram) @ double(u))[:, 0, 0].real
    assert bool(((rayleigh - theta).abs() <= slack).all())
    assert bool((double(gram).diagonal(dim1=1, dim2=2).real.sum(1) - theta - rest <= slack).all())
    assert bool((missing >= 0).all())
    return (missing < 1e-3 * values[:, -1]).double().mean()


@pytest.mark.parametrize("kind", GRAMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [2, 3, 8, 24])
def test_nothing_reaches_more_than_top_vector_says(size: int, dtype: torch.dtype, kind: str) -> None:
    gram = gram_matrices(kind, size, dtype)
    for rounds in (3, 6, 12):
        proved = check_proof(gram, rounds)
        if kind in ("gap", "rank one") and size <= 3:
            assert proved == 1


@pytest.mark.parametrize("kind", GRAMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_no_false_proof_from_a_start_at_the_wrong_vector(dtype: torch.dtype, kind: str) -> None:
    """An eigenvector is a fixed point: only the bound on the rest can tell that it is not the top one."""
    gram = gram_matrices(kind, 6, dtype)
    values, vectors = torch.linalg.eigh(gram)
    for i in range(6):
        check_proof(gram, 12, vectors[:, :, i : i + 1].contiguous())
        disturbed = vectors[:, :, i : i + 1] + 1e-9 * torch.randn(len(gram), 6, 1, dtype=dtype)
        check_proof(gram, 12, disturbed)
    if kind == "gap":
        second = top_vector(gram, 1e-14, 3, vectors[:, :, 2:3].contiguous())
        assert bool((second.missing >= values[:, -1] - second.theta).all())
        assert not bool((second.missing < 0.1).any())
