"""A packed layer computes what the layer computes, also after its weights have changed."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from distributed import run_python
from flatwing import kernels
from flatwing.nn import StructuredLinear, SumLinear, pack_, unpack_


def layer_of(chain: str = "butterfly(64)", **options: object) -> StructuredLinear:
    torch.manual_seed(0)
    return StructuredLinear(chain, **options)  # type: ignore[arg-type]


def used(layer: StructuredLinear, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is appended to when the packed copy multiplies."""
    calls: list[object] = []
    call = kernels.Packed.__call__
    monkeypatch.setattr(kernels.Packed, "__call__", lambda self, x: calls.append(self) or call(self, x))
    return calls


def agrees(layer: nn.Module, dense: Callable[[], torch.Tensor], x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ dense().T + layer.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("perms", [False, True])
def test_inference_uses_the_copy(perms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)) if perms else None
    layer = layer_of(perm_in=order, perm_out=order)
    keys, x = list(layer.state_dict()), torch.randn(3, 64)
    layer.pack()
    calls = used(layer, monkeypatch)
    for shape in ((64,), (3, 64), (2, 3, 64), (0, 64)):
        agrees(layer, layer.dense, torch.randn(*shape))
    assert len(calls) == 4
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), x @ layer.dense().T + layer.bias)
    assert len(calls) == 5
    layer.unpack()
    agrees(layer, layer.dense, x)
    assert len(calls) == 5
    assert list(layer.state_dict()) == keys


def step(layer: StructuredLinear) -> None:
    torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 64)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def other_permutation(layer: StructuredLinear) -> None:
    assert layer.perm_in is not None
    layer.perm_in.copy_(layer.perm_in.flip(0))


def pruned(layer: StructuredLinear) -> None:
    prune.random_unstructured(layer.factors, "2", amount=0.5)


class Subclass(torch.Tensor):
    """What wrappers make of a weight."""


class Doubled(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 2 * w


CHANGES: dict[str, Callable[[StructuredLinear], object]] = {
    "step": step,
    "load": lambda layer: layer.load_state_dict(layer_of(perm_in=True).double().state_dict()),
    "load other values": lambda layer: layer.load_state_dict(
        {k: 2 * v for k, v in layer.state_dict().items()} | {"perm_in": torch.arange(64)}
    ),
    "in place": lambda layer: layer.factors[3].detach().mul_(3),
    "new parameter": lambda layer: layer.factors.__setitem__(0, nn.Parameter(torch.ones(32, 2, 2))),
    "there and back": lambda layer: layer.to(torch.float64).to(torch.float32),
    "permutation": other_permutation,
    "pruned": pruned,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_of(perm_in=True), torch.randn(3, 64)
    layer.pack()
    assert layer.is_packed
    agrees(layer, layer.dense, x)
    CHANGES[change](layer)
    assert not layer.is_packed
    calls = used(layer, monkeypatch)
    agrees(layer, layer.dense, x)
    assert not calls
    layer.pack()
    agrees(layer, layer.dense, x)
    assert len(calls) == 1


def test_other_weights_for_one_call() -> None:
    layer, x = layer_of(), torch.randn(3, 64)
    layer.pack()
    doubled = {name: 2 * p.detach() for name, p in layer.named_parameters()}
    with torch.no_grad():
        got = torch.func.functional_call(layer, doubled, (x,))
        want = x @ (2**6 * layer.dense()).T + 2 * layer.bias
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_gradients_of_weights_are_recorded() -> None:
    layer, x = layer_of(), torch.randn(3, 64, requires_grad=True)
    layer.pack()
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    layer.requires_grad_(False)
    layer.pack()
    got = torch.autograd.grad(layer(x).square().sum(), x)[0]
    torch.testing.assert_close(got, x.grad)
    assert layer.is_packed


def test_training_goes_on() -> None:
    """Fused optimizers change weights without counting that."""
    layer, x = layer_of(), torch.randn(3, 64)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        layer.pack()
        agrees(layer, layer.dense, x)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        agrees(layer, layer.dense, x)


def test_memory_that_is_used_again_does_not_pass_for_the_old_weights() -> None:
    layer, x = layer_of(bias=False), torch.randn(3, 64)
    layer.pack()
    for k in range(6):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(torch.full((layer.nnz,), float(k)), layer.parameters())
            assert not layer.is_packed
            torch.testing.assert_close(layer(x), x @ layer.dense().T, rtol=1e-4, atol=1e-2)


def test_packed_within_inference_mode() -> None:
    layer, x = layer_of().requires_grad_(False), torch.randn(3, 64, requires_grad=True)
    with torch.inference_mode():
        layer.pack()
        layer(x)
    want = torch.autograd.grad((x @ layer.dense().T + layer.bias).square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), x)[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_keeps_the_parameters() -> None:
    layer, x = layer_of().requires_grad_(False), torch.randn(3, 64)
    layer.pack()
    traced = torch.jit.trace(layer, (x,))
    traced.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()})
    want = x @ layer.dense().T + layer.bias  # the trace shares the parameters
    torch.testing.assert_close(traced(x), want, rtol=1e-4, atol=1e-3)


