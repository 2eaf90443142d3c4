"""SAM and GradPower on 2 and 4 ranks equal one process: replicated, sharded, and each rank on its own way up."""

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from distributed import run_ranks
from flatwing.optim import ASAM, SAM, GradPower, late, perturbed, sam_backward

STEPS, ROWS = 4, 24


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # 5 and 3 rows do not divide by 4: shards are uneven, and some are empty
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def part(step: int, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(ROWS, 6, generator=generator), torch.randint(3, (ROWS,), generator=generator)
    return x.chunk(world)[rank], y.chunk(world)[rank]


def optimizer_of(name: str, params: Any) -> torch.optim.Optimizer:
    params = list(params)
    sgd = torch.optim.SGD(params, lr=0.2, momentum=0.9)
    if name == "SAM":
        return SAM(sgd, rho=0.5)
    if name == "ASAM":
        return ASAM(sgd, rho=1.0)
    if name == "GradPower":
        return GradPower(torch.optim.AdamW(params, lr=0.05), p=1.3)
    return late(SAM(GradPower(sgd, p=0.8), rho=0.5), [0.2] * STEPS, share=0.5)


NAMES = ["SAM", "ASAM", "GradPower", "late"]


def train(model: nn.Module, name: str, rank: int = 0, world: int = 1) -> None:
    optimizer = optimizer_of(name, model.parameters())
    for step in range(STEPS):
        x, y = part(step, rank, world)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def train_per_rank(model: nn.Module, rank: int, world: int) -> None:
    """Each rank goes up along its own gradient; the second one is averaged. On one process: micro-batches."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(STEPS):
        sgd.zero_grad()
        if isinstance(model, DistributedDataParallel):
            x, y = part(step, rank, world)
            with model.no_sync():
                F.cross_entropy(model(x), y).backward()
            with perturbed(model, rho=0.5):
                F.cross_entropy(model(x), y).backward()
        else:

            def run(which: int, step: int = step) -> None:
                x, y = part(step, which, world)
                (F.cross_entropy(model(x), y) / world).backward()

            passes = [lambda which=which: run(which) for which in range(world)]
            sam_backward(model, passes, rho=0.5, mode="micro-batch")
        sgd.step()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def on_a_rank(rank: int, world: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in NAMES:
        replicated = DistributedDataParallel(network())
        train(replicated, name, rank, world)
        results[f"DDP {name}"] = weights(replicated)

        sharded = network()
        for layer in (sharded[0], sharded[2]):
            fully_shard(layer)
        fully_shard(sharded)
        places = [p.to_local().data_ptr() for p in sharded.parameters()]
        train(sharded, name, rank, world)
        assert [p.to_local().data_ptr() for p in sharded.parameters()] == places
        results[f"FSDP {name}"] = weights(sharded)

    for view in (False, True):
        own = DistributedDataParallel(network(), gradient_as_bucket_view=view)
        train_per_rank(own, rank, world)
        results[f"own way {view}"] = weights(own)

    results["back"] = comes_back(rank, world)
    return results


def comes_back(rank: int, world: int) -> bool:
    """Shards are restored bit for bit, and a gradient that is not finite on one rank stops all."""
    model = network()
    fully_shard(model)
    x, y = part(0, rank, world)
    before = [p.to_local().clone() for p in model.parameters()]
    F.cross_entropy(model(x), y).backward()
    with perturbed(model, rho=2.0):
        moved = sum(
            float((p.to_local() - old).square().sum()) for p, old in zip(model.parameters(), before, strict=True)
        )
        total = torch.tensor(moved)
        torch.distributed.all_reduce(total)
        F.cross_entropy(model(x), y).backward()
    same = all(torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before, strict=True))
    gradient = next(p.grad for p in model.parameters() if p.grad is not None)
    if rank == 0:
        gradient.to_local().fill_(torch.nan)
    with perturbed(model, rho=2.0):
        stays = all(torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before, strict=True))
    return same and stays and bool((total.sqrt() - 2.0).abs() < 1e-5)


def test_ranks_equal_one_process() -> None:
    ranks = run_ranks(on_a_rank, 3)
    for name in NAMES:
        model = network()
        train(model, name)
        assert not torch.equal(next(model.parameters()), next(network().parameters()))
        for kind in ("DDP", "FSDP"):
            for rank in ranks:
                torch.testing.assert_close(rank[f"{kind} {name}"], weights(model), rtol=1e-5, atol=1e-5)
    model = network()
    train_per_rank(model, 0, 3)
    for rank in ranks:
        assert rank["back"]
        for view in (False, True):
            torch.testing.assert_close(rank[f"own way {view}"], weights(model), rtol=1e-5, atol=1e-5)
    model_together = network()
    train(model_together, "SAM")
    assert not torch.allclose(next(model.parameters()), next(model_together.parameters()), atol=1e-3)
