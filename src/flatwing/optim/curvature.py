"""How curved the loss is along each weight: estimates that have one number per weight and need no second derivative."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import nn
from torch.optim import Optimizer

from ..core import require_whole
from .sharded import is_distributed

Forward = Callable[[], torch.Tensor]


def sampled_diagonal(
    forward: Forward | Sequence[Forward],
    params: Iterable[torch.Tensor],
    *,
    draws: int = 1,
    seed: int = 0,
    step: int = 0,
    model: nn.Module | None = None,
    group: dist.ProcessGroup | None = None,
) -> list[torch.Tensor]:
    """The diagonal of the Gauss-Newton matrix of a mean cross-entropy, estimated with labels drawn from the model.

    `forward` is called without arguments and returns logits (..., classes), one row per label that the loss averages;
    several of them are the micro-batches of one batch. With labels drawn from softmax(logits) and the gradient g of
    the mean over all N rows, of all micro-batches and ranks, the estimate is N g^2, the mean over `draws` of it: a
    float32 tensor per parameter, of its shape, on its device, a DTensor where it is one; zeros where nothing depends
    on it. Unit: loss per squared unit of the weight. Gradients are summed over micro-batches before they are squared;
    squares summed afterwards would estimate the same with another constant. Leave padding out of the rows.

    Labels depend on (seed, step, draw, position of the micro-batch among those of all ranks), so ranks draw different
    ones and a resumed run the same. Gradients go through `backward()`, so call DDP's or FSDP2's own module in
    `forward`. Afterwards `.grad` and the random state are as before, and so are the buffers of `model`, such as the
    running statistics of BatchNorm, if it is given. `group` are the ranks with different data whose gradients are
    averaged, all by default; ranks that share data, as in tensor parallelism, must have the same rank in it.

    Raises `TypeError` or `ValueError` for logits that are not a floating-point tensor (..., classes), and where there
    is no `forward` or no parameter. Cost: `draws` forward and backward passes, 4 bytes per parameter for the result.

    Source: the estimator of Sophia (Liu et al. 2023, Algorithm 2) and of IRE (Wang et al. 2024). The gradient of a
    drawn label has mean zero and draws are independent, so the mean of N g^2 is the diagonal of the Fisher matrix.

    >>> layer = nn.Linear(2, 3)
    >>> x = torch.tensor([[1.0, 0.0]])
    >>> sampled_diagonal(lambda: layer(x), [layer.weight])[0][:, 1]  # the second input is always 0
    tensor([0., 0., 0.])
    """
    forwards = [forward] if callable(forward) else list(forward)
    params = list(params)
    _check(forwards, params, draws)
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)
    total: list[torch.Tensor] = []
    with _as_before(params, model) as set_aside, torch.enable_grad():
        for draw in range(draws):
            rows = 0
            for number, one in enumerate(forwards):
                logits = _logits(one())
                loss = _sampled_loss(logits, (seed, step, draw, rank * len(forwards) + number))
                set_aside(_leaves(loss))
                rows += logits.numel() // logits.shape[-1]
                loss.backward()
            count = torch.tensor(rows, device=params[0].device)
            if world > 1:
                dist.all_reduce(count, group=group)
            # backward left the sum over rows, averaged over ranks: N (sum / N)^2
            scale = world**2 / (float(count) * draws)
            for k, p in enumerate(params):
                square = squared_gradient([p])[0].mul_(scale)
                total[k : k + 1] = [total[k].add_(square) if draw else square]
                p.grad = None
    return total


def squared_gradient(params: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """g^2 of the gradients that the parameters have now, zeros where there is none: float32, each of its shape.

    A stand-in for curvature that costs nothing, but has the true labels in it, and the batch size and loss scale.

    >>> w = nn.Parameter(torch.ones(2))
    >>> (3 * w).sum().backward()
    >>> squared_gradient([w])
    [tensor([9., 9.])]
    """
    with torch.no_grad():
        return [
            torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
            if p.grad is None
            else p.grad.detach().float().square()
            for p in params
        ]


def adam_second_moment(optimizer: Optimizer, params: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Adam's running mean of g^2 of each parameter, as the optimizer's state holds it: not a copy.

    Works with whatever keeps `exp_avg_sq` in the shape of its parameter. Raises `ValueError` where it does not.

    >>> w = nn.Parameter(torch.ones(2))
    >>> adam = torch.optim.Adam([w], betas=(0.9, 0.5))
    >>> (2 * w).sum().backward()
    >>> adam.step()
    >>> adam_second_moment(adam, [w])
    [tensor([2., 2.])]
    """
    found: list[torch.Tensor] = []
    states = optimizer.state
    for p in params:
        state = states.get(p, {})
        moment = state.get("exp_avg_sq")
        if moment is None or moment.shape != p.shape:
            raise ValueError(
                f"the state of a parameter of shape {tuple(p.shape)} has {sorted(map(str, state)) or 'nothing'}. Rule: "
                "exp_avg_sq, one number per weight, as Adam keeps after a step. Otherwise take sampled_diagonal."
            )
        found.append(moment)
    return found


