"""Several processes, one training run: DDP or FSDP2 over the ranks that torchrun started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn

from ..optim.sharded import is_distributed

PARALLEL = ("none", "ddp", "fsdp")


def rank() -> int:
    """The number of this process; 0 for a process alone.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """The number of processes.

    >>> ranks()
    1
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def launched() -> bool:
    """Whether torchrun, or somebody else who sets its variables, started several processes.

    >>> launched()
    False
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Meet the other processes of torchrun for the time of a run; yields the device of this process.

    Processes with a GPU talk by nccl, others by gloo. A process alone, or a group that exists, is left as it is.
    """
    if not launched() or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        dist.barrier()  # nobody leaves while others still talk
    finally:
        dist.destroy_process_group()


def leave(code: int = 0) -> NoReturn:
    """End a process that was in a group: output is written out, then it is gone, without finalizing Python.

    A thread of gloo lets go of the tensors of its last operation some time after the operation is done. If Python is
    being finalized by then, the thread aborts the process; no barrier prevents that, and FSDP2's caches keep those
    threads alive for as long as there is a Python.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def first_alone(work: Callable[[], None]) -> None:
    """Let rank 0 do something while the others wait; if that fails, all ranks raise, the others `ValueError`.

    >>> first_alone(lambda: print("once"))
    once
    """
    failed: Exception | None = None
    if rank() == 0:
        try:
            work()
        except Exception as error:  # whatever it is, the others shall not wait for ever
            failed = error
    if ranks() > 1:
        verdict = [None if failed is None else str(failed)]
        dist.broadcast_object_list(verdict, 0)
        if failed is None and verdict[0] is not None:
            failed = ValueError(verdict[0])
    if failed is not None:
        raise failed


def distribute(model: nn.Module, parallel: str) -> nn.Module:
    """What to call instead of the model so that gradients are means over ranks: the model itself, or DDP around it.

    With "fsdp" the parameters of the model become sharded tensors, block by block (each entry of an `nn.ModuleList`,
    then the rest), so the optimizer must be made afterwards. All ranks begin with the weights of rank 0. Raises
    `ValueError` for an unknown name or where there is no process group.
    """
    if parallel not in PARALLEL:
        raise ValueError(f"unknown parallel {parallel!r}. Known: {', '.join(PARALLEL)}.")
    if parallel == "none":
        return model
    if not dist.is_initialized():
        raise ValueError(
            f"parallel is {parallel!r}, but there is no process group. Rule: start with torchrun "
            "--nproc-per-node N, or call torch.distributed.init_process_group. Or write parallel='none'."
        )
    device = next(model.parameters()).device
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
    mesh = init_device_mesh(device.type, (ranks(),))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # which changes the class of the model, in place
    return model


@contextmanager
def reducing(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradients of backward passes inside are averaged over ranks if `wanted`, or else kept for a later pass."""
    if isinstance(network, nn.parallel.DistributedDataParallel) and not wanted:
        with network.no_sync():
            yield
        return
    if hasattr(network, "set_requires_gradient_sync"):
        network.set_requires_gradient_sync(wanted)  # type: ignore[operator]
    yield


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a small tensor over ranks."""
    if ranks() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank.

    >>> anywhere(True, torch.device("cpu"))
    True
    """
    return bool(total(torch.tensor(int(flag), device=device)))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded, as one process would have it; every rank must call this.

    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.full_tensor() if is_distributed(tensor) else tensor


def parted(tensor: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """The tensor sharded as `owner` is, if `owner` is and the tensor has its shape; any other tensor as it is.

    Dimensions that are not sharded may be 1 instead, as in a state that has one number per row.
    """
    if not is_distributed(owner) or is_distributed(tensor) or tensor.ndim != owner.ndim:
        return tensor
    cut = {place.dim for place in owner.placements if not place.is_replicate()}  # type: ignore[attr-defined]
    for dim, (mine, wanted) in enumerate(zip(tensor.shape, owner.shape, strict=True)):
        if mine != wanted and (dim in cut or mine != 1):
            return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(owner.device), owner.device_mesh, owner.placements)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model as one process would have it; every rank must call this."""
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def parted_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of one process, sharded as that of the model."""
    own = model.state_dict()
    return {name: parted(tensor, own[name]) if name in own else tensor for name, tensor in tensors.items()}
