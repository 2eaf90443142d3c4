import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatwing import Chain, SparseProduct, kernels
from flatwing.structure import transforms
from strategies import valid_chains

P = transforms.random_product(Chain.monarch(12, 20, blocks=4)).to(torch.float64)
BACKENDS = ("auto", "reference", "bmm", "dense")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 3, 20), (0, 20), (2, 0, 3, 20)])
def test_any_leading_shape(backend: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    y = kernels.multiply(x, P, backend=backend)
    torch.testing.assert_close(y, x @ P.dense().T)
    assert y.shape == (*shape[:-1], 12)
    first = x.movedim(-1, 0)
    last = kernels.multiply(first, P, backend=backend, layout="batch-last")
    torch.testing.assert_close(last, y.movedim(-1, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_permutations(backend: str) -> None:
    permuted = SparseProduct(P.chain, P.factors, torch.randperm(20), torch.randperm(12))
    x = torch.randn(5, 20, dtype=torch.float64)
    torch.testing.assert_close(kernels.multiply(x, permuted, backend=backend), x @ permuted.dense().T)
    got = kernels.multiply(x.T, permuted, backend=backend, layout="batch-last")
    torch.testing.assert_close(got, permuted.dense() @ x.T)


@settings(max_examples=20)
@given(chain=valid_chains(), batch=st.sampled_from([(2,), (2, 3), (0,)]), data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_of_products(backend: str, chain: Chain, batch: tuple[int, ...], data: st.DataObject) -> None:
    factors = [torch.randn(*batch, p.blocks, p.b, p.c, dtype=torch.float64) for p in chain]
    m, n = chain.shape
    if 0 in batch:
        return
    many = SparseProduct(chain, factors, torch.randperm(n), torch.randperm(m))
    for x in (torch.randn(*batch, 4, n, dtype=torch.float64), torch.randn(4, n, dtype=torch.float64)):
        torch.testing.assert_close(kernels.multiply(x, many, backend=backend), x @ many.dense().mT)
        got = kernels.multiply(x.mT, many, backend=backend, layout="batch-last")
        torch.testing.assert_close(got, many.dense() @ x.mT)


def test_dtypes_are_promoted_as_by_the_product() -> None:
    x = torch.randn(3, 20)
    assert kernels.multiply(x, P).dtype == torch.float64
    assert kernels.multiply(x.to(torch.complex64), P).dtype == torch.complex128
    assert kernels.multiply(x.double(), P.to(torch.complex64)).dtype == torch.complex128
    torch.testing.assert_close(kernels.multiply(x.to(torch.complex64), P).real, x.double() @ P.dense().T)


def test_values_changed_behind_autograds_back_are_seen() -> None:
    own = SparseProduct(Chain.butterfly(64), [torch.randn(32, 2, 2) for _ in range(6)])
    x = torch.randn(3, 64)
    kernels.multiply(x, own)
    for w in own.factors:
        w.data.mul_(2)  # bumps no version
    torch.testing.assert_close(kernels.multiply(x, own), x @ own.dense().T, rtol=1e-4, atol=1e-3)


def test_meta_tensors_have_shapes() -> None:
    assert kernels.multiply(torch.empty(3, 20, device="meta"), P.to("meta")).shape == (3, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(3, 21), P), r"x has shape \(3, 21\), the product has 20 columns. Rule: x is \(..., 20\)"),
        ((torch.tensor(1.0), P), r"the product has 20 columns"),
        ((torch.ones(3, 20, dtype=torch.int64), P), r"x is torch.int64. Rule: real or complex floating"),
        ((torch.ones(3, 20, device="meta"), P), r"x is on meta, the product on cpu. Rule: one device"),
    ],
)
def test_bad_vectors_are_refused(arguments: tuple[torch.Tensor, SparseProduct], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.multiply(*arguments)


def test_bad_batches_are_refused() -> None:
    many = SparseProduct(Chain.butterfly(4), [torch.ones(3, 2, 2, 2)] * 2)
    with pytest.raises(ValueError, match=r"the product has batch \(3,\), x has \(2,\). Rule: the same batch, or none"):
        kernels.multiply(torch.ones(2, 5, 4), many)
    with pytest.raises(ValueError, match=r"x has shape \(4,\).*with the batch \(3,\) in front"):
        kernels.multiply(torch.ones(4), many)


def test_other_things_are_refused() -> None:
    from flatwing.kernels.api import _check

    with pytest.raises(TypeError, match=r"product is a Tensor. Rule: a SparseProduct"):
        _check(torch.ones(4), torch.ones(4, 4), "batch-first")
    with pytest.raises(TypeError, match=r"x is a list. Rule: a torch tensor"):
        _check([1.0], P, "batch-first")
    with pytest.raises(ValueError, match=r"layout is 'rows'. Rule: one of batch-first, batch-last"):
        _check(torch.ones(20), P, "rows")


def test_backends_are_named() -> None:
    assert {"reference", "bmm", "dense", "numba", "triton"} <= set(kernels.list_backends())
    with pytest.raises(ValueError, match=r"unknown backend 'bnm', did you mean 'bmm'"):
        kernels.multiply(torch.ones(20), P, backend="bnm")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_named_backend_runs_or_raises() -> None:
    with pytest.raises(ValueError, match=r"backend 'triton' cannot multiply this: .*Rule: a backend that supports it"):
        kernels.multiply(torch.ones(20), P, backend="triton")


def test_explain_takes_a_chain_or_a_product() -> None:
    plan = kernels.explain(P, batch=16)
    assert (plan.task.dtype, plan.task.device, plan.task.rows) == (torch.float64, "cpu", 16)
    assert kernels.explain(P.chain, batch=16).task.dtype == torch.float32
    half = kernels.explain(P, batch=16, dtype=torch.bfloat16, layout="batch-last", train=True, threads=3)
    assert (half.task.dtype, half.task.layout, half.task.train, half.task.threads) == (
        torch.bfloat16,
        "batch-last",
        True,
        3,
    )
    many = SparseProduct(Chain.butterfly(4), [torch.ones(3, 2, 2, 2)] * 2)
    assert kernels.explain(many).task.chain == Chain([(3, 2, 2, 2), (6, 2, 2, 1)])
    with pytest.raises(ValueError, match=r"batch=0. Rule: at least one vector, batch=1"):
        kernels.explain(P, batch=0)
