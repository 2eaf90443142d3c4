"""Kernels whose vectors stay rows: the same products as the dense matrix gives, for which chains and how many rows."""

import pytest
import torch
from torch.testing import assert_close

from flatwing import Chain, SparseProduct
from flatwing.kernels.cpu import blocks, blocks_rows, workers
from flatwing.kernels.cpu.blocks_call import WIDE, call_of

REAL = [torch.float32, torch.float64]
CHAINS = [
    "(1,32,32,32)(32,32,32,1)",
    "(1,48,7,32)(2,112,16,1)",  # few inputs, and outputs in strips of all widths
    "(3,5,5,16)(3,80,9,1)",
    "(1,15,70,48)(1,3360,5,1)",  # more inputs than are summed at a time
    "(2,112,8,1)(1,1,16,16)",
    "(1,13,6,80)(2,5,2,48)(1,4,1,48)",
    "(2,112,130,1)",
]


def problem(text: str, dtype: torch.dtype, rows: int) -> tuple[torch.Tensor, list[torch.Tensor], list[int]]:
    """Vectors, factors, and their d."""
    chain = Chain.parse(text)
    factors = [torch.randn(p.blocks, p.b, p.c, dtype=dtype) for p in chain]
    return torch.randn(rows, chain.shape[1], dtype=dtype), factors, [p.d for p in chain]


def close(y: torch.Tensor, text: str, x: torch.Tensor, factors: list[torch.Tensor]) -> None:
    """y is the product by the dense matrix in double precision, but for rounding."""
    want = x.double() @ SparseProduct(Chain.parse(text), [w.double() for w in factors]).dense().T
    assert y.dtype == x.dtype
    tolerance = 1e-5 if y.dtype == torch.float32 else 1e-13
    assert_close(y.double(), want, rtol=0, atol=tolerance * want.abs().max().item())


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes every call that these kernels can compute go through them, on any machine; lists the numbers of rows."""
    calls: list[int] = []
    forward = blocks_rows.forward

    def counted(call: object, x: torch.Tensor, *others: object) -> None:
        calls.append(x.shape[0])
        forward(call, x, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks_rows, "forward", counted)
    for name, value in (("WORTH", 0), ("LIGHT", 1 << 40), ("NEAR", 1 << 40), ("REGISTERS", True)):
        monkeypatch.setattr(blocks_rows, name, value)
    return calls


@pytest.mark.parametrize("rows", [3, 5, 64, 67, 130])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("text", CHAINS)
def test_product_is_that_of_the_dense_matrix(text: str, dtype: torch.dtype, rows: int, taken: list[int]) -> None:
    x, factors, depths = problem(text, dtype, rows)
    close(blocks.forward(x, factors, depths, False, 1), text, x, factors)
    assert taken == [rows]


@pytest.mark.parametrize("dtype", REAL)
def test_threads_share_the_rows(dtype: torch.dtype, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)  # however small the work
    x, factors, depths = problem(CHAINS[0], dtype, 70)
    y = blocks.forward(x, factors, depths, False, 3)
    close(y, CHAINS[0], x, factors)
    assert torch.equal(y, blocks.forward(x, factors, depths, False, 1))
    assert torch.equal(y, blocks.prepared(factors, depths)(x, 3))
    assert taken == [70] * 3


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("text", CHAINS)
def test_weights_are_packed_once(
    text: str, dtype: torch.dtype, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, factors, depths = problem(text, dtype, 21)
    run = blocks.prepared(factors, depths)
    assert taken == []
    close(run(x, 1), text, x, factors)
    monkeypatch.setattr(blocks_rows, "_bytes", None)  # what packing again would ask for
    for few in (x, x[:4], x[:3]):
        close(run(few, 1), text, few, factors)
    assert taken == [21, 21, 4, 3]


def test_rows_and_weights_in_memory_of_other_kinds() -> None:
    x, factors, depths = problem(CHAINS[0], torch.float32, 9)
    y = blocks.forward(x, factors, depths, False, 1)
    wide = torch.full((9, 3 * x.shape[1]), torch.nan)
    wide[:, 2 : 2 + x.shape[1]] = x
    strided = [w.transpose(1, 2).contiguous().transpose(1, 2) for w in factors]
    for same in (wide[:, 2 : 2 + x.shape[1]], x.T.contiguous().T, torch._neg_view(-x)):
        assert torch.equal(blocks.forward(same, strided, depths, False, 1), y)
    assert torch.equal(blocks.forward(x[:1].expand(9, -1), factors, depths, False, 1), y[:1].expand(9, -1))


def test_an_infinity_stays_in_its_row() -> None:
    x, factors, depths = problem(CHAINS[0], torch.float32, 7)
    x[5, 3] = torch.inf
    bad = ~torch.isfinite(blocks.forward(x, factors, depths, False, 1)).all(1)
    assert bad.tolist() == [False] * 5 + [True, False]


def test_vectors_that_are_columns_and_complex_numbers_stay_with_tiles(taken: list[int]) -> None:
    x, factors, depths = problem(CHAINS[0], torch.complex64, 5)
    assert blocks.forward(x, factors, depths, False, 1).shape == (5, 1024)
    x, factors, depths = problem(CHAINS[0], torch.float32, 5)
    close(blocks.forward(x.T.contiguous(), factors, depths, True, 1).T, CHAINS[0], x, factors)
    assert taken == []


def kernels_take(text: str, dtype: torch.dtype = torch.float32) -> bool:
    chain = Chain.parse(text)
    call = call_of([torch.zeros(p.blocks, p.b, p.c, dtype=dtype) for p in chain], [p.d for p in chain])
    return blocks_rows.packs(call.words, dtype, call.form.nnz)


def test_whole_vectors_only() -> None:
    lanes = WIDE[torch.float32] // 4
    assert kernels_take(f"(1,2,3,{2 * lanes})(2,{3 * lanes},5,1)")
    assert not kernels_take(f"(1,2,3,{lanes + 1})")
    assert not kernels_take(f"(2,{3 * lanes + 1},5,1)")
    assert kernels_take(f"(1,2,3,{lanes // 2})", torch.float64)
    assert not kernels_take(f"(1,2,3,{lanes})", torch.complex64)


def test_few_rows_heavy_weights_and_rows_far_away_are_left_to_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(blocks_rows, "REGISTERS", True)
    chain = Chain.monarch(1024, 1024, blocks=32)
    call = call_of([torch.zeros(p.blocks, p.b, p.c) for p in chain], [p.d for p in chain])

    def suits(rows: int, dtype: torch.dtype = torch.float32, more: int = 1) -> bool:
        return blocks_rows.suits(call.words, dtype, more * call.form.nnz, call.form.widest, 2048 * rows)

    assert [rows for rows in (1, 16, 79, 80, 256, 768, 769, 4096) if suits(rows)] == [80, 256, 768]
    assert suits(512, more=4)
    assert not suits(512, more=5)
    assert not suits(256, torch.complex64)
    assert blocks_rows.suits(call.words, torch.float32, call.form.nnz, 512, 1 << 40), "short rows may be far away"