def sample_labels(logits: Float[torch.Tensor, "n classes"], key: tuple[int, ...]) -> Int[torch.Tensor, " n"]:
    """A label per row, drawn from softmax(logits) with a generator of its own that `key` determines.

    >>> sample_labels(torch.tensor([[0.0, 100.0], [100.0, 0.0]]), (0,))
    tensor([1, 0])
    """
    generator = torch.Generator(logits.device).manual_seed(seed_of(key))
    return torch.multinomial(logits.detach().float().softmax(-1), 1, generator=generator).squeeze(-1)


def seed_of(key: tuple[int, ...]) -> int:
    """A seed in [0, 2^63) that depends on every number of the key, as different for neighbours as for strangers.

    >>> seed_of((0, 1)) == seed_of((0, 1)), seed_of((0, 1)) == seed_of((1, 0))
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def _check(forwards: list[Forward], params: list[torch.Tensor], draws: int) -> None:
    if not forwards:
        raise ValueError(
            "there is no forward. Rule: a function that returns logits, or several. Pass lambda: model(x)."
        )
    if not params:
        raise ValueError("there are no parameters. Rule: at least one. Pass list(model.parameters()).")
    require_whole("draws", draws)
    if any(p.is_complex() for p in params):
        raise ValueError("a parameter is complex. Rule: real ones. Take torch.view_as_real(p) as the parameter.")


def _logits(output: object) -> Float[torch.Tensor, "n classes"]:
    if not isinstance(output, torch.Tensor):
        step = "Write lambda: model(x).logits." if hasattr(output, "logits") else "Write lambda: model(x)."
        raise TypeError(f"forward returned a {type(output).__name__}. Rule: a tensor of logits (..., classes). {step}")
    if not output.is_floating_point() or output.ndim < 2 or output.shape[-1] < 2 or not output.numel():
        raise ValueError(
            f"forward returned {str(output.dtype).removeprefix('torch.')} of shape {tuple(output.shape)}. Rule: "
            "floating-point logits (..., classes), one row per label, at least one, and at least 2 classes, last."
        )
    if not output.requires_grad:
        raise ValueError("the logits have no graph. Rule: they depend on the parameters. Drop no_grad or detach.")
    return output.flatten(0, -2)


def _sampled_loss(logits: Float[torch.Tensor, "n classes"], key: tuple[int, ...]) -> Float[torch.Tensor, ""]:
    # the sum, not the mean: its gradient with respect to a logit is below 1, safe in float16 without a loss scale
    return nn.functional.cross_entropy(logits.float(), sample_labels(logits, key), reduction="sum")


def _leaves(loss: torch.Tensor) -> Iterator[torch.Tensor]:
    """Every tensor whose `.grad` a backward pass from here would change."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable  # pyright: ignore[reportAttributeAccessIssue]
        todo += [parent for parent, _ in node.next_functions]


@contextmanager
def _as_before(
    params: list[torch.Tensor], model: nn.Module | None
) -> Iterator[Callable[[Iterable[torch.Tensor]], None]]:
    """On exit, gradients, random state and the buffers of `model` are as on entry.

    Yields a function that sets the gradients of more tensors aside. Gradients may be views of DDP's buckets, which the
    pass writes to, so under a process group their values are copied.
    """
    kept: dict[torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def set_aside(tensors: Iterable[torch.Tensor]) -> None:
        for p in tensors:
            if p not in kept:
                copied = dist.is_initialized() and p.grad is not None and not is_distributed(p)
                kept[p] = (p.grad, p.grad.clone() if copied and p.grad is not None else None)
                p.grad = None

    buffers = [(b, b.clone()) for b in model.buffers()] if model is not None else []
    set_aside(params)
    set_aside(model.parameters() if model is not None else ())
    with ExitStack() as stack:
        for device in {p.device for p in params}:
            accelerator = device.type != "cpu"
            devices = [device] if accelerator else []
            stack.enter_context(torch.random.fork_rng(devices, device_type=device.type if accelerator else "cuda"))
        try:
            yield set_aside
        finally:
            with torch.no_grad():
                for p, (grad, values) in kept.items():
                    p.grad = grad
                    if grad is not None and values is not None:
                        grad.copy_(values)
                for buffer, values in buffers:
                    if not torch.equal(buffer, values):  # writing to what a graph has saved would invalidate the graph
                        buffer.copy_(values)
