"""Compiled loops against their twins in torch: the same factors, errors and bounds for any chain, dtype and order."""

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from flatwing import Chain, factorize
from flatwing.factorize import bounds, butterfly, compiled, compiled_blocks, program
from flatwing.factorize.order import split_order
from flatwing.factorize.problem import Problem
from flatwing.factorize.solvers import SOLVERS, TOLERANCE
from flatwing.factorize.story import Story
from flatwing.structure import transforms

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
CHAINS = {
    "dyadic": Chain.butterfly(16),
    "mixed radices, a > 1, d > 1": Chain.from_radices((3, 2, 4), (2, 5, 3), (1, 1), 2, 3),
    "two columns": Chain.from_radices((4, 3, 5), (3, 2, 2), (1, 1)),
    "two rows": Chain.from_radices((2, 2, 3), (4, 3, 5), (1, 1)),
    "rank 2": Chain.from_radices((4, 2, 4), (3, 3, 4), (2, 2), 1, 2),
    "ranks 1 and 2": Chain.from_radices((4, 3, 4), (4, 3, 4), (1, 2)),
}
ORDERS = ["l2r", "r2l", "balanced"]


def values_of(chain: Chain, dtype: torch.dtype, noise: float) -> Problem:
    clean = transforms.random_product(chain, dtype=torch.promote_types(dtype, torch.float64)).dense()
    rough = torch.randn(chain.shape, dtype=clean.dtype)
    return Problem.of((clean + noise * clean.norm() / rough.norm() * rough).to(dtype), chain)


