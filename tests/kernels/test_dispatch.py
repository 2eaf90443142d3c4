"""Everything torch does with a function, done with a compiled backend: one column of the table per test."""

import io

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch.utils.flop_counter import FlopCounterMode

from flatwing import Chain, SparseProduct, kernels
from flatwing.kernels import dispatch
from flatwing.kernels.backend import Task
from multiplication import Case, Opaque, same

CHAINS = ("butterfly(16)", "monarch(12, 20, blocks=4)")
NAMES = ["opaque", *(n for n, b in kernels.BACKENDS.items() if not b.native)]


@pytest.fixture(autouse=True)
def opaque(monkeypatch: pytest.MonkeyPatch) -> Opaque:
    backend = Opaque()
    monkeypatch.setitem(kernels.BACKENDS._entries, "opaque", backend)
    return backend


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    backend = kernels.BACKENDS[request.param]
    if backend.unsupported_because(Task(Chain.butterfly(16), 4)) is not None:
        pytest.skip(f"{request.param} needs another machine")
    return request.param


@pytest.fixture(params=CHAINS)
def case(request: pytest.FixtureRequest, name: str) -> Case:
    return Case(Chain.parse(request.param), name)


def test_first_derivatives_run_the_kernels_of_the_backend(opaque: Opaque) -> None:
    case = Case(Chain.butterfly(16), "opaque")
    leaves = case.leaves()
    case.loss(*leaves).backward()
    same([t.grad for t in leaves], list(torch.autograd.grad(case.judged_loss(*leaves), leaves)))
    assert opaque.calls == ["forward", "backward"]


def test_only_what_is_asked_for_is_differentiated(case: Case) -> None:
    x, first, *rest = case.leaves()
    frozen = [w.detach() for w in rest]
    got = torch.autograd.grad(case.f(x.detach(), first, *frozen).sum(), first)
    want = torch.autograd.grad(case.judge(x.detach(), first, *frozen).sum(), first)
    same(got, want)
    got = torch.autograd.grad(case.f(x, first.detach(), *frozen).sum(), x)
    same(got, torch.autograd.grad(case.judge(x, first.detach(), *frozen).sum(), x))


def test_gradients_of_gradients(case: Case) -> None:
    leaves = case.leaves()
    assert torch.autograd.gradcheck(case.f, leaves)
    assert torch.autograd.gradgradcheck(case.f, leaves)


def test_hessian_vector_product(case: Case) -> None:
    direction = [torch.ones_like(t) for t in case.tensors]

    def hvp(loss):
        leaves = case.leaves()
        grads = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum((g * v).sum() for g, v in zip(grads, direction, strict=True)), leaves)

    same(hvp(case.loss), hvp(case.judged_loss))


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")  # torch, on its first tangent
def test_forward_mode(case: Case) -> None:
    tangents = [torch.randn_like(t) for t in case.tensors]
    want = torch.func.jvp(case.judge, tuple(case.tensors), tuple(tangents))
    same(torch.func.jvp(case.f, tuple(case.tensors), tuple(tangents)), want)
    only_x = torch.func.jvp(lambda x: case.judge(x, *case.factors), (case.x,), (tangents[0],))[1]
    with fwd.dual_level():  # the older interface, also for some inputs only, with or without grad mode
        dual = fwd.make_dual(case.x, tangents[0])
        same(fwd.unpack_dual(case.f(dual, *case.factors)).tangent, only_x)
        with torch.no_grad():
            same(fwd.unpack_dual(case.f(dual, *case.factors)).tangent, only_x)


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")
def test_functional_gradients(case: Case) -> None:
    every = tuple(range(len(case.tensors)))
    same(torch.func.grad(case.loss, every)(*case.tensors), torch.func.grad(case.judged_loss, every)(*case.tensors))
    same(torch.func.jacrev(case.f)(*case.tensors), torch.func.jacrev(case.judge)(*case.tensors))
    same(torch.func.jacfwd(case.f, every)(*case.tensors), torch.func.jacfwd(case.judge, every)(*case.tensors))
    same(torch.func.hessian(case.loss, 1)(*case.tensors), torch.func.hessian(case.judged_loss, 1)(*case.tensors))


