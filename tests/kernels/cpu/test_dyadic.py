import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from flatwing import Chain
from flatwing.kernels.cpu import dyadic, workers
from flatwing.kernels.cpu.simd import vector_bytes
from flatwing.structure.factor import apply_factor

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}

CHAINS = {
    "usual": "butterfly(64)",
    "dual": "butterfly(64).T",
    "large": "butterfly(4096)",
    "large dual": "butterfly(2048).T",
    "one vector": "(8,2,2,1)",
    "one factor": "(1,2,2,32)",
    "one small factor": "(16,2,2,4)",
    "a > 1": "(3,2,2,64)(6,2,2,32)(12,2,2,16)(24,2,2,8)(48,2,2,4)(96,2,2,2)(192,2,2,1)",
    "multiples of a vector": "(1,2,2,48)(3,2,2,16)(1,2,2,48)(48,2,2,1)",
    "no grid": "(1,2,2,96)(2,2,2,48)(3,2,2,32)(6,2,2,16)",
    "shuffled": "(32,2,2,1)(8,2,2,4)(1,2,2,32)(2,2,2,16)(16,2,2,2)(4,2,2,8)(4,2,2,8)(8,2,2,4)(32,2,2,1)",
    "gaps": "(16,2,2,2)(4,2,2,8)(1,2,2,32)(4,2,2,8)(32,2,2,1)",
}
ROWS = [0, 1, 2, 3, 5, 17, 33, 100]


def draw(spec: str, rows: int, dtype: torch.dtype) -> tuple[list[int], list[torch.Tensor], torch.Tensor]:
    chain = Chain.parse(spec)
    factors = [torch.randn(p.blocks, 2, 2, dtype=dtype) / 2**0.5 for p in chain]
    return [p.d for p in chain], factors, torch.randn(rows, chain.shape[1], dtype=dtype)


def reference(x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int]) -> torch.Tensor:
    y = x.mT
    for w, d in reversed(list(zip(factors, depths, strict=True))):
        y = apply_factor(w, y, d)
    return y.mT


def close(got: torch.Tensor | None, want: torch.Tensor | None) -> None:
    assert got is not None
    assert want is not None
    assert got.shape == want.shape
    scale = float(want.abs().max()) if want.numel() else 1.0
    worst = float((got.double() - want).abs().max()) if want.numel() else 0.0
    assert worst <= TOLERANCE[got.dtype] * scale