@contextmanager
def only(loops: Any = None) -> Iterator[None]:
    """Other loops, or none: torch computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "loops", lambda: loops)
        compiled.works.cache_clear()
        try:
            yield
        finally:
            compiled.works.cache_clear()


def test_the_loops_are_used_here() -> None:
    assert all(compiled.works(dtype) for dtype in DTYPES)
    assert not compiled.works(torch.float16)
    assert not compiled.supports(torch.empty(1, device="meta"))


@pytest.mark.parametrize("orthonormalize", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_attempt_is_that_of_torch(name: str, dtype: torch.dtype, order: str, orthonormalize: bool) -> None:
    problem = values_of(CHAINS[name], dtype, 0.01)
    patterns, cuts = problem.patterns, split_order(order, len(problem.chain))
    before = problem.values.clone()
    factors, story, residual = compiled.attempt(problem.values, patterns, cuts, orthonormalize)
    assert torch.equal(problem.values, before), "the input is not modified"
    with only():
        expected, theirs = butterfly.hierarchical(problem.values, patterns, cuts, orthonormalize)
        expected = butterfly.fix_signs(expected, patterns)
    eps, scale = torch.finfo(dtype).eps, float(problem.norm[0] ** 0.5)
    for mine, other in zip(factors, expected, strict=True):
        assert mine.dtype == dtype
        assert mine.is_contiguous()
        assert mine.untyped_storage().nbytes() == mine.nbytes, "no factor holds more memory than its own"
        assert float((mine - other).abs().max() / other.abs().max()) <= 1e5 * eps**0.75
    assert story.order == tuple(theirs) == cuts
    for s in cuts:
        mine, other = torch.from_numpy(story[s]), theirs[s]
        assert mine.shape == other.shape
        torch.testing.assert_close(mine.sqrt() / scale, other.sqrt() / scale, atol=2e3 * eps, rtol=1e-4)
    right = butterfly.residual(problem.values, patterns, factors)
    assert residual.shape == right.shape
    torch.testing.assert_close(
        torch.from_numpy(residual).sqrt() / scale, right.sqrt() / scale, atol=64 * eps, rtol=64 * eps
    )
    again = compiled.residual(problem.values, patterns, expected)
    torch.testing.assert_close(
        again, butterfly.residual(problem.values, patterns, expected), atol=64 * eps * scale**2, rtol=64 * eps
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_signs_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    factors = list(transforms.random_product(CHAINS[name], dtype=dtype).factors)
    factors[0][0, 0] = 0  # nothing to take a sign from
    patterns = CHAINS[name].patterns
    for mine, other in zip(compiled.fix_signs(factors, patterns), butterfly.fix_signs(factors, patterns), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["butterfly", "noise", "zero", "one entry"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_tails_are_never_more_than_the_truth(name: str, dtype: torch.dtype, kind: str) -> None:
    problem = values_of(CHAINS[name], dtype, 0.01)
    values = {
        "butterfly": problem.values,
        "noise": torch.randn_like(problem.values),
        "zero": torch.zeros_like(problem.values),
        "one entry": torch.zeros_like(problem.values).index_fill(0, torch.tensor([0]), 1),
    }[kind]
    for split, tails in zip(problem.splits, compiled.split_tails(values, problem.splits), strict=True):
        sigma = torch.linalg.svdvals(split.blocks(values)).square()
        true = sigma[..., split.rank :].sum(-1).reshape(split.regions)
        slack = 1e-14 * sigma.sum(-1).max()
        found = torch.from_numpy(tails)
        assert bool((found <= true + slack).all())
        assert bool((found >= true * (1 - TOLERANCE) ** 2 - slack - 1e-9 * true).all())


@pytest.mark.parametrize("name", CHAINS)
def test_tree_bound_is_that_of_torch(name: str) -> None:
    problem = values_of(CHAINS[name], torch.float64, 0.1)
    with only():
        tails = bounds.matrix_tails(problem.values, problem.splits, careful=True)
        tails = Story.of({s: t.numpy() for s, t in enumerate(tails)})
        expected = bounds.tree_bound(tails)
    kept = tails.numbers.copy()
    found = bounds.tree_bound(tails)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=0, rtol=1e-12)
    assert np.array_equal(tails.numbers, kept), "the tails are not modified"


@pytest.mark.parametrize("n", [32, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_certificates_are_those_of_torch(dtype: torch.dtype, n: int) -> None:
    chain = Chain.butterfly(n)
    clean = transforms.random_product(chain, dtype=dtype).dense()
    noise = torch.randn(n, n, dtype=dtype)
    A = torch.stack([clean + 0.05 * noise * clean.norm() / noise.norm(), noise])
    with only():
        slow = factorize(A, chain)
    fast = factorize(A, chain)
    rel = 1e-3 if torch.finfo(dtype).eps > 1e-10 else 1e-9
    for mine, other in zip((fast.certificate, *fast.certificates), (slow.certificate, *slow.certificates), strict=True):
        assert (mine.theorem, mine.exact) == (other.theorem, other.exact)
        assert mine.error == pytest.approx(other.error, rel=1e-5 if rel > 1e-6 else 1e-9)
        assert mine.lower_bound == pytest.approx(other.lower_bound, rel=rel)
        assert mine.guarantee == pytest.approx(other.guarantee, rel=rel)
        assert mine.lower_bound <= mine.error <= mine.guarantee
    assert fast.order == slow.order


def test_blocks_that_resist_are_solved_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal singular values cannot be told apart, so nothing is proved about the vector found."""
    chain = Chain.from_radices((8, 8), (8, 8), (1,))
    split = Problem.of(torch.zeros(64, 64), chain).splits[0]
    tied = torch.linalg.qr(torch.randn(*split.grid, 8, 8, dtype=torch.float64)).Q
    A = split.unblock(
        torch.where(torch.arange(8)[:, None, None, None, None] < 4, tied, tied[..., :1] @ tied[..., :1, :])
    )[0]
    solved, power = [], butterfly.approximate

    def count(blocks: torch.Tensor, *rest: Any) -> Any:
        solved.append(len(blocks))
        return power(blocks, *rest)

    monkeypatch.setattr(butterfly, "approximate", count)
    result = factorize(A, chain)
    assert 0 < sum(solved) < 2 * 64, "some blocks in each order"
    sigma = torch.linalg.svdvals(Problem.of(A, chain).splits[0].blocks(A[None])).square()
    best = float(sigma[..., 1:].sum().sqrt() / A.norm())
    assert result.certificate.error == pytest.approx(best, rel=1e-9)
    assert result.certificate.lower_bound == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("view", ["transposed", "every other", "conjugate", "offset"])
def test_inputs_in_any_layout(view: str) -> None:
    base = torch.randn(33, 33, dtype=torch.complex128)
    A = {"transposed": base[:16, :16].T, "every other": base[1::2, ::2][:16, :16], "conjugate": base[:16, :16].conj(),
         "offset": base[5:21, 7:23]}[view]  # fmt: skip
    found, expected = factorize(A, CHAINS["dyadic"]), factorize(A.clone().resolve_conj(), CHAINS["dyadic"])
    assert torch.equal(found.product.dense(), expected.product.dense())