def test_vmap(case: Case) -> None:
    many_x = torch.randn(3, *case.x.shape, dtype=torch.float64)
    many = [torch.randn(3, *w.shape, dtype=torch.float64) for w in case.factors]
    over_x = (0, *(None for _ in many))
    same(torch.vmap(case.f, over_x)(many_x, *case.factors), torch.vmap(case.judge, over_x)(many_x, *case.factors))
    over_factors = (None, *(0 for _ in many))
    same(torch.vmap(case.f, over_factors)(case.x, *many), torch.vmap(case.judge, over_factors)(case.x, *many))
    one = (1, 0, *(None for _ in many[1:]))
    args = (many_x.movedim(0, 1), many[0], *case.factors[1:])
    same(torch.vmap(case.f, one)(*args), torch.vmap(case.judge, one)(*args))


def test_gradients_per_sample(case: Case) -> None:
    every = tuple(range(1, len(case.tensors)))
    over_rows = (0, *(None for _ in case.factors))
    got = torch.vmap(torch.func.grad(lambda x, *w: case.loss(x[None], *w), every), over_rows)(*case.tensors)
    want = torch.vmap(torch.func.grad(lambda x, *w: case.judged_loss(x[None], *w), every), over_rows)(*case.tensors)
    same(got, want)


def test_batched_backward(case: Case, opaque: Opaque) -> None:
    leaves = case.leaves()
    y = case.f(*leaves)
    grads = torch.randn(3, *y.shape, dtype=torch.float64)
    got = torch.autograd.grad(y, leaves, grads, is_grads_batched=True)
    want = torch.autograd.grad(case.judge(*leaves), leaves, grads, is_grads_batched=True)
    same(got, want)
    assert "backward" not in opaque.calls  # the memory of such a gradient cannot be read


@pytest.mark.parametrize("last", [False, True])
def test_operators_transform(name: str, last: bool) -> None:
    case = Case(Chain.parse("monarch(12, 20, blocks=4)"), name)
    flip = (lambda t: t.mT) if last else (lambda t: t)

    def f(x, *w):
        return flip(dispatch.multiply_op(flip(x).contiguous(), list(w), list(case.chain.depths), name, last))

    leaves = case.leaves()
    assert torch.autograd.gradgradcheck(f, leaves)
    many = [torch.randn(3, *t.shape, dtype=torch.float64) for t in case.tensors]
    for dims in ((0, None, None), (None, 0, 0), (0, 0, None)):
        args = [m if d == 0 else t for m, t, d in zip(many, case.tensors, dims, strict=True)]
        same(torch.vmap(f, dims)(*args), torch.vmap(case.judge, dims)(*args))
    grads = torch.randn(3, 5, 12, dtype=torch.float64)
    got = torch.autograd.grad(f(*leaves), leaves, grads, is_grads_batched=True)
    same(got, torch.autograd.grad(case.judge(*leaves), leaves, grads, is_grads_batched=True))


