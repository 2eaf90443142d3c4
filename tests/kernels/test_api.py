import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatwing import Chain, SparseProduct, StructuredLinear, kernels
from flatwing.nn import BlastLinear, StructuredAdapter
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
    from flatwing.kernels.api import require_fitting

    with pytest.raises(TypeError, match=r"product is a Tensor. Rule: a SparseProduct"):
        require_fitting(torch.ones(4), torch.ones(4, 4), "batch-first")
    with pytest.raises(TypeError, match=r"x is a list. Rule: a torch tensor"):
        require_fitting([1.0], P, "batch-first")
    with pytest.raises(ValueError, match=r"layout is 'rows'. Rule: one of batch-first, batch-last"):
        require_fitting(torch.ones(20), P, "rows")


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
    with pytest.raises(ValueError, match=r"batch is 0. Rule: a whole number from 1 to"):
        kernels.explain(P, batch=0)


def test_explain_names_the_plan_that_runs() -> None:
    from flatwing.kernels.plan import plan_of

    for chain in (Chain.butterfly(64), Chain.low_rank(96, 80, rank=6), Chain.monarch(64, 64, blocks=8)):
        for rows in (1, 3, 33, 48, 100):
            for train in (False, True):
                ran = plan_of(chain, torch.ones(rows, chain.shape[1]), False, train, "auto")
                assert kernels.explain(chain, batch=rows, train=train) is ran
    with pytest.raises(ValueError, match=r"threads is 0. Rule: a whole number from 1 to"):
        kernels.explain(P, threads=0)
    with pytest.raises(ValueError, match=r"factors of dtype int32 are not multiplied. Rule: one of float32"):
        kernels.explain(P, dtype=torch.int32)


LAYERS = {
    "chain": lambda: StructuredLinear("monarch(1024, 1024, blocks=32)"),
    "butterfly": lambda: StructuredLinear("butterfly(1024)"),
    "blast": lambda: BlastLinear(1024, 1024, blocks=4, rank=8),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("grad", [False, True])
def test_layers_never_read_what_is_not_theirs(kind: str, grad: bool) -> None:
    layer, x = LAYERS[kind](), torch.randn(300, 1024)
    names = [name for name, _ in layer.named_parameters() if name != "bias"]
    want = layer(x)
    with torch.set_grad_enabled(grad):
        for name in names:
            whole = dict(layer.named_parameters())
            halved = {**whole, name: whole[name][..., : whole[name].shape[-1] // 2]}
            with pytest.raises(ValueError, match=r"the factors have shapes .* Rule: those of"):
                torch.func.functional_call(layer, halved, (x,))
            if name != names[0]:  # the first one is the dtype of the layer
                mixed = torch.func.functional_call(layer, {**whole, name: whole[name].double()}, (x,))
                torch.testing.assert_close(mixed.float(), want, rtol=1e-3, atol=1e-3)
        with pytest.raises(ValueError, match=r"x is on cpu, the product on meta. Rule: one device"):
            LAYERS[kind]().to("meta")(x)


def test_adapters_refuse_another_width() -> None:
    adapter = StructuredAdapter(torch.nn.Linear(1024, 64), "butterfly(1024)", mode="orthogonal", side="in")
    with pytest.raises(ValueError, match=r"x has shape \(3, 16\), the product has 1024 columns"):
        adapter(torch.randn(3, 16))


def test_autocast_leaves_complex_numbers_alone() -> None:
    layer = StructuredLinear("monarch(64, 64, blocks=8)", dtype=torch.complex64)
    x = torch.randn(5, 64, dtype=torch.complex64)
    with torch.autocast("cpu"):
        assert torch.equal(layer(x), layer(x.clone()))
        assert layer(x).dtype == torch.complex64


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces() -> None:
    layer = StructuredLinear("butterfly(64)").eval()
    traced = torch.jit.trace(layer, torch.randn(3, 64))
    x = torch.randn(20, 64)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("text", ["butterfly(64)", "monarch(64, 64, blocks=8)"])
def test_the_short_way_finds_what_the_long_way_finds(text: str) -> None:
    product = transforms.random_product(Chain.parse(text)).to(torch.complex64)
    x = torch.randn(6, 64, dtype=torch.complex64)
    permuted = SparseProduct(product.chain, product.factors, torch.randperm(64))
    half = torch.randn(6, 64)
    with torch.no_grad():
        for p in (product, permuted, product.conj(), product.to(torch.complex128)):
            for v in (x, x.conj(), x[0], x[None], half, half.to(torch.complex128), x.conj().imag):
                wide, factors = torch.complex128, [w.to(torch.complex128) for w in p.factors]
                want = v.to(wide) @ SparseProduct(p.chain, factors, p.perm_in, p.perm_out).dense().T
                got = kernels.multiply(v, p)
                assert got.dtype == torch.promote_types(v.dtype, p.factors[0].dtype)
                torch.testing.assert_close(got.to(wide), want, rtol=1e-4, atol=1e-4)
