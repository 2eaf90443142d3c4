"""A packed product is `multiply` with a copy of the weights, wherever the call comes from."""

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flatwing import Chain, SparseProduct, kernels
from flatwing.kernels import BACKENDS, Packed, wisdom
from flatwing.kernels.backend import Task
from flatwing.kernels.plan import plan_for
from strategies import as_user

CHAINS = ("butterfly(256)", "butterfly(48)", "monarch(64, 64, blocks=8)", "monarch(30, 42, blocks=6)", "(1,64,48,1)")


def random_product(text: str, dtype: torch.dtype = torch.float32, batch: tuple[int, ...] = ()) -> SparseProduct:
    chain, g = Chain.parse(text), torch.Generator().manual_seed(1)
    return SparseProduct(
        chain, [torch.randn(*batch, p.blocks, p.b, p.c, generator=g, dtype=dtype) / p.c**0.5 for p in chain]
    )


def vectors(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("text", CHAINS)
def test_it_multiplies(text: str, dtype: torch.dtype) -> None:
    product = random_product(text, dtype)
    packed, wide = Packed(product), torch.complex128 if dtype.is_complex else torch.float64
    matrix = product.to(wide).dense()
    for shape in ((1,), (7,), (300,), (0,), (), (2, 3), (2, 0)):
        x = vectors(*shape, product.shape[1], dtype=dtype)
        y = packed(x)
        assert y.dtype == dtype
        assert y.shape == (*shape, product.shape[0])
        tolerance = {torch.bfloat16: 5e-2, torch.float64: 1e-12}.get(dtype, 1e-5)
        torch.testing.assert_close(y.to(wide), x.to(wide) @ matrix.T, rtol=0, atol=tolerance * product.shape[0] ** 0.5)


def test_weights_are_copied() -> None:
    product = random_product("butterfly(64)")
    packed, x = Packed(product), vectors(3, 64)
    want = packed(x)
    for w in product.factors:
        w.data.fill_(float("nan"))
    assert torch.equal(packed(x), want)
    assert torch.equal(packed(x[:1].expand(700, 64))[699], Packed(packed.product)(x[:1].expand(700, 64))[0])


@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)])
def test_permutations(which: tuple[bool, bool]) -> None:
    plain = random_product("monarch(30, 42, blocks=6)")
    g = torch.Generator().manual_seed(3)
    perm_in, perm_out = (
        torch.randperm(n, generator=g) if use else None for n, use in zip((42, 30), which, strict=True)
    )
    product = SparseProduct(plain.chain, plain.factors, perm_in, perm_out)
    for x in (vectors(5, 42), vectors(2, 3, 42), vectors(42)):
        torch.testing.assert_close(Packed(product)(x), kernels.multiply(x, product))


def test_a_batch_of_products() -> None:
    product = random_product("butterfly(16)", batch=(3,))
    x = vectors(3, 5, 16)
    packed = Packed(product)
    assert packed.shape == (3, 16, 16)
    torch.testing.assert_close(packed(x), kernels.multiply(x, product))


