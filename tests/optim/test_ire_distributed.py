"""IRE on ranks: masks are those of one process to the bit, weights to rounding, for every way to shard."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from distributed import run_ranks
from flatwing.optim import IRE
from flatwing.optim.curvature import sampled_diagonal

STEPS = 7
BATCH = 16


def network() -> nn.Sequential:
    """Rows that neither 2 nor 4 divide; one parameter smaller than the number of ranks."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3, bias=True))


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        yield torch.randn(BATCH, 6, generator=generator), torch.randint(3, (BATCH,), generator=generator)


def build(model: nn.Module, mask: Any) -> IRE:
    if mask == "sampled":
        base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    else:
        base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return IRE(base, interval=3, mask=mask)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def train(model: nn.Module, mask: Any, rank: int, world: int, micros: int) -> list[dict[str, list[torch.Tensor]]]:
    """Weights, masks and what the masks were made of, after each step."""
    optimizer, history = build(model, mask), []
    params = list(model.parameters())
    for x, y in batches():
        mine, labels = x.chunk(world)[rank], y.chunk(world)[rank]
        forwards = [partial(lambda part: model(part), part) for part in mine.chunk(micros)]
        optimizer.refresh(forwards)
        scores = [whole(optimizer.state[p]["exp_avg_sq"]) for p in params] if mask == "adam" and history else []
        optimizer.zero_grad()
        F.cross_entropy(model(mine), labels).backward()
        optimizer.step()
        masks = [whole(optimizer.masks()[p]) for p in params] if optimizer.masks() else []
        history.append({"weights": [whole(p) for p in params], "masks": masks, "scores": scores})
    return history


def data_parallel(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {"untouched": leaves_gradients_alone(rank, world)}
    for mask in ("adam", "sampled", "random"):
        found[f"ddp {mask}"] = train(DistributedDataParallel(network()), mask, rank, world, micros=1)
    mesh = init_device_mesh("cpu", (world,))
    for mask in ("adam", "sampled", "random"):
        model = network()
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        found[f"fsdp {mask}"] = train(model, mask, rank, world, micros=1)
    return found


def leaves_gradients_alone(rank: int, world: int) -> bool:
    """Gradients that are views of DDP's buckets, half-way through an accumulation, survive a pass."""
    model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
    for _ in range(2):  # buckets are rebuilt after the first step
        model.zero_grad()
        F.cross_entropy(model(torch.ones(4, 6) * (rank + 1)), torch.ones(4, dtype=torch.long)).backward()
    before = [p.grad for p in model.parameters()]
    values = [g.clone() for g in before if g is not None]
    scores = sampled_diagonal(lambda: model(torch.randn(4, 6)), model.parameters())
    kept = [score.clone() for score in scores]
    same = all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
    same &= all(torch.equal(p.grad, v) for p, v in zip(model.parameters(), values, strict=True) if p.grad is not None)
    F.cross_entropy(model(torch.randn(4, 6)), torch.ones(4, dtype=torch.long)).backward()  # writes to the buckets
    return same and all(torch.equal(a, b) for a, b in zip(scores, kept, strict=True))


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_ranks_are_one_process() -> None:
    ranks = run_ranks(data_parallel, 4)
    for mask in ("adam", "sampled", "random"):
        # one process with as many micro-batches as there are ranks draws the same labels
        alone = train(network(), mask, 0, 1, micros=4)
        for kind in ("ddp", "fsdp"):
            for found in (rank[f"{kind} {mask}"] for rank in ranks):
                for step, (ours, theirs) in enumerate(zip(found, alone, strict=True)):
                    close(ours["weights"], theirs["weights"])
                    assert same(ours["masks"], theirs["masks"]), (kind, mask, step)
                    assert same(ours["masks"], ranks[0][f"{kind} {mask}"][step]["masks"])
    for rank in ranks:
        assert rank["untouched"]
        for kind in ("ddp", "fsdp"):
            for step in (1, 3, 6):  # at which the mask is new: Adam has no second moment before step 1
                now = rank[f"{kind} adam"][step]
                every = torch.cat([score.flatten() for score in now["scores"]])
                threshold = every.kthvalue(int(0.6 * every.numel())).values
                assert same(now["masks"], [score <= threshold for score in now["scores"]])
