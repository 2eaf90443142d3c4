"""What a model computes, as graphs: one for each way that its questions about shapes may be answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn
from torch.fx.proxy import TraceError
from typing_extensions import override

from ..core.annotations import without_annotations

ABOUT_SHAPES = ("shape", "ndim", "dtype", "device", "is_cuda")  # attributes of tensors that depend on no value
ASKS_SHAPES = ("size", "dim", "numel", "is_floating_point", "is_complex")
QUESTIONS, PATHS = 50, 200  # more are taken for a loop without an end
REFUSALS = (ValueError, AssertionError)  # what models raise for inputs that they do not take


def of_shapes(node: fx.Node) -> bool:
    """Whether what a node computes depends on shapes and dtypes only."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ABOUT_SHAPES
    if node.op == "call_method" and node.target in ASKS_SHAPES:
        return True
    return node.op.startswith("call") and all(of_shapes(source) for source in node.all_input_nodes)


class _Path(fx.Tracer):
    """Answers the first questions as told, and the others with no; `asked` are the answers given."""

    def __init__(self, leaf: Callable[[nn.Module], bool], answers: list[bool]) -> None:
        super().__init__()
        self._leaf, self._answers = leaf, answers
        self.asked: list[bool] = []
        self.listed = False

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._leaf(m) or super().is_leaf_module(m, module_qualified_name)

    @override
    def to_bool(self, obj: fx.Proxy) -> bool:
        if not of_shapes(obj.node):
            return super().to_bool(obj)  # which raises
        if len(self.asked) == QUESTIONS:
            raise TraceError(f"it asks for shapes more than {QUESTIONS} times")
        place = len(self.asked)
        self.asked.append(self._answers[place] if place < len(self._answers) else False)
        return self.asked[-1]

    @override
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Symbol(node, self)

    @override
    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        if not of_shapes(obj.node):
            return super().iter(obj)  # which raises
        self.listed = True
        return iter((obj,))


class _Symbol(fx.Proxy):
    """A symbol whose shape can be listed, as one size: right in the text of an error, so the way has to end in one."""

    tracer: _Path

    @override
    def __getattr__(self, k: str) -> Any:
        if k in ABOUT_SHAPES:
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return super().__getattr__(k)

    def __len__(self) -> int:
        if not of_shapes(self.node):
            return super().__len__()  # which raises
        self.tracer.listed = True
        return 1


def paths(model: nn.Module, leaf: Callable[[nn.Module], bool]) -> Iterator[fx.Graph]:
    """The graphs of a model, stopping at modules that are a `leaf`, of all ways to answer "has x this shape or dtype?".

    Ways on which the model raises `ValueError` or fails an assertion are left out: it takes no such inputs. Raises
    what the tracer raises for anything else, such as a question about values, and `ValueError` where no way is left.
    Annotations checked by jaxtyping are not checked meanwhile, for symbols have no shapes. Cost: a trace for each way.

    >>> [len(graph.nodes) for graph in paths(nn.Sequential(nn.ReLU(), nn.Tanh()), lambda module: False)]
    [4]
    """
    answers: list[bool] = []
    refused: Exception | None = None
    found = False
    for _ in range(PATHS):
        tracer = _Path(leaf, answers)
        graph = None
        with without_annotations():
            try:
                graph = tracer.trace(model)
            except TraceError:  # is a ValueError
                raise
            except REFUSALS as error:
                refused = refused or error
        if graph is not None:
            if tracer.listed:
                raise TraceError("it goes through the sizes of a shape one by one")
            found = True
            yield graph
        answers = tracer.asked
        while answers and answers[-1]:
            answers.pop()
        if not answers:
            break
        answers[-1] = True  # the next way parts from this one at its last no
    else:
        raise TraceError(f"its questions about shapes have more than {PATHS} answers")
    if not found and refused is not None:
        raise refused
