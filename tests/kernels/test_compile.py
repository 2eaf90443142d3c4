"""torch.compile, strict export and FSDP2, in processes of their own: compilers cannot trace the checks of the tests."""

import textwrap

import pytest

from distributed import run_python

START = """
    import torch
    from flatwing import Chain, SparseProduct, kernels
    from flatwing.kernels.backend import Task
    from multiplication import Case, Opaque, same
    torch.set_num_threads(1)
    kernels.BACKENDS.register("opaque")(Opaque())
    NAMES = [
        name for name, backend in kernels.BACKENDS.items()
        if not backend.native and backend.unsupported_because(Task(Chain.butterfly(16), 4, torch.float64)) is None
    ]
    CASES = [Case(Chain.parse(text), name) for text in ("butterfly(16)", "monarch(12, 20, blocks=4)") for name in NAMES]
"""


def run(code: str, world: int | None = None) -> str:
    done = run_python(textwrap.dedent(START) + textwrap.dedent(code), world=world)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph(backend: str) -> None:
    code = f"""
    for case in CASES:
        torch._dynamo.reset()
        compiled = torch.compile(case.loss, fullgraph=True, backend="{backend}")
        leaves = case.leaves()
        same(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(case.judged_loss(*leaves), leaves))
        wider = [torch.randn(9, case.chain.shape[1], dtype=torch.float64), *case.factors]  # another number of rows
        same(compiled(*wider), case.judged_loss(*wider))
    print("compiled", *NAMES)
    """
    assert "compiled" in run(code)


def test_operators_are_well_formed() -> None:
    code = """
    from torch.library import opcheck
    from flatwing.kernels import dispatch
    for case in CASES:
        for last in (False, True):
            x, *factors = case.leaves()
            x = x.detach().mT.contiguous().requires_grad_() if last else x
            arguments = (x, factors, list(case.chain.depths), case.name, last)
            grad = torch.randn_like(dispatch.multiply_op(*arguments).detach())
            opcheck(dispatch.multiply_op, arguments)
            opcheck(dispatch.backward_op, (*arguments, grad), test_utils=[
                "test_schema", "test_autograd_registration", "test_faketensor",
                *(["test_aot_dispatch_dynamic"] if len(factors) == 2 else []),  # unknown shapes of four take a minute
            ])
    print("checked")
    """
    assert "checked" in run(code)


def test_auto_is_decided_at_each_call() -> None:
    code = """
    case = Case(Chain.butterfly(16), "auto")
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager", dynamic=True)
    leaves = case.leaves()
    same(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(case.judged_loss(*leaves), leaves))
    for rows in (1, 300):
        tensors = [torch.randn(rows, 16, dtype=torch.float64), *case.factors]
        same(compiled(*tensors), case.judged_loss(*tensors))
    print("compiled")
    """
    assert "compiled" in run(code)


def test_native_backends_are_seen_through() -> None:
    code = """
    for name in ("reference", "bmm", "dense"):
        torch._dynamo.reset()
        case = Case(Chain.butterfly(16), name)
        leaves = case.leaves()
        compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
        same(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(case.judged_loss(*leaves), leaves))
    with torch.autocast("cpu"):
        assert torch.compile(case.f, fullgraph=True, backend="aot_eager")(case.x.float(), *(
            w.float() for w in case.factors)).dtype == torch.bfloat16
    print("compiled")
    """
    assert "compiled" in run(code)


def test_strict_export() -> None:
    code = """
    class Layer(torch.nn.Module):
        def __init__(self, case):
            super().__init__()
            self.case, self.factors = case, torch.nn.ParameterList(case.factors)

        def forward(self, x):
            return self.case.f(x, *self.factors)

    for case in CASES:
        rows = torch.export.Dim("rows", min=2, max=1000)
        program = torch.export.export(Layer(case), (case.x,), dynamic_shapes={"x": {0: rows}}, strict=True)
        assert any("flatwing.multiply" in str(node.target) for node in program.graph.nodes)
        x = torch.randn(11, case.chain.shape[1], dtype=torch.float64)
        same(program.module()(x), case.judge(x, *case.factors))
    print("exported")
    """
    assert "exported" in run(code)


SHARDED = """
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from flatwing import SparseProduct
    from flatwing.train.distributed import leave

    class Layer(nn.Module):
        def __init__(self, case):
            super().__init__()
            self.case, self.factors = case, nn.ParameterList(case.factors)

        def forward(self, x):
            return self.case.f(x, *self.factors)

    def train(model, shard):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            mine = x[shard]
            loss = model(mine).square().sum() / len(mine)
            loss.backward()
            optimizer.step()
        return model

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for name in NAMES:
        alone = train(Layer(Case(Chain.butterfly(16), name)), slice(None))
        sharded = Layer(Case(Chain.butterfly(16), name))
        fully_shard(sharded)
        train(sharded, slice(rank * 8 // ranks, (rank + 1) * 8 // ranks))
        for a, b in zip(alone.factors, sharded.factors, strict=True):
            same(b.full_tensor().detach(), a.detach())
    print("sharded", *NAMES, flush=True)
    dist.barrier()
    dist.destroy_process_group()
    leave()
"""


def test_fsdp2_trains_as_one_process() -> None:
    assert run(SHARDED, world=2).count("sharded") == 2


def test_a_packed_product_compiles() -> None:
    code = """
    for case in CASES:
        torch._dynamo.reset()
        packed = kernels.Packed(SparseProduct(case.chain, case.factors))
        compiled = torch.compile(lambda x: packed(x).square(), fullgraph=True, backend="aot_eager")
        for rows in (3, 9):
            x = torch.randn(rows, case.chain.shape[1], dtype=torch.float64)
            same(compiled(x), packed(x).square())
    print("compiled")
    """
    assert "compiled" in run(code)