def calls() -> dict[str, Callable[[Packed, torch.Tensor], torch.Tensor]]:
    def autocast(f: Packed, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            assert f(x).dtype == torch.bfloat16
            return f(x).float()

    def traced(f: Packed, x: torch.Tensor) -> torch.Tensor:
        return torch.jit.trace(lambda x: f(x), (x,))(x)

    return {
        "gradient": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
        "backward": lambda f, x: torch.autograd.grad(f(x.requires_grad_()).square().sum(), x)[0],
        "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
        "vmap": lambda f, x: torch.func.vmap(f)(x),
        "jacobian": lambda f, x: torch.func.jacrev(f)(x[0]),
        "other dtype": lambda f, x: f(x.to(torch.complex64)).real,
        "negated": lambda f, x: f(torch._neg_view(x)),
        "autocast": autocast,
        "inference": lambda f, x: torch.inference_mode()(f)(x),
        "transposed": lambda f, x: f(x.mT.contiguous().mT),
        "traced": traced,
    }


@pytest.mark.parametrize("way", calls())
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_wherever_the_call_comes_from(way: str) -> None:
    product, x = random_product("butterfly(64)"), vectors(3, 64)
    call = calls()[way]
    want = call(lambda x: x @ product.to(x.dtype).dense().T, x.clone())  # type: ignore[arg-type]
    got = call(Packed(product), x.clone())
    tolerance = 1e-5 if way != "autocast" else 3e-2
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


def test_plans_count_no_preparation() -> None:
    product = random_product("butterfly(256)")
    for rows in (1, 16, 256):
        assert Packed(product).plan(rows).seconds < kernels.explain(product, rows).seconds
    dense = plan_for(Task(product.chain, 1), "dense")
    packed = plan_for(Task(product.chain, 1, packed=True), "dense")
    assert packed.seconds < dense.seconds / 3
    assert "packed forward" in str(packed)
    assert packed.as_dict()["packed"] is True


def test_neighbours_are_merged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.parse("butterfly(64)")
    whole = plan_for(Task(chain, 4, packed=True), "bmm")
    assert whole.merged  # merging costs nothing here
    merges: list[object] = []
    merge = SparseProduct.merge
    monkeypatch.setattr(SparseProduct, "merge", lambda *a: merges.append(a) or merge(*a))
    product, x = random_product("butterfly(64)"), vectors(4, 64)
    packed = Packed(product)
    first = packed(x)
    count = len(merges)
    assert torch.equal(packed(x), first)
    assert len(merges) == count


@pytest.mark.usefixtures("wisdom_file")
def test_new_measurements_change_the_plan() -> None:
    """What was measured of calls that prepare says nothing of packed ones, but of the dense layer it does."""
    packed = Packed(random_product("butterfly(64)"))
    task = packed.plan(2).task
    wisdom.store(replace(task, packed=False), {"numba": 1.0, "bmm": 1.0, "F.linear": 7.0})
    plan = packed.plan(2)
    assert (plan.dense_seconds, plan.measured) == (7.0, False)
    assert plan.seconds < 1e-3
    wisdom.store(task, {"bmm": 2e-7, "F.linear": 6.0})
    plan = packed.plan(2)
    assert (plan.backend, plan.seconds, plan.dense_seconds, plan.measured) == ("bmm", 2e-7, 6.0, True)
    assert wisdom.lookup(replace(task, packed=False))["F.linear"] == 7.0


@pytest.mark.parametrize("name", ["bmm", "dense", "reference"])
def test_a_named_backend_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    product, x, prepared = random_product("monarch(30, 42, blocks=6)"), vectors(5, 42), []
    real = BACKENDS[name].prepared
    monkeypatch.setattr(BACKENDS[name], "prepared", lambda *a: prepared.append(name) or real(*a))
    packed = Packed(product, backend=name)
    torch.testing.assert_close(packed(x), x @ product.dense().T, rtol=0, atol=1e-4)
    assert (prepared, packed.plan(5).backend) == ([name], name)
    again = pickle.loads(pickle.dumps(packed))
    assert again.plan(5).backend == name


def test_a_named_backend_that_cannot_run_raises() -> None:
    with pytest.raises(ValueError, match=r"bnm.*bmm"):
        Packed(random_product("butterfly(64)"), backend="bnm")
    with pytest.raises(ValueError, match=r"backend 'triton' cannot multiply this: only for CUDA devices"):
        Packed(random_product("butterfly(64)"), backend="triton")


def test_float16_keeps_its_range() -> None:
    """A merged matrix would overflow, or lose its digits, where the factors do not."""
    for scale in (200.0, 3e-4):
        product = random_product("monarch(64, 64, blocks=8)", torch.float64)
        halves = SparseProduct(product.chain, [(scale * w).to(torch.float16) for w in product.factors])
        x = vectors(1, 64).to(torch.float16) / scale
        packed = Packed(halves)
        assert packed.plan(1).backend != "dense"
        assert not packed.plan(1).merged
        want = x.double() @ SparseProduct(product.chain, [w.double() for w in halves.factors]).dense().T
        error = (packed(x).double() - want).norm() / want.norm()
        assert error < 2e-3


def test_packed_within_inference_mode() -> None:
    product, x = random_product("butterfly(64)"), vectors(3, 64).requires_grad_()
    with torch.inference_mode():
        packed = Packed(product)
    assert torch.autograd.grad(packed(x).sum(), x)[0].shape == x.shape


class Wrapper(torch.Tensor):
    """Of another type, as subclasses of tensors are."""


def test_vectors_of_other_types_take_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = Packed(random_product("butterfly(64)")), vectors(2, 3, 64)
    monkeypatch.setattr(Packed, "_multiply", None)
    assert packed(x.as_subclass(Wrapper)).shape == (2, 3, 64)


def test_wrong_arguments() -> None:
    packed = Packed(random_product("butterfly(64)"))
    with as_user():
        with pytest.raises(TypeError, match=r"product is a Tensor. Rule: a SparseProduct"):
            Packed(torch.ones(4, 4))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"x is a list. Rule: a torch tensor"):
            packed([1.0])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"x is torch.int64. Rule: real or complex"):
            packed(torch.ones(3, 64, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x has shape \(3, 65\), the product has 64 columns"):
        packed(vectors(3, 65))
    with pytest.raises(ValueError, match="batch"):
        packed.plan(0)
    with pytest.raises(ValueError, match=r"x has the layout torch.sparse_coo. Rule: an ordinary, dense tensor"):
        packed(vectors(3, 64).to_sparse())
    with pytest.raises(ValueError, match=r"x has the layout torch.sparse_coo"):
        kernels.multiply(vectors(3, 64).to_sparse(), packed.product)
