"""Gradients of vectors that stay rows: those of the dense matrix, however rows, factors and threads share the work."""

import pytest
import torch
from torch.testing import assert_close

from flatwing import Chain, SparseProduct
from flatwing.kernels.backend import Task
from flatwing.kernels.cpu import blocks_rows, panels_calls, workers
from flatwing.kernels.cpu.panels_cost import seconds

REAL = [torch.float32, torch.float64]
CHAINS = [
    "(1,32,32,32)(32,32,32,1)",
    "(1,5,7,48)(3,112,48,1)",  # inputs and outputs in strips of all widths
    "(3,6,5,16)(1,15,70,16)(1,1120,16,1)",
    "(2,48,80,1)",
    "(1,16,16,1)(1,16,144,1)",
    "(1,2,9,32)",
]


def problem(text: str, dtype: torch.dtype, rows: int) -> tuple[torch.Tensor, SparseProduct, torch.Tensor]:
    """Vectors, a product, and the gradient of the result."""
    chain = Chain.parse(text)
    factors = [torch.randn(p.blocks, p.b, p.c, dtype=dtype) for p in chain]
    x, grad = (torch.randn(rows, n, dtype=dtype) for n in reversed(chain.shape))
    return x, SparseProduct(chain, factors), grad


def wanted(x: torch.Tensor, product: SparseProduct, grad: torch.Tensor) -> list[torch.Tensor]:
    """Result and gradients by the dense matrix in double precision."""
    leaves = [t.double().requires_grad_() for t in (x, *product.factors)]
    y = leaves[0] @ SparseProduct(product.chain, leaves[1:]).dense().T
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


def found(x: torch.Tensor, product: SparseProduct, grad: torch.Tensor, threads: int = 1) -> list[torch.Tensor]:
    y = panels_calls.forward(x, product.factors, product.chain.depths, threads)
    gx, gw = panels_calls.backward(x, product.factors, product.chain.depths, grad, True, True, threads)
    assert gx is not None
    assert gw is not None
    return [y, gx, *gw]


def close(got: list[torch.Tensor], want: list[torch.Tensor], dtype: torch.dtype) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == dtype
        assert mine.is_contiguous()
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        assert_close(mine.double(), theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("rows", [1, 3, 64, 131, 260])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("text", CHAINS)
def test_result_and_gradients_are_those_of_the_dense_matrix(text: str, dtype: torch.dtype, rows: int) -> None:
    x, product, grad = problem(text, dtype, rows)
    close(found(x, product, grad), wanted(x, product, grad), dtype)


@pytest.mark.parametrize("text", CHAINS)
def test_what_is_not_needed_is_not_computed(text: str) -> None:
    x, product, grad = problem(text, torch.float64, 9)
    _, gx, *gw = wanted(x, product, grad)
    only_x = panels_calls.backward(x, product.factors, product.chain.depths, grad, True, False, 1)
    assert only_x.factors is None
    assert only_x.x is not None
    close([only_x.x], [gx], torch.float64)
    only_factors = panels_calls.backward(x, product.factors, product.chain.depths, grad, False, True, 1)
    assert only_factors.x is None
    assert only_factors.factors is not None
    close(only_factors.factors, gw, torch.float64)


@pytest.mark.parametrize("light", [0, 1 << 40])
def test_threads_share_rows_and_the_packing_of_heavy_weights(light: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)  # however small the work
    monkeypatch.setattr(blocks_rows, "LIGHT", light)
    x, product, grad = problem(CHAINS[0], torch.float64, 141)
    packings = []
    pack = blocks_rows.pack
    monkeypatch.setattr(blocks_rows, "pack", lambda *args: packings.append(args) or pack(*args))
    close(found(x, product, grad, threads=3), wanted(x, product, grad), torch.float64)
    assert len(packings) == (2 if light == 0 else 1), "forwards each thread packs light weights itself"


def test_memory_of_other_kinds() -> None:
    x, product, grad = problem(CHAINS[0], torch.float32, 10)
    same = found(x, product, grad)
    wide = torch.full((10, 3000), torch.nan)
    wide[:, 2:1026] = x
    turned = SparseProduct(product.chain, [w.mT.contiguous().mT for w in product.factors])
    for view in (wide[:, 2:1026], x.T.contiguous().T, torch._neg_view(-x)):
        for mine, theirs in zip(found(view, turned, grad.T.contiguous().T), same, strict=True):
            assert torch.equal(mine, theirs)
    once = grad[:1].expand(10, -1)
    close(found(x, product, once), wanted(x, product, once), torch.float32)


def test_an_empty_batch_has_zero_gradients() -> None:
    x, product, grad = problem(CHAINS[0], torch.float32, 0)
    y, gx, *gw = found(x, product, grad)
    assert y.shape == gx.shape == (0, 1024)
    assert [g.abs().max().item() for g in gw] == [0.0, 0.0]


def test_whole_vectors_of_real_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_rows, "REGISTERS", True)
    lanes = blocks_rows.WIDE[torch.float32] // 4

    def reason(text: str, dtype: torch.dtype = torch.float32, last: bool = False) -> str:
        return panels_calls.unsupported_because(Chain.parse(text), dtype, last) or ""

    assert reason(f"(1,3,5,{2 * lanes})") == reason(f"(1,{lanes},{3 * lanes},1)") == ""
    for text in (f"(1,3,5,{lanes + 1})", f"(1,{lanes},5,1)", f"(1,5,{lanes},1)"):
        assert f"{lanes} divides" in reason(text)
    assert "complex64 is not computed" in reason(f"(1,3,5,{lanes})", torch.complex64)
    assert "vectors are columns" in reason(f"(1,3,5,{lanes})", last=True)
    monkeypatch.setattr(blocks_rows, "REGISTERS", False)
    assert "32 registers" in reason(f"(1,3,5,{lanes})")


# microseconds, best of many, one core of a Zen 4 processor: forward, both gradients
MEASURED = [
    ("monarch(256,256,blocks=16)", 256, 60, 162),
    ("monarch(1024,1024,blocks=32)", 1024, 1408, 3928),
    ("monarch(4096,4096,blocks=64)", 4096, 50425, 137736),
    ("monarch(16384,16384,blocks=128)", 16, 4140, 9228),
    ("monarch(16384,16384,blocks=128)", 256, 30569, 76496),
    ("low_rank(1024,4096,rank=64)", 256, 1592, 5029),
]


@pytest.mark.parametrize(("spec", "rows", "forward", "backward"), MEASURED)
def test_predictions_are_near_what_was_measured(spec: str, rows: int, forward: float, backward: float) -> None:
    chain = Chain.parse(spec)
    assert seconds(Task(chain, rows)) == pytest.approx(1e-6 * forward, rel=0.3)
    assert seconds(Task(chain, rows, train=True)) == pytest.approx(1e-6 * (forward + backward), rel=0.3)


def test_threads_and_packed_weights_save_time() -> None:
    heavy = Chain.monarch(16384, 16384, blocks=128)
    one = seconds(Task(heavy, 4096))
    assert one / 2 < seconds(Task(heavy, 4096, threads=2)) < one
    assert seconds(Task(heavy, 16, packed=True)) < seconds(Task(heavy, 16))
    assert seconds(Task(heavy, 16)) < seconds(Task(heavy, 32)) < seconds(Task(heavy, 32, train=True))