def test_parametrizations_are_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, calls = layer_of(), []
    forward = Doubled.forward
    monkeypatch.setattr(Doubled, "forward", lambda self, w: calls.append(w) or forward(self, w))
    parametrize.register_parametrization(layer.factors, "1", Doubled())
    calls.clear()
    layer(torch.randn(3, 64))
    assert len(calls) == 1
    with pytest.raises(
        ValueError, match=r"computed at each access. Rule: plain parameters; remove the parametrization"
    ):
        layer.pack()


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_are_independent(way: str) -> None:
    layer, x = layer_of(), torch.randn(3, 64)
    layer.pack()
    if way == "deepcopy":
        twin = copy.deepcopy(layer)
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert layer.is_packed
    assert not twin.is_packed
    with torch.no_grad():
        twin.factors[0].zero_()
    agrees(layer, layer.dense, x)
    agrees(twin, twin.dense, x)


def test_a_whole_model() -> None:
    parts = [StructuredLinear(c, bias=False) for c in ("low_rank(64, 64, rank=2)", "butterfly(64)")]
    model = nn.Sequential(layer_of(), nn.ReLU(), SumLinear(*parts, bias=True))
    x = torch.randn(3, 64)
    with torch.no_grad():
        want = model(x)
        assert pack_(model) == ["0", "2.terms.0", "2.terms.1"]
        torch.testing.assert_close(model(x), want)
        assert unpack_(model) == ["0", "2.terms.0", "2.terms.1"]
        torch.testing.assert_close(model(x), want)


def test_wrong_arguments() -> None:
    with pytest.raises(
        ValueError, match=r"this Linear has no StructuredLinear. Rule: a model with layers of chains, as compress_"
    ):
        pack_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"this Linear has no StructuredLinear"):
        unpack_(nn.Linear(2, 2))
    with torch.inference_mode():
        layer = layer_of()
    with pytest.raises(ValueError, match=r"inference tensors.*outside of torch.inference_mode"):
        layer.pack()
    model = nn.Sequential(layer_of(), layer)
    with pytest.raises(ValueError, match=r"layer '1' cannot be packed: the weights are inference tensors"):
        pack_(model)
    assert not model[0].is_packed
    sharded = layer_of()
    sharded.factors[0] = nn.Parameter(torch.ones(32, 2, 2).as_subclass(Subclass))
    with pytest.raises(ValueError, match=r"the weights are .*Rule: ordinary parameters; pack before sharding"):
        sharded.pack()


def test_it_compiles() -> None:
    code = """
    import torch
    from flatwing.nn import StructuredLinear
    layer, x = StructuredLinear("butterfly(64)"), torch.randn(3, 64)
    layer.pack()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
        layer.factors[0].mul_(2)
        torch.testing.assert_close(compiled(x), x @ layer.dense().T + layer.bias, rtol=1e-5, atol=1e-4)
    print("compiled")
    """
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiled" in done.stdout