def test_progress_counts_cuts() -> None:
    seen: list[tuple[int, int]] = []
    problem = values_of(CHAINS["dyadic"], torch.float64, 0.1)
    loud = compiled.attempt(problem.values, problem.patterns, (2, 1, 3), True, lambda *now: seen.append(now))
    quiet = compiled.attempt(problem.values, problem.patterns, (2, 1, 3), True)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert all(torch.equal(x, y) for x, y in zip(loud[0], quiet[0], strict=True))


def test_without_numba_torch_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_numba(name: str, *rest: Any) -> Any:
        if name == "numba":
            raise ImportError("no numba here")
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", no_numba)
    for cached in (compiled.loops, compiled.works):
        cached.cache_clear()
    try:
        assert compiled.loops() is None
        assert not compiled.works(torch.float64)
        assert factorize(torch.eye(8, dtype=torch.float64), Chain.butterfly(8)).certificate.exact
    finally:
        monkeypatch.undo()
        for cached in (compiled.loops, compiled.works):
            cached.cache_clear()
    assert compiled.works(torch.float64)


def test_a_compiler_that_fails_leaves_it_to_torch() -> None:
    class Broken:
        def run(self, *_: Any) -> int:
            raise RuntimeError("no machine code for you")

    with only(Broken()):
        assert not compiled.works(torch.float32)
        assert factorize(torch.eye(8), Chain.butterfly(8)).certificate.exact
        found = SOLVERS["compiled"].truncate(torch.randn(5, 3, 4), 1)
        assert found.basis.shape == (5, 3, 1)


def test_no_folder_for_the_cache_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def njit(**options: Any) -> Any:
        tried.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function")
        return lambda function: function

    def one() -> int:
        return 1

    monkeypatch.setattr(compiled_blocks, "njit", njit)
    assert compiled_blocks.compiled(one)() == 1
    assert tried == [True, False]


def test_kinds_of_steps_agree() -> None:
    from flatwing.factorize import compiled_steps, compiled_two, program

    for name in ("CUT", "TAILS", "TO_RIGHT", "TO_LEFT", "SIGNS", "MULTIPLY", "RESIDUAL"):
        assert getattr(program, name) == getattr(compiled_steps, name)
    assert [program.WEIGHTS.index(w) for w in ("right", "left", "both")] == [
        compiled_two.RIGHT,
        compiled_two.LEFT,
        compiled_two.BOTH,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("tiny", [1e-18, 1e-22, 1e-30, 1e-38, 1e-40, 3e-162, 1e-310])
@pytest.mark.parametrize("radices", [(2,) * 6, (8, 8)])
def test_rows_whose_squares_underflow(dtype: torch.dtype, tiny: float, radices: tuple[int, ...]) -> None:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    A = torch.randn(64, 64, dtype=wide)
    A[::3] *= tiny
    A = A.to(dtype)
    result = factorize(A, Chain.from_radices(radices, radices, (1,) * (len(radices) - 1)))
    true = float((result.product.to(wide).dense() - A.to(wide)).norm() / A.to(wide).norm())
    proof = result.certificate
    assert proof.error == pytest.approx(true, rel=1e-5)
    assert proof.lower_bound <= true * (1 + 1e-6)
    assert proof.guarantee is None or true <= proof.guarantee * (1 + 1e-6)


def test_two_rows_of_very_different_size() -> None:
    blocks = torch.randn(20, 2, 5, dtype=torch.float64)
    blocks[:, 1] *= 3e-162
    basis, coefficients, _ = SOLVERS["compiled"].truncate(blocks, 1)
    assert torch.allclose(torch.linalg.vector_norm(basis, dim=1), torch.ones(20, 1, dtype=torch.float64), rtol=1e-14)
    assert bool(((blocks - basis @ coefficients).norm(dim=(1, 2)) <= 1e-150).all())


def test_a_number_out_of_range_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    A = torch.randn(16, 16)
    want = factorize(A, Chain.butterfly(16)).certificate
    run = compiled.run

    def out_of_range(steps: program.Program, *rest: Any) -> Any:
        return run(steps, *rest) * (np.nan if steps.tails[-1][0] == 0 else 1)  # where a residual is measured

    monkeypatch.setattr(compiled, "run", out_of_range)
    factors, _, left = compiled.attempt(A[None], Chain.butterfly(16).patterns, (1, 2, 3))
    assert np.isfinite(left).all()
    assert len(factors) == 4
    assert want.error > 0