def judge(spec: str, rows: int, dtype: torch.dtype, threads: int = 1) -> None:
    depths, factors, x = draw(spec, rows, dtype)
    grad = torch.randn_like(x)
    leaves = [t.double().requires_grad_() for t in (x, *factors)]
    y = reference(leaves[0], leaves[1:], depths)
    wanted = torch.autograd.grad(y, leaves, grad.double())
    close(dyadic.forward(x, factors, depths, False, threads), y.detach())
    found = dyadic.backward(x, factors, depths, grad, False, threads=threads)
    assert found.factors is not None
    for got, want in zip([found.x, *found.factors], wanted, strict=True):
        close(got, want)
    alone = dyadic.backward(x, factors, depths, grad, False, need_factors=False, threads=threads)
    assert alone.factors is None
    close(alone.x, wanted[0])
    weights = dyadic.backward(x, factors, depths, grad, False, need_x=False, threads=threads)
    assert weights.x is None
    assert weights.factors is not None
    for got, want in zip(weights.factors, wanted[1:], strict=True):
        close(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", CHAINS.values(), ids=CHAINS)
def test_values_and_gradients(spec: str, dtype: torch.dtype) -> None:
    assert dyadic.unsupported_because(Chain.parse(spec), dtype, 1, False) is None
    for rows in (1, 37):
        judge(spec, rows, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_any_number_of_rows(rows: int, dtype: torch.dtype) -> None:
    judge("butterfly(256)", rows, dtype)


@pytest.mark.parametrize("exponent", range(4, 13))
def test_every_power_of_two(exponent: int) -> None:
    for suffix in ("", ".T"):
        judge(f"butterfly({2**exponent}){suffix}", 3, torch.float32)


def test_more_rows_than_fit_into_one_tile_of_a_long_vector() -> None:
    judge("butterfly(32768)", 9, torch.float32)


def test_rounding_does_not_add_up_over_many_rows() -> None:
    depths, factors, x = draw("(8,2,2,1)(4,2,2,2)", 60_000, torch.float32)
    found = dyadic.backward(x + 1, factors, depths, x + 1, False).factors
    wanted = dyadic.backward(x.double() + 1, [w.double() for w in factors], depths, x.double() + 1, False).factors
    assert found is not None
    assert wanted is not None
    for got, want in zip(found, wanted, strict=True):
        assert float((got - want).abs().max()) <= 1e-6 * float(want.abs().max())


@pytest.mark.parametrize("threads", [1, 2])
def test_sums_of_sums(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)
    for rows in (1024, 1025, 2048, 5000):
        judge("butterfly(32)", rows, torch.float64, threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_results_are_written_past_the_caches(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dyadic, "LAST_CACHE", 0)
    for spec in CHAINS.values():
        judge(spec, 5, dtype)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_values_of_one(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)
    depths, factors, x = draw("butterfly(128)", 200, torch.float32)
    ran = []
    monkeypatch.setattr(workers, "run", lambda f, parts, run=workers.run: ran.append(len(parts)) or run(f, parts))
    one, many = (dyadic.forward(x, factors, depths, False, t) for t in (1, threads))
    assert ran == [threads]
    assert torch.equal(one, many), "no value depends on the tile that its row is in"
    judge("butterfly(128)", 200, torch.float32, threads)
    first, second = (dyadic.backward(x, factors, depths, x, False, threads=threads) for _ in range(2))
    assert first.factors is not None
    assert second.factors is not None
    assert all(torch.equal(a, b) for a, b in zip(first.factors, second.factors, strict=True))
    alone = dyadic.backward(x, factors, depths, x, False, threads=1).x
    assert alone is not None
    assert first.x is not None
    assert torch.equal(first.x, alone)


def test_threads_share_no_memory_that_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)
    depths, factors, x = draw("butterfly(128)", 200, torch.float32)
    buffers, sums = [], []
    push, pull = dyadic.kernels.push, dyadic.kernels.pull
    monkeypatch.setattr(dyadic.kernels, "push", lambda *args: buffers.append(args[-2]) or push(*args))
    monkeypatch.setattr(
        dyadic.kernels, "pull", lambda *args: (buffers.append(args[-1]), sums.append(args[5]), pull(*args))
    )
    for run in (
        lambda: dyadic.forward(x, factors, depths, False, 3),
        lambda: dyadic.backward(x, factors, depths, x, False, threads=3),
    ):
        buffers.clear()
        run()
        buffers.sort()
        assert len(buffers) == 3
        assert all(high - low >= 16 * 128 * 4 for low, high in pairwise(buffers)), "a tile each"
    sums.sort()
    assert all(high - low >= 7 * 2 * 128 * 4 for low, high in pairwise(sums)), "all weights each"


def test_small_work_stays_in_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    depths, factors, x = draw("butterfly(64)", 4, torch.float32)
    monkeypatch.setattr(workers, "run", None)  # would fail
    dyadic.forward(x, factors, depths, False, 4)
    dyadic.backward(x, factors, depths, x, False, threads=4)


def test_strides() -> None:
    depths, factors, x = draw("butterfly(64)", 12, torch.float32)
    wide = torch.randn(24, 80)
    views = [x, wide[::2, 7:71], wide[:12, :64], x[:1].expand(12, 64), torch.randn(64, 12).T, wide.flip(0)[::2, :64]]

    def gradients(x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
        found = dyadic.backward(x, factors, depths, grad, False)
        assert found.x is not None
        assert found.factors is not None
        return [found.x, *found.factors]

    for view in views:
        plain = view.contiguous()
        assert torch.equal(
            dyadic.forward(view, factors, depths, False, 1), dyadic.forward(plain, factors, depths, False, 1)
        )
        for first, second in ((x, view), (view, x)):
            one, other = gradients(first, second), gradients(first.contiguous(), second.contiguous())
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    turned = [w.mT.contiguous().mT for w in factors]
    assert not turned[0].is_contiguous()
    assert torch.equal(dyadic.forward(x, turned, depths, False, 1), dyadic.forward(x, factors, depths, False, 1))


def test_inputs_are_not_changed() -> None:
    depths, factors, x = draw("butterfly(64)", 33, torch.float32)
    before = [t.clone() for t in (x, *factors)]
    dyadic.forward(x, factors, depths, False, 1)
    dyadic.backward(x, factors, depths, x, False)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *factors), strict=True))


