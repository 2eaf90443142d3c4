"""Which layers are found, under which names, and why some must stay."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from flatwing import StructuredLinear
from flatwing.nn import StructuredAdapter, linear_layers, replace_module
from flatwing.nn.names import matching


class Conv1D(nn.Module):
    """What transformers has under this name: the weight is stored (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    pass


def frozen_forward() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.forward = lambda x: x  # type: ignore[method-assign]
    return linear


def hooked() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.register_forward_hook(lambda *_: None)
    return linear


def integers() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return linear


def quantized() -> nn.Module:
    module = nn.Identity()
    module.in_features, module.out_features = 3, 5
    return module


SKIPPED: dict[str, tuple[Any, str]] = {
    "embedding": (lambda: nn.Embedding(5, 3), "an embedding is a table that is looked up"),
    "lazy": (lambda: nn.LazyLinear(4), "it is lazy and has no shape yet; run the model once"),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "its weight is parametrized; use remove_parametrizations first",
    ),
    "pruned": (
        lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
        "its weight is computed from others",
    ),
    "own forward": (lambda: Doubled(4, 4), "a Doubled has a forward of its own"),
    "replaced forward": (frozen_forward, "its forward was replaced from outside"),
    "hooks": (hooked, "it has hooks, which would be lost"),
    "integers": (integers, "its weight is torch.int8, not floating point"),
    "quantized": (quantized, r"a Identity \(quantized or foreign\) is not an nn.Linear"),
    "empty": (lambda: nn.Linear(4, 0, bias=False), "it is empty"),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("case", SKIPPED)
def test_reasons_to_stay(case: str) -> None:
    build, reason = SKIPPED[case]
    info = linear_layers(nn.Sequential(build()))["0"]
    assert info.skip is not None
    assert re.search(reason, info.skip)


def test_a_subclass_without_a_forward_may_be_replaced() -> None:
    assert linear_layers(nn.Sequential(Renamed(4, 4)))["0"].skip is None


def test_attention_reads_its_projections() -> None:
    infos = linear_layers(nn.TransformerEncoderLayer(8, 2, 16))
    assert "in_proj_weight is a parameter of MultiheadAttention" in (infos["self_attn"].skip or "")
    assert "MultiheadAttention reads its weight and does not call it" in (infos["self_attn.out_proj"].skip or "")
    assert infos["linear1"].skip is None
    split = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4, vdim=4))
    assert list(linear_layers(split)) == ["0.out_proj"]


def test_structured_layers_are_done_and_adapters_keep_their_base() -> None:
    model = nn.Sequential(StructuredLinear("butterfly(4)"), StructuredAdapter(nn.Linear(4, 4), "butterfly(4)"))
    infos = linear_layers(model)
    assert list(infos) == ["1.base"]
    assert "StructuredAdapter reads its weight" in (infos["1.base"].skip or "")


def test_transposed_layers() -> None:
    info = linear_layers(nn.Sequential(Conv1D(6, 4)))["0"]
    assert (info.out_features, info.in_features, info.transposed, info.skip) == (6, 4, True, None)
    x = torch.randn(3, 4)
    assert torch.allclose(info.as_linear()(x), info.module(x), atol=1e-6)
    assert info.weight.data_ptr() == info.module.weight.data_ptr()


def test_shared_modules_are_listed_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    infos = linear_layers(model)
    assert {name: info.aliases for name, info in infos.items()} == {"a": ("b.0",)}
    assert infos["a"].tied_to == ()
    assert infos["a"].skip is None


def test_tied_weights() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": Conv1D(4, 4), "d": Conv1D(4, 4)})
    model["b"].weight = model["a"].weight
    assert {name: (i.tied_to, i.skip) for name, i in linear_layers(model).items()} == {
        "a": (("b.weight",), None),
        "b": (("a.weight",), None),
        "c": ((), None),
        "d": ((), None),
    }
    model["c"].weight = model["a"].weight
    infos = linear_layers(model)
    assert "c.weight, which must stay: it is stored transposed" in (infos["a"].skip or "")
    assert infos["c"].skip is not None


def test_weight_tied_to_a_bare_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_parameter("again", model[0].weight)
    assert linear_layers(model)["0"].skip == "its weight is also again, which is not a linear layer"


@pytest.mark.parametrize(
    ("names", "heads"),
    [
        (["fc", "lm_head"], {"lm_head"}),
        (["classifier.0", "classifier.3", "classifier.6"], {"classifier.6"}),
        (["blocks.0.head", "head"], {"head"}),
        (["decoder.layers.0.fc", "decoder"], set()),
        (["model.score", "headless"], {"model.score"}),
    ],
)
def test_heads(names: list[str], heads: set[str]) -> None:
    model = nn.Module()
    for name in names:
        *path, last = name.split(".")
        parent = model
        for key in path:
            if key not in parent._modules:
                parent.add_module(key, nn.Module())
            parent = parent._modules[key]
        if last not in parent._modules:
            parent.add_module(last, nn.Linear(2, 2))
    assert {name for name, info in linear_layers(model).items() if info.is_head} == heads


def test_globs() -> None:
    model = nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    infos = linear_layers(model)
    assert matching(infos, "*") == {"attn", "mlp.0", "mlp.1"}
    assert matching(infos, ["mlp.*", "attn"]) == {"attn", "mlp.0", "mlp.1"}
    with pytest.raises(ValueError, match=r"where='atn' matches none of the 3 linear layers. The nearest names: attn"):
        matching(infos, ["mlp.*", "atn"])


def test_replacement_reaches_every_place() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU())})
    model.extra = shared
    new = nn.Identity()
    replace_module(model, "b.0", new)
    assert model["a"] is model["b"][0] is model.extra is new
    with pytest.raises(ValueError, match=r"has no module 'b.3'. The nearest names: b"):
        replace_module(model, "b.3", new)
    with pytest.raises(ValueError, match="the model itself is this layer"):
        replace_module(model, "", new)


def test_looking_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(3, 3), nn.MultiheadAttention(4, 2))
    before = copy.deepcopy(model.state_dict())
    linear_layers(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
