"""The degree L of a network that is homogeneous in its parameters: f(c theta) = c^L f(theta) for every c > 0."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..nn import BlastLinear, StructuredLayer, StructuredLinear, SumLinear
from .check import require_model
from .paths import of_shapes, paths

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# what is done to x is done to c x, times c
KEEPERS = (
    nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Unflatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample,
)  # fmt: skip
KEEP: set[Callable[..., Any] | str] = {
    torch.relu, F.relu, F.leaky_relu, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten,
    torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose, torch.sum, torch.mean, torch.neg,
    torch.abs, operator.getitem, operator.neg, "relu", "flatten", "reshape", "view", "squeeze", "unsqueeze", "permute",
    "transpose", "contiguous", "sum", "mean", "expand", "repeat", "chunk", "split", "neg", "abs", "float", "double",
    "to", "clone", "amax", "amin",
}  # fmt: skip
PRODUCT: set[Callable[..., Any] | str] = {
    operator.mul, operator.matmul, torch.mul, torch.matmul, torch.mm, torch.bmm, torch.einsum, "mul", "matmul", "bmm",
    "mm",
}  # fmt: skip
SUM: set[Callable[..., Any] | str] = {
    operator.add, operator.sub, operator.iadd, torch.add, torch.sub, torch.cat, torch.stack, torch.maximum,
    torch.minimum, "add", "sub", "add_",
}  # fmt: skip
AFFINE: set[Callable[..., Any] | str] = {F.linear, F.conv1d, F.conv2d, F.conv3d}
VIEWS = ("T", "mT")  # attributes that are the tensor itself, turned
DIRECT = {"weight", "bias", "weight_orig", "weight_mask", "bias_orig", "bias_mask"}  # masks are those of torch's prune


def _known(module: nn.Module) -> bool:
    """Whether a layer is one of those that have a rule, and does as its class does."""
    kinds = (*PRODUCTS, *KEEPERS, nn.Embedding, StructuredLayer)
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def degree_of(model: nn.Module) -> int:
    """L with f(c theta) = c^L f(theta), theta the parameters that require grad, from the graph of the model.

    Each layer with a weight adds one, a structured layer as many as it multiplies factors: x -> F_1 ... F_L x is of
    degree L in its factors together (terms of a sum must have one degree; masks are numbers). A bias is right only
    where the rest of its layer has its degree, which is the first layer with a weight; branches that meet must have one
    degree. Frozen parameters count as numbers. Nothing is computed. Where the model looks at shapes, all that it might
    do must have one degree. Raises `ValueError` that names the layer or operation where the model is not homogeneous or
    has no rule here, or says that the model cannot be traced. Cost: one symbolic trace, or one for each of those ways.

    >>> degree_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)))
    2
    >>> degree_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    Traceback (most recent call last):
    ValueError: layer 2 (Linear): its bias has degree 1, the rest degree 2. ...
    """
    require_model(model)
    root = nn.Sequential(model) if _known(model) or fx.Tracer().is_leaf_module(model, "") else model
    try:
        graphs = list(paths(root, _known))
    except Exception as error:  # whatever the model's own code makes of a symbol
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}). Rule: a graph that does not "
            "depend on values. Measure homogeneity(model, batch) and pass PRGD(model.parameters(), degree=L)."
        ) from error
    degrees = {_of_graph(model, root, graph) for graph in graphs}
    if len(degrees) > 1:
        raise ValueError(
            f"{type(model).__name__} has degrees {sorted(degrees)}, by the shape of its input. Rule: one degree. "
            "Pass PRGD(model.parameters(), degree=L) with the one of your data."
        )
    return degrees.pop()


def _of_graph(model: nn.Module, root: nn.Module, graph: fx.Graph) -> int:
    modules = dict(root.named_modules())
    degrees: dict[fx.Node, int] = {}
    for node in graph.nodes:
        inputs = [degrees[source] for source in node.all_input_nodes]
        if node.op == "placeholder":
            degrees[node] = 0
        elif node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(root)
            degrees[node] = int(tensor.requires_grad)
        elif node.op == "call_module":
            degrees[node] = _of_module(str(node.target), modules[str(node.target)], inputs)
        elif node.op == "output":
            return _of_output(model, inputs)
        else:
            degrees[node] = _of_call(node, degrees)
    raise ValueError(f"{type(model).__name__} returns nothing. Rule: a model that returns its scores.")


def _of_module(name: str, module: nn.Module, inputs: list[int]) -> int:
    where, degree = f"layer {name} ({type(module).__name__})", max(inputs, default=0)
    if isinstance(module, (*PRODUCTS, StructuredLayer)) and (matrix := _of_matrix(where, module)) is not None:
        bias: Any = getattr(module, "bias_orig", module.bias)
        return _with_bias(where, degree + matrix, None if bias is None else int(bias.requires_grad))
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        return int(module.weight.requires_grad)
    if isinstance(module, KEEPERS):
        return degree
    if degree == 0 and not any(p.requires_grad for p in module.parameters()):
        return 0  # what is done to the data alone is nobody's business
    raise ValueError(
        f"{where} is not homogeneous: c times its parameters and input is not a power of c times its output. "
        "Rule: linear layers, ReLU, LeakyReLU, pooling, dropout, sums of one degree. Take it out or put ReLU there."
    )


def _of_matrix(where: str, layer: nn.Module) -> int | None:
    """The degree of the matrix of a layer in its parameters; None where there is no rule."""
    if isinstance(layer, SumLinear):
        degrees = [_of_matrix(where, term) for term in layer.terms]
        if len(set(degrees)) > 1:
            raise ValueError(f"{where}: its terms have degrees {degrees}. Rule: one degree, that of all terms.")
        return degrees[0]
    if isinstance(layer, (StructuredLinear, BlastLinear)):  # products in which each factor stands once
        return sum(p.requires_grad for p in layer.parameters() if p is not layer.bias)
    own = {name.partition(".")[0] for name, _ in layer.named_parameters()}
    if isinstance(layer, StructuredLayer) or not own <= DIRECT:
        return None  # torch's parametrizations may be anything, such as weights of norm one
    weight: Any = getattr(layer, "weight_orig", layer.weight)
    return int(weight.requires_grad)


def _with_bias(where: str, degree: int, bias: int | None) -> int:
    if bias is not None and bias != degree:
        raise ValueError(
            f"{where}: its bias has degree {bias}, the rest degree {degree}. Rule: "
            "homogeneous networks have a bias in the first layer only. Write bias=False."
        )
    return degree


def _of_call(node: fx.Node, degrees: Mapping[fx.Node, int]) -> int:
    inputs = [degrees[source] for source in node.all_input_nodes]
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if of_shapes(node) or not any(inputs):
        return 0
    if node.target in KEEP and not any(inputs[1:]):
        return inputs[0]
    if node.target is getattr and node.args[1] in VIEWS:
        return inputs[0]
    if node.target in AFFINE:
        given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
        of = {key: degrees[entry] for key, entry in given.items() if isinstance(entry, fx.Node)}
        product = of.get("input", 0) + of.get("weight", 0)
        return _with_bias(f"operation {node.name} ({name})", product, of.get("bias"))
    if node.target in PRODUCT:
        # a node that is used twice is listed once
        return sum(inputs) * (2 if len(inputs) == 1 and len(node.args) == 2 and node.args[0] is node.args[1] else 1)
    if node.target in (operator.truediv, torch.div, "div") and not any(inputs[1:]):
        return inputs[0]
    terms = node.args[0] if node.args and isinstance(node.args[0], (list, tuple)) else node.args
    if node.target in SUM and len(set(inputs)) == 1 and all(isinstance(term, fx.Node) for term in terms[:2]):
        return inputs[0]
    if node.target in SUM:
        raise ValueError(
            f"operation {node.name} ({name}) joins degrees {inputs}. Rule: branches of one degree; a constant has 0. "
            "Scale a skip connection by a linear layer without bias for each layer it skips."
        )
    raise ValueError(
        f"operation {node.name} ({name}) is not homogeneous, or has no rule here. Rule: products, sums of one degree, "
        "ReLU, shapes. Measure homogeneity(model, batch); if it is, pass PRGD(model.parameters(), degree=L)."
    )


def _of_output(model: nn.Module, inputs: list[int]) -> int:
    if len(set(inputs)) == 1 and inputs[0] > 0:
        return inputs[0]
    raise ValueError(
        f"{type(model).__name__} returns degrees {inputs}. Rule: one degree, at least 1. Return scores that depend on "
        "trainable parameters, and nothing else."
    )


@dataclass(frozen=True)
class Homogeneity:
    """`degree`: the nearest whole L; `error`: the largest |f(c theta) - c^L f(theta)| / |c^L f(theta)|, c = 1/2 and 2.

    In float64 an error above about 1e-9 means that the network is not homogeneous.
    """

    degree: int
    error: float


@torch.no_grad()
def homogeneity(model: nn.Module, *batch: Any) -> Homogeneity:
    """Measures f(c theta) against c^L f(theta) on a batch, in float64, in the mode that the model is in.

    Parameters that require grad are scaled. Model, buffers and random numbers stay as they are. Raises `ValueError` if
    the output is not one tensor, or is zero or not finite. Cost: three forward passes and a copy of the model.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
    >>> found = homogeneity(net, torch.ones(3, 4))
    >>> found.degree, found.error < 1e-12
    (2, True)
    """
    require_model(model)

    def wide(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.detach().to(torch.float64, copy=True) if floating else value

    inputs = tuple(wide(value) for value in batch)
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})

    def value_at(scale: float) -> torch.Tensor:
        tensors = {name: wide(p) * (scale if p.requires_grad else 1.0) for name, p in model.named_parameters()}
        tensors |= {name: wide(b) if b.is_floating_point() else b.clone() for name, b in model.named_buffers()}
        with torch.random.fork_rng(devices=cuda):  # the same dropout masks each time
            out = torch.func.functional_call(model, tensors, inputs)
        if not isinstance(out, torch.Tensor):
            raise ValueError(f"the model returned a {type(out).__name__}. Rule: one tensor. Wrap it to return scores.")
        return out

    base, half, twice = value_at(1.0), value_at(0.5), value_at(2.0)
    size, larger = float(base.norm()), float(twice.norm())
    if not (0 < size < float("inf") and 0 < larger < float("inf")):
        raise ValueError(f"the output has norm {size}, {larger} for twice the weights. Rule: finite, not 0.")
    degree = round(log2(larger / size))
    errors = [float((out / c**degree - base).norm()) / size for c, out in ((0.5, half), (2.0, twice))]
    return Homogeneity(degree, max(errors))
