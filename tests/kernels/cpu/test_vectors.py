from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flatwing import Chain, SparseProduct
from flatwing.kernels.cpu import blocks, dyadic, vectors

DTYPES = [torch.float32, torch.float64]
CHAINS = [
    "(1,1,1,1)",
    "(1,2,2,64)(2,2,2,32)(4,2,2,16)(8,2,2,8)(16,2,2,4)(32,2,2,2)(64,2,2,1)",  # pairs: vectors of them, runs in vectors
    "(1,2,2,24)(2,2,2,12)(4,2,2,6)(8,2,2,3)(16,3,3,1)",  # pairs that vectors do not divide
    "(3,2,2,1)",  # less than a vector of them
    "(9,2,2,4)",  # whole runs, but not whole vectors
    "(1,4,4,64)(4,4,4,16)(16,4,4,4)(64,4,4,1)",  # rows of four: of neighbours, of blocks that follow, after gathering
    "(1,8,8,32)(2,8,8,16)(4,8,8,8)(8,8,8,4)",
    "(1,8,2,16)(1,2,8,16)(2,16,4,4)",  # not square
    "(1,4,4,8)(4,8,4,1)(1,4,4,4)",  # a factor in the middle with more outputs than inputs
    "(3,2,4,16)(3,4,2,16)",  # blocks smaller than a vector
    "(5,4,4,3)(5,4,4,3)",  # a last vector of outputs is not full
    "(1,16,16,16)(16,16,16,1)",
    "(1,32,24,24)(24,24,32,1)",  # a row is a vector and a half
    "(2,19,32,2)",
    "(1,33,20,1)",
    "(3,7,11,5)",
    "(1,6,6,36)(6,6,6,6)(36,6,6,1)",  # short rows that are no power of two
    "(1,3,5,4)(2,5,2,2)(4,2,7,1)",
    "(16,16,16,1)(1,16,16,16)",  # not chainable
    "(1,31,2,1)(1,2,29,1)",
]


def among_nan(w: torch.Tensor) -> torch.Tensor:
    """The same numbers in memory that holds NaN before and behind them."""
    wide = torch.full((w.numel() + 128,), torch.nan, dtype=w.dtype)
    wide[64 : 64 + w.numel()] = w.flatten()
    return wide[64 : 64 + w.numel()].view(w.shape)


def judge(chain: Chain, dtype: torch.dtype, rows: int) -> None:
    """The product is that of the dense matrix in double precision, but for rounding; nothing else is read."""
    factors = [among_nan(torch.randn(p.blocks, p.b, p.c, dtype=dtype)) for p in chain]
    x = among_nan(torch.randn(rows, chain.shape[1], dtype=dtype))
    y = vectors.forward(x, factors, chain.depths)
    want = x.double() @ SparseProduct(chain, [w.double() for w in factors]).dense().T
    assert y.shape == want.shape
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert_close(y.double(), want, rtol=0, atol=tolerance * want.abs().max().item())


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", CHAINS)
def test_product_is_that_of_the_dense_matrix(text: str, dtype: torch.dtype, rows: int) -> None:
    judge(Chain.parse(text), dtype, rows)


small, large = st.integers(1, 9), st.integers(1, 40)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.tuples(small, small, small, large) | st.tuples(small, large, large, small), dtype=st.sampled_from(DTYPES)
)
def test_any_factor(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    judge(Chain([sizes]), dtype, 1)


def test_rows_and_weights_in_memory_of_other_kinds() -> None:
    chain = Chain.parse("(1,32,24,24)(24,24,32,1)")
    x = torch.randn(2, 768)
    factors = [torch.randn(p.blocks, p.b, p.c) for p in chain]
    y = vectors.forward(x, factors, chain.depths)
    wide = torch.full((2, 1600), torch.nan)
    wide[:, 2:770] = x
    strided = [w.mT.contiguous().mT for w in factors]
    for same in (wide[:, 2:770], x.T.contiguous().T, torch._neg_view(-x)):
        assert torch.equal(vectors.forward(same, strided, chain.depths), y)
    assert torch.equal(vectors.forward(x[:1].expand(2, -1), factors, chain.depths), y[:1].expand(2, -1))
    assert torch.equal(vectors.forward(x, list(map(torch._neg_view, factors)), chain.depths), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", [Chain.butterfly(64), Chain.monarch(64, 64, blocks=8)], ids=str)
def test_kernels_for_tiles_leave_few_vectors_to_these(
    chain: Chain, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = vectors.run
    monkeypatch.setattr(vectors, "run", lambda call, x: rows.append(len(x)) or run(call, x))
    factors = [torch.randn(p.blocks, p.b, p.c, dtype=dtype) for p in chain]
    others = [blocks, dyadic] if chain == Chain.butterfly(64) else [blocks]
    for kernels in others:
        for count in (1, 2, 3):
            x = torch.randn(count, 64, dtype=dtype)
            want = x @ SparseProduct(chain, factors).dense().T
            assert_close(kernels.forward(x, factors, chain.depths, False, 1), want)
    for count in (1, 2, 3):
        columns = torch.randn(64, count, dtype=dtype)
        got = blocks.forward(columns, factors, chain.depths, True, 1)
        assert_close(got, SparseProduct(chain, factors).dense() @ columns)
        assert got.is_contiguous()
    assert rows == [1, 2] * len(others) + [1], "turning two columns takes longer than tiles"


@pytest.mark.parametrize("n", [2048, 4096, 8192])
def test_butterflies_run_the_code_that_was_compiled_for_them(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.butterfly(n)
    ran: list[int] = []
    run = vectors.run
    monkeypatch.setattr(vectors, "run", lambda call, x: ran.append(len(x)) or run(call, x))
    x, factors = torch.ones(2, n), [torch.ones(p.blocks, p.b, p.c) for p in chain]
    dyadic.forward(x, factors, chain.depths, False, 1)
    assert bool(ran) == (dyadic.example(chain, 2, torch.float32, False, False)[1] == 1)


def test_two_vectors_read_light_weights_twice() -> None:
    assert vectors.suits(2, vectors.LIGHT // 8, torch.float64)
    assert not vectors.suits(2, vectors.LIGHT // 8 + 1, torch.float64)
    assert vectors.suits(1, 1 << 40, torch.float64)
    assert not vectors.suits(1, 1, torch.complex128)
    assert not vectors.suits(1, 1, torch.bfloat16)
    assert not vectors.suits(0, 1, torch.float32)
    assert vectors.suits(1, 1, torch.float32, last=True)
    assert not vectors.suits(2, 1, torch.float32, last=True)


def test_time_grows_with_what_is_done() -> None:
    def micro(text: str, rows: int = 1, dtype: torch.dtype = torch.float32) -> float:
        return 1e6 * vectors.seconds(Chain.parse(text), rows, dtype)

    assert micro("(64,16,16,1)") < micro("(64,16,16,1)", 2) < 2 * micro("(64,16,16,1)")
    assert micro("(64,16,16,1)") < micro("(64,16,16,1)", 1, torch.float64)
    assert micro("(64,16,31,1)") > micro("(64,16,32,1)"), "numbers that are left over"
    assert micro("(64,4,4,1)") == micro("(4,4,4,16)") < micro("(8,4,4,8)"), "what lies in between is moved"


def judge_all() -> None:
    for text in CHAINS:
        for dtype in DTYPES:
            judge(Chain.parse(text), dtype, 2)


def test_narrower_machines(on_narrower: Callable[[str], None]) -> None:
    on_narrower("test_vectors")