def test_infinities_and_nans_stay_in_their_row() -> None:
    depths, factors, x = draw("butterfly(64)", 40, torch.float32)
    good = dyadic.forward(x, factors, depths, False, 1)
    x[7] = torch.nan
    bad = dyadic.forward(x, factors, depths, False, 1)
    assert bad[7].isnan().all()
    rest = torch.arange(40) != 7
    assert torch.equal(good[rest], bad[rest])


def test_callers_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)

    def work(seed: int) -> bool:
        g = torch.Generator().manual_seed(seed)
        factors, x = [torch.randn(64, 2, 2, generator=g) for _ in range(7)], torch.randn(150, 128, generator=g)
        depths = [1 << i for i in range(6, -1, -1)]
        wanted = dyadic.forward(x, factors, depths, False, 1)
        sums = dyadic.backward(x, factors, depths, x, False, threads=3).factors
        assert sums is not None
        for _ in range(50):
            if not torch.equal(dyadic.forward(x, factors, depths, False, 3), wanted):
                return False
            again = dyadic.backward(x, factors, depths, x, False, threads=3).factors
            if again is None or not all(torch.equal(s, t) for s, t in zip(again, sums, strict=True)):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)
    depths, factors, x = draw("butterfly(64)", 100, torch.float32)
    wanted = dyadic.forward(x, factors, depths, False, 2)
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = torch.equal(dyadic.forward(x, factors, depths, False, 2), wanted)
        finally:
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("spec", "dtype", "last", "reason"),
    [
        ("butterfly(64)", torch.complex64, False, "float32 and float64, not complex64"),
        ("butterfly(64)", torch.float32, True, "batch-first"),
        ("(1,2,4,16)(1,4,2,16)", torch.float32, False, r"\(1,2,4,16\) has no 2 x 2 blocks"),
        ("(1,2,2,24)", torch.float32, False, "d = 24"),
        ("(16,2,2,3)", torch.float32, False, "d = 3"),
        ("butterfly(2)", torch.float32, False, "n = 2 is not a multiple"),
    ],
)
def test_reasons(spec: str, dtype: torch.dtype, last: bool, reason: str) -> None:
    if vector_bytes() < 64 and "24" in spec:
        pytest.skip("24 is a multiple of shorter vectors")
    found = dyadic.unsupported_because(Chain.parse(spec), dtype, 1, last)
    assert found is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found)


def test_predicted_time_grows_with_work_and_falls_with_threads() -> None:
    chain, f32 = Chain.butterfly(1024), torch.float32
    assert dyadic.seconds(chain, 16, f32, False, False, 1) < dyadic.seconds(chain, 256, f32, False, False, 1)
    assert dyadic.seconds(chain, 256, f32, False, False, 1) < dyadic.seconds(chain, 256, f32, False, True, 1)
    assert dyadic.seconds(chain, 4096, f32, False, False, 2) < dyadic.seconds(chain, 4096, f32, False, False, 1)
    assert dyadic.seconds(chain, 256, f32, False, False, 1) < dyadic.seconds(chain, 256, torch.float64, False, False, 1)


def judge_all() -> None:
    for spec in CHAINS.values():
        for dtype in DTYPES:
            judge(spec, 5, dtype)


def test_narrower_machines(on_narrower: Callable[[str], None]) -> None:
    on_narrower("test_dyadic")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [3, 3000, 20_000])
def test_prepared_weights_give_the_same_numbers(rows: int, threads: int) -> None:
    """Few rows, rows for several threads, results that are written past the caches."""
    chain = Chain.butterfly(256)
    factors = [torch.randn(p.blocks, 2, 2) for p in chain]
    x = torch.randn(rows, 256)
    run = dyadic.prepared([w.clone() for w in factors], chain.depths)
    assert torch.equal(run(x, threads), dyadic.forward(x, factors, chain.depths, False, threads))
    turned = x.mT.contiguous().mT
    assert torch.equal(run(turned, threads), run(x, threads))
