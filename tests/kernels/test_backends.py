"""The contract of a backend, over all of them: the dense float64 matrix is the judge of values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatwing import Chain, SparseProduct, kernels
from flatwing.kernels.backend import Task
from strategies import valid_chains

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16, torch.float16)
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 1e-5, torch.complex64: 1e-5}
CHAINS = (
    "butterfly(64)",
    "butterfly(64).T",
    "butterfly(256)",
    "(3,2,2,32)(6,2,2,16)(12,2,2,8)(24,2,2,4)(48,2,2,2)(96,2,2,1)",  # a > 1 from the start
    "(1,2,2,64)(2,2,2,32)(1,2,2,64)(64,2,2,1)",  # not chainable
    "butterfly(48)",
    "butterfly(64, rank=4)",
    "monarch(64, 64, blocks=8)",
    "monarch(30, 42, blocks=6, rank=2)",
    "(1,7,5,11)(5,11,13,1)",  # primes
    "(2,3,5,1)",
    "(1,1,4,6)(3,8,1,1)",
    "(1,64,48,1)",
    "(1,33,2,1)(1,2,65,1)",  # low rank
)
ROWS = (0, 1, 2, 3, 5, 17, 33, 100)
FEWER = (0, 1, 5, 17)  # for backends made of torch operations, which know few rows and many


def usable(name: str, task: Task) -> bool:
    return kernels.BACKENDS[name].unsupported_because(task) is None


def draw(chain: Chain, rows: int, dtype: torch.dtype, seed: int = 0) -> tuple[SparseProduct, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    factors = [torch.randn(p.blocks, p.b, p.c, generator=g, dtype=wide) / p.c**0.5 for p in chain]
    x = torch.randn(rows, chain.shape[1], generator=g, dtype=wide)
    return SparseProduct(chain, [w.to(dtype) for w in factors]), x.to(dtype)


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    assert got.dtype == dtype
    assert got.shape == want.shape
    scale = float(want.detach().abs().max()) if want.numel() else 1.0
    got, want = got.detach(), want.detach()
    assert float((got.to(wide) - want).abs().max() if want.numel() else 0) <= TOLERANCE.get(dtype, 1e-12) * scale


Definition = tuple[list[torch.Tensor], torch.Tensor]


def definition(product: SparseProduct) -> Definition:
    """The factors in double precision, and their dense matrix, differentiable."""
    wide = torch.complex128 if product.factors[0].is_complex() else torch.float64
    factors = [w.detach().to(wide).requires_grad_() for w in product.factors]
    return factors, SparseProduct(product.chain, factors).dense()


def judged(
    name: str, product: SparseProduct, x: torch.Tensor, layout: str = "batch-first", judge: Definition | None = None
) -> None:
    """Values and both gradients of one backend against the dense matrix."""
    dtype = x.dtype
    wide = torch.complex128 if dtype.is_complex else torch.float64
    leaves = [x, *product.factors]
    mine = [t.detach().clone().requires_grad_() if t.is_contiguous() else t.detach().requires_grad_() for t in leaves]
    y = kernels.multiply(mine[0], SparseProduct(product.chain, mine[1:]), backend=name, layout=layout)
    factors, matrix = judge or definition(product)
    vectors = x.detach().to(wide).requires_grad_()
    want = matrix @ vectors if layout == "batch-last" else vectors @ matrix.T
    close(y, want, dtype)
    assert y.is_contiguous()
    with torch.no_grad():
        again = kernels.multiply(mine[0], SparseProduct(product.chain, mine[1:]), backend=name, layout=layout)
    close(again, want, dtype)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(7), dtype=wide)
    got = torch.autograd.grad(y, mine, grad.to(dtype))
    wanted = torch.autograd.grad(want, [vectors, *factors], grad.to(dtype).to(wide), retain_graph=True)
    for g, w in zip(got, wanted, strict=True):
        close(g, w, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("text", CHAINS)
@pytest.mark.parametrize("name", kernels.list_backends())
def test_values_and_gradients(name: str, text: str, dtype: torch.dtype) -> None:
    chain = Chain.parse(text)
    product, x = draw(chain, max(ROWS), dtype)
    judge, ran = definition(product), 0
    for layout in ("batch-first", "batch-last"):
        for rows in FEWER if kernels.BACKENDS[name].native else ROWS:
            if usable(name, Task(chain, max(rows, 1), dtype, layout=layout)):
                part = x[:rows]
                judged(name, product, part.mT.contiguous() if layout == "batch-last" else part, layout, judge)
                ran += 1
    if not ran:
        pytest.skip(f"{name} supports no such task here")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("text", CHAINS)
@pytest.mark.parametrize("name", kernels.list_backends())
def test_prepared_factors(name: str, text: str, dtype: torch.dtype) -> None:
    """What is made of factors once multiplies any number of rows, on any number of threads, as `forward` does."""
    chain = Chain.parse(text)
    if not usable(name, Task(chain, 1, dtype)):
        pytest.skip(f"{name} supports no such task here")
    product, x = draw(chain, 2000, dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    matrix = product.to(wide).dense()
    prepared = kernels.BACKENDS[name].prepared(product.factors, chain.depths)
    for rows, threads in ((1, 1), (5, 1), (33, 1), (2000, 1), (2000, 3)):
        part = x[:rows]
        y = prepared(part, threads)
        assert y.is_contiguous()
        close(y, part.to(wide) @ matrix.T, dtype)
    close(prepared(x[:40:2].flip(0), 1), (x[:40:2].flip(0).to(wide) @ matrix.T), dtype)


@pytest.mark.parametrize("name", kernels.list_backends())
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_chain(name: str, data: st.DataObject) -> None:
    chain = data.draw(valid_chains())
    rows = data.draw(st.integers(0, 40))
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64, torch.complex64, torch.complex128)))
    layout = data.draw(st.sampled_from(("batch-first", "batch-last")))
    if usable(name, Task(chain, max(rows, 1), dtype, layout=layout)):
        product, x = draw(chain, rows, dtype)
        judged(name, product, x.mT.contiguous() if layout == "batch-last" else x, layout)


@pytest.mark.parametrize("text", ["butterfly(64)", "monarch(64, 64, blocks=8)"])
@pytest.mark.parametrize("name", kernels.list_backends())
def test_any_strides(name: str, text: str) -> None:
    chain = Chain.parse(text)
    if not usable(name, Task(chain, 20)):
        pytest.skip(f"{name} needs another machine")
    product, x = draw(chain, 40, torch.float32)
    wide = torch.randn(40, 200)
    views = (
        x[::2],
        x.flip(0),
        x[:20].repeat_interleave(3, dim=1)[:, ::3],
        wide[:, 3:67],
        x.mT.contiguous().mT,
        x[:1].expand(9, -1),
    )
    for view in views:
        assert view.shape[1] == 64
        judged(name, product, view)
        judged(name, product, view.mT, "batch-last")
    strided = [torch.stack([w, w], dim=-1)[..., 0] for w in product.factors]
    turned = [w.mT.contiguous().mT for w in product.factors]
    for factors in (strided, turned):
        y = kernels.multiply(x, SparseProduct(chain, factors), backend=name)
        close(y, x.double() @ SparseProduct(chain, [w.double() for w in factors]).dense().T, torch.float32)


@pytest.mark.parametrize("name", kernels.list_backends())
def test_conjugated_and_negated_views(name: str) -> None:
    chain = Chain.butterfly(32)
    product, x = draw(chain, 6, torch.complex64)
    if not usable(name, Task(chain, 6, torch.complex64)):
        pytest.skip(f"{name} needs another machine")
    flipped = SparseProduct(chain, [w.conj() for w in product.factors])
    want = (x.to(torch.complex128).conj() @ product.to(torch.complex128).dense().conj().T).to(torch.complex128)
    close(kernels.multiply(x.conj(), flipped, backend=name), want, torch.complex64)
    negated = torch._neg_view(x)
    close(kernels.multiply(negated.conj(), flipped, backend=name), -want, torch.complex64)


@pytest.mark.parametrize("name", kernels.list_backends())
def test_huge_batch(name: str) -> None:
    chain = Chain.butterfly(16)
    if not usable(name, Task(chain, 100_000)):
        pytest.skip(f"{name} needs another machine")
    judged(name, *draw(chain, 100_003, torch.float32))


@pytest.mark.parametrize("name", kernels.list_backends())
def test_inputs_are_left_alone(name: str) -> None:
    chain = Chain.parse("(1,64,64,1)")
    if not usable(name, Task(chain, 4)):
        pytest.skip(f"{name} needs another machine")
    product, x = draw(chain, 4, torch.float32)
    copies = [t.clone() for t in (x, *product.factors)]
    y = kernels.multiply(x, product, backend=name)
    y.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(copies, (x, *product.factors), strict=True))


COMPILED = [name for name in kernels.list_backends() if not kernels.BACKENDS[name].native]


@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize("text", ["butterfly(64)", "monarch(64, 64, blocks=8)"])
@pytest.mark.parametrize("name", COMPILED)
def test_memory_that_was_freed_is_not_read(name: str, text: str, offset: int) -> None:
    chain = Chain.parse(text)
    if not usable(name, Task(chain, 3, train=True)):
        pytest.skip(f"{name} needs another machine")
    product, x = draw(chain, 3, torch.float32)
    factors = [w.requires_grad_() for w in product.factors]
    y = kernels.multiply(x, SparseProduct(chain, factors), backend=name)
    last = factors[-1]  # at an offset in a storage that others share, as sharding wrappers lay weights out
    last.data = torch.cat([torch.ones(1 << offset), last.detach().flatten()])[1 << offset :].view(last.shape)
    size = last.untyped_storage().nbytes()
    last.untyped_storage().resize_(0)  # what they do between calls
    try:
        with pytest.raises(RuntimeError, match=r"tensor of shape \(.*\) has no memory: it was freed"):
            torch.autograd.grad(y.sum(), factors[:-1])
        for run in (kernels.multiply, lambda x, p: kernels.BACKENDS[name].prepared(p.factors, chain.depths)(x, 1)):
            with torch.no_grad(), pytest.raises(RuntimeError, match=r"has no memory: it was freed"):
                run(x, product)
    finally:
        last.untyped_storage().resize_(size)
    x.untyped_storage().resize_(0)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"tensor of shape \(3, 64\) has no memory"):
        kernels.multiply(x, product, backend=name)


@pytest.mark.parametrize("text", ["butterfly(64)", "monarch(64, 64, blocks=8)"])
@pytest.mark.parametrize("name", COMPILED)
def test_zeros_without_memory(name: str, text: str) -> None:
    chain = Chain.parse(text)
    if not usable(name, Task(chain, 3, train=True)):
        pytest.skip(f"{name} needs another machine")
    product, x = draw(chain, 3, torch.float32)
    zero = torch._efficientzerotensor((3, 64))
    assert torch.equal(kernels.multiply(zero, product, backend=name), torch.zeros(3, 64))
    factors = [w.requires_grad_() for w in product.factors]
    y = kernels.multiply(x.requires_grad_(), SparseProduct(chain, factors), backend=name)
    assert all(not g.any() for g in torch.autograd.grad(y, [x, *factors], zero))
