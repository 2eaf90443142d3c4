"""torch.compile, DDP and FSDP2, each in processes of its own: without the checks of shapes that tests have."""

import pytest

from distributed import run_python


def run(code: str, *arguments: str, world: int | None = None) -> str:
    done = run_python(code, *arguments, world=world)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


LAYERS = """
    import torch
    from layers import EVERY, make
"""


def test_layers_compile_as_one_graph() -> None:
    code = f"""{LAYERS}
    for key in (("chain", "monarch"), ("chain", "permuted"), ("blast", "tall"), ("sum", "low rank + diagonal")):
        torch._dynamo.reset()
        layer = make(*key)
        fast = torch.compile(layer, fullgraph=True, backend="aot_eager")
        x = torch.randn(3, layer.in_features, requires_grad=True)
        assert torch.allclose(fast(x), layer(x), atol=1e-6), key
        a, = torch.autograd.grad(fast(x).square().sum(), x)
        b, = torch.autograd.grad(layer(x).square().sum(), x)
        assert torch.allclose(a, b, atol=1e-5), key
    layer = make("chain", "monarch")
    fast = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    for k in (3, 5, 8):
        x = torch.randn(k, 2, layer.in_features)
        assert torch.allclose(fast(x), layer(x), atol=1e-6)
    with torch.autocast("cpu"):
        assert fast(x).dtype == torch.bfloat16
    print("compiled")
    """
    assert "compiled" in run(code)


DISTRIBUTED = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from flatwing.nn import linear_layers
from flatwing.train.distributed import leave
from layers import make

how = sys.argv[1]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()

def build():
    torch.manual_seed(0)
    return nn.Sequential(*(make(*key) for key in (
        ("chain", "permuted"), ("sum", "one term"), ("chain", "permuted"))))

model, alone = build(), build()
x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
if how == "ddp":
    model = DistributedDataParallel(model)
else:
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    sharded = nn.Sequential(nn.Linear(8, 8))
    fully_shard(sharded)
    assert linear_layers(sharded)["0"].skip == "its weight is a DTensor; swap before sharding or quantizing"
fast, slow = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, alone))
for _ in range(3):
    fast.zero_grad()
    slow.zero_grad()
    model(x.chunk(world)[rank]).square().mean().backward()
    alone(x).square().mean().backward()
    fast.step()
    slow.step()
state = (model.module if how == "ddp" else model).state_dict()
for name, value in alone.state_dict().items():
    mine = state[name]
    mine = mine.full_tensor() if hasattr(mine, "full_tensor") else mine
    assert torch.allclose(mine, value, atol=1e-5), name
if rank == 0:
    print("equal to one process")
dist.barrier()
dist.destroy_process_group()
leave()
"""


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one(how: str) -> None:
    assert "equal to one process" in run(DISTRIBUTED, how, world=2)