class Layer(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.factors = torch.nn.ParameterList(case.factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.case.f(x, *self.factors)


def test_export(case: Case) -> None:
    rows = torch.export.Dim("rows", min=2, max=1000)
    layer = Layer(case)
    program = torch.export.export(layer, (case.x,), dynamic_shapes={"x": {0: rows}}, strict=False)
    assert any("flatwing.multiply" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    x = torch.randn(11, case.chain.shape[1], dtype=torch.float64)
    same(again(x), case.judge(x, *case.factors))


def test_autocast(name: str) -> None:
    case = Case(Chain.parse("monarch(12, 20, blocks=4)"), name, dtype=torch.float32)
    if kernels.BACKENDS[name].unsupported_because(Task(case.chain, 5, torch.bfloat16)) is not None:
        pytest.skip(f"{name} does not multiply bfloat16")
    leaves = case.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        y = case.f(*leaves)
        want = torch.nn.functional.linear(case.x, SparseProduct(case.chain, case.factors).dense())
    assert y.dtype == want.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().square().sum(), leaves)
    wanted = torch.autograd.grad(case.judged_loss(*leaves), leaves)
    for g, w in zip(grads, wanted, strict=True):
        assert g.dtype == torch.float32
        assert float((g - w).abs().max() / w.abs().max()) < 0.05
    double = Case(case.chain, name)
    with torch.autocast("cpu", torch.bfloat16):  # double precision is left alone, as torch does
        assert double.f(*double.tensors).dtype == torch.float64


def test_operations_are_counted(case: Case) -> None:
    leaves = case.leaves()
    with FlopCounterMode(display=False) as counter:
        case.loss(*leaves).backward()
    assert counter.get_total_flops() == 3 * len(case.x) * case.chain.flops


def test_fake_tensors(case: Case) -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        x, *factors = (mode.from_tensor(t) for t in case.tensors)
        y = case.f(x, *factors)
    assert tuple(y.shape) == (5, case.chain.shape[0])


@pytest.mark.parametrize("text", ["butterfly(64)", "monarch(64, 64, blocks=8)"])
def test_operators_called_by_name_refuse_what_does_not_fit(text: str) -> None:
    """Kernels read memory by address: what does not fit must not reach them."""
    chain = Chain.parse(text)
    factors, depths = [torch.ones(p.blocks, p.b, p.c) for p in chain], list(chain.depths)
    x = torch.ones(3, 64)
    ops = torch.ops.flatwing
    for width, last in ((32, False), (3, True)):
        with pytest.raises(ValueError, match=r"x has shape \(3, \d+\), the product has 64 columns"):
            ops.multiply(torch.ones(3, width), factors, depths, "auto", last)
    with pytest.raises(ValueError, match=r"x is torch.float64, factor 0 is torch.float32.* Rule: one dtype"):
        ops.multiply(x.double(), factors, depths, "auto", False)
    for wrong in ([3] * len(depths), depths[1:], [0, *depths[1:]]):
        with pytest.raises(ValueError, match=r"Rule: factors \(a d, b, c\), and the d of each"):
            ops.multiply(x, factors, wrong, "auto", False)
    with pytest.raises(ValueError, match=r"grad has shape \(1, 64\). Rule: that of the result, \(3, 64\)"):
        ops.multiply_backward(x, factors, depths, "auto", False, torch.ones(1, 64))
    with pytest.raises(ValueError, match=r"grad is torch.float64. Rule: one dtype"):
        ops.multiply_backward(x, factors, depths, "auto", False, x.double())


@pytest.mark.parametrize("text", ["butterfly(64)", "monarch(64, 64, blocks=8)"])
def test_products_whose_tensors_were_swapped(text: str) -> None:
    """Whoever writes to `.data` may leave another size or type under the same object."""
    chain, x = Chain.parse(text), torch.randn(3, 64)

    def product() -> SparseProduct:
        made = SparseProduct(chain, [torch.randn(p.blocks, p.b, p.c) for p in chain])
        kernels.multiply(x, made)
        return made

    smaller = product()
    smaller.factors[0].data = smaller.factors[0].data[:1].clone()
    with pytest.raises(ValueError, match=r"the factors have shapes \[\(1, "):
        kernels.multiply(x, smaller)
    wider = product()
    for w in wider.factors[1:]:
        w.data = w.data.double()
    want = x.double() @ SparseProduct(chain, [w.double() for w in wider.factors]).dense().T
    torch.testing.assert_close(kernels.multiply(x, wider), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["batch-first", "batch-last"])
def test_vmap_over_nothing(case: Case, layout: str) -> None:
    m, n = case.chain.shape
    product = SparseProduct(case.chain, case.factors)
    x = torch.empty((0, n, 3) if layout == "batch-last" else (0, 3, n), dtype=torch.float64)
    for name in (case.name, "bmm"):
        y = torch.vmap(lambda x: kernels.multiply(x, product, backend=name, layout=layout))(x)  # noqa: B023
        assert y.shape == ((0, m, 3) if layout == "batch-last" else (0, 3, m))
    if layout == "batch-first":
        over_rows = (0, *[None] * len(case.factors))
        (got,) = torch.vmap(torch.func.grad(case.loss, (0,)), over_rows)(x, *case.factors)
        assert got.shape == x.shape


def test_autocast_of_calls_that_record_nothing() -> None:
    product = SparseProduct(Chain.butterfly(64), [torch.randn(32, 2, 2) for _ in range(6)])
    x = torch.randn(3, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert kernels.multiply(x, product).dtype == torch.bfloat16
    assert kernels.multiply(x, product).dtype == torch.float32
