"""The gradient where the loss nearby is worst, in anybody's loop: weights that stand elsewhere for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from ..core import require_number
from .memory import compiled, room
from .sharded import SUM, local, over_shards

T = TypeVar("T")
Target = nn.Module | torch.Tensor | Iterable[torch.Tensor]

MODES = ("batch", "micro-batch")


class Reach(NamedTuple):
    """How far a parameter moves, `rho`, and with `eta` in the metric of ASAM."""

    rho: float
    eta: float | None = None


@contextmanager
def perturbed(target: Target, rho: float = 0.05, *, adaptive: bool = False, eta: float = 0.01) -> Iterator[None]:
    """Inside, the weights stand at SAM's point; on the way out, also after an error, they are back bit for bit.

    Call backward first: the direction is that of the gradients which are there. They are cleared, so that what
    backward leaves inside is SAM's gradient and nothing else. `target` is a module, or parameters; of a module the
    buffers are restored, too, so running statistics of norms count a batch once. Parameters without a gradient stay.

    `rho` is a length in the space of the weights, over all parameters and all shards of all ranks: w moves by
    rho g / |g| (Foret et al. 2021, arXiv:2010.01412, eq. 2). adaptive=True: by rho T^2 g / |T g|, T = |w| + `eta` entry
    by entry (ASAM, Kwon et al. 2021, arXiv:2102.11600, eq. 7); rho then has no unit and is ten times larger.

    - The direction does not know the scale of the loss: with `GradScaler`, scale both losses, unscale neither.
    - Where the gradient is not finite or zero there is no direction, and the weights stay: the second gradient then
      overflows as the first did, and `GradScaler` skips the step.
    - Clip after the block. Schedulers, accumulation and the step itself are as ever.
    - Accumulation: both passes over all micro-batches, or `sam_backward`.
    - DDP: first pass under `model.no_sync()`, forward included: each rank goes its own way up, and only the second
      gradient is averaged ("m-sharpness"; it generalises better and saves an all-reduce). Without it: one way for all.
    - FSDP2: as on one device; shards move, and the second forward gathers them. It must: after
      `set_reshard_after_backward(False)` it would see the old weights.
    - Weights in bfloat16 or float16 round most of so small a step away: keep them in float32, under autocast.

    Raises `ValueError` before anything moves for a bad rho or eta, without gradients, or with sparse ones.
    Cost: a second forward and backward, a copy of the weights meanwhile, one wait for the device.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> x, before = torch.ones(3, 2), layer.weight.detach().clone()
    >>> layer(x).square().mean().backward()
    >>> with perturbed(layer, rho=0.1):
    ...     round(float((layer.weight.detach() - before).norm()), 6)
    ...     layer(x).square().mean().backward()
    0.1
    >>> torch.equal(layer.weight, before), layer.weight.grad is not None
    (True, True)
    """
    check_radius(rho, eta)
    params = _parameters(target)
    if all(p.grad is None for p in params):
        raise ValueError("no parameter has a gradient. Rule: the way up is the gradient's. Call loss.backward() first.")
    reach = Reach(rho, eta if adaptive else None)
    with moved(dict.fromkeys(params, reach), target if isinstance(target, nn.Module) else None):
        yield


def sam_backward(
    target: Target,
    passes: Sequence[Callable[[], T]],
    rho: float = 0.05,
    *,
    mode: str = "batch",
    adaptive: bool = False,
    eta: float = 0.01,
) -> list[T]:
    """SAM's gradient over several micro-batches, left in `.grad`; returns what the passes returned at the weights.

    Each of `passes` runs forward and backward of one micro-batch, its loss divided by their number, and is called
    twice. mode="batch" goes up once, along the gradient of all: the same as one large batch. mode="micro-batch" goes
    up for each along its own gradient, as each rank does with `no_sync` in DDP: a sharpness of smaller sets, which is
    the stronger regulariser; it keeps one more copy of the gradients. Gradients that are there before are dropped.
    Other arguments and errors are those of `perturbed`; raises `ValueError` for an unknown mode or no passes.

    >>> w = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> halves = [lambda k=k: (w[k] ** 2 / 2).backward() for k in (0, 1)]
    >>> _ = sam_backward(w, halves, rho=0.5, mode="micro-batch")
    >>> w.grad
    tensor([1.5000, 2.5000])
    """
    check_radius(rho, eta)
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}. Known: {', '.join(MODES)}.")
    if not passes:
        raise ValueError("there are no passes. Rule: at least one. Pass functions that run forward and backward.")
    params = _parameters(target)
    goal: Target = target if isinstance(target, nn.Module) else params
    results: list[T] = []
    sums: dict[torch.Tensor, torch.Tensor] = {}
    for block in [passes] if mode == "batch" else [[run] for run in passes]:
        for p in params:
            p.grad = None
        results += [run() for run in block]
        with perturbed(goal, rho, adaptive=adaptive, eta=eta):
            for run in block:
                run()
        for p in params:
            if p.grad is not None and mode != "batch":  # not kept as it is: DDP writes the next one into its memory
                sums[p] = p.grad.clone() if p not in sums else sums[p].add_(p.grad)
    for p, total in sums.items():
        p.grad = total if p.grad is None else p.grad.copy_(total)
    return results


@contextmanager
def moved(reach: Mapping[torch.Tensor, Reach], model: nn.Module | None = None) -> Iterator[None]:
    """As `perturbed`, each parameter with a reach of its own, along one direction whose norm is over all of them."""
    gradients = {p: p.grad for p in reach if p.grad is not None}
    if any(g.layout != torch.strided for g in gradients.values()):
        raise ValueError("a gradient is sparse. Rule: dense gradients. Write nn.Embedding(sparse=False).")
    norm = ascent_norm(gradients, reach) if gradients else 0.0
    moving = [p for p in gradients if reach[p].rho > 0 and 0 < norm < inf]
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    buffers = _buffers(model)
    try:
        with torch.no_grad():
            weights = [local(p) for p in moving]
            for p, w, before in zip(moving, weights, room(weights), strict=True):
                rho, eta = reach[p]
                before.copy_(w)
                saved.append((w, before))
                climb(w, local(gradients[p]), rho / norm, eta)
            for p in gradients:
                p.grad = None
        gradients.clear()  # their memory is free for the second backward
        yield
    finally:
        with torch.no_grad():
            for w, before in saved:
                w.copy_(before)
            for module, name, buffer, before in buffers:
                buffer.copy_(before)
                if getattr(module, name) is not buffer:  # a layer may have put a new tensor there
                    setattr(module, name, buffer)


def ascent(w: torch.Tensor, g: torch.Tensor, factor: float, eta: float | None = None) -> torch.Tensor:
    """factor g, or with `eta` factor (|w| + eta)^2 g: the way up of SAM, or of ASAM; in float32 at least.

    >>> ascent(torch.tensor([1.0, -2.0]), torch.ones(2), 0.5, eta=0.0)
    tensor([0.5000, 2.0000])
    """
    # a factor may be far outside float16 where its product with the gradient is not
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    return wide * factor if eta is None else (w.abs() + eta).square() * wide * factor


def climb(w: torch.Tensor, g: torch.Tensor, factor: float, eta: float | None = None) -> None:
    """w += ascent(w, g, factor, eta), in place, without its memory where the dtype is the same."""
    if eta is None and w.dtype == g.dtype == torch.promote_types(g.dtype, torch.float32):
        w.add_(g, alpha=factor)
    elif eta is not None and (fast := compiled(w, g)):
        fast.climb(w, g, factor, eta)
    else:
        w.copy_(w + ascent(w, g, factor, eta))


@torch.no_grad()
def ascent_norm(gradients: Mapping[torch.Tensor, torch.Tensor], reach: Mapping[torch.Tensor, Reach]) -> float:
    """The norm of all gradients, each times |w| + eta where its weight w has an eta, over the shards of all ranks.

    >>> a, b = torch.tensor([1.0]), torch.tensor([2.0])
    >>> ascent_norm({a: torch.tensor([3.0]), b: torch.tensor([2.0])}, {a: Reach(1.0, eta=0.0), b: Reach(1.0, eta=0.0)})
    5.0
    """

    def square(w: torch.Tensor, g: torch.Tensor, eta: float | None) -> torch.Tensor:
        if eta is not None and (fast := compiled(w, g)):
            return fast.adaptive_square(w, g, eta)
        wide = g.to(torch.promote_types(g.dtype, torch.float32))
        return torch.linalg.vector_norm(wide if eta is None else wide * (w.abs() + eta)).double().square()

    squares = (square(local(w), local(g), reach[w].eta) for w, g in gradients.items())
    return float(over_shards(gradients.values(), squares, SUM).sqrt())


def _parameters(target: Target) -> list[torch.Tensor]:
    given = target.parameters() if isinstance(target, nn.Module) else target
    params = [given] if isinstance(given, torch.Tensor) else list(dict.fromkeys(given))
    for p in params:
        if not isinstance(p, torch.Tensor):
            raise ValueError(f"got a {type(p).__name__}. Rule: a module, or its parameters. Pass model.parameters().")
    return params


def _buffers(model: nn.Module | None) -> list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]:
    modules = () if model is None else model.modules()
    return [(m, name, b, b.clone()) for m in modules for name, b in m.named_buffers(recurse=False)]


def check_radius(rho: float, eta: float = 0.0) -> None:
    """Raise `ValueError` unless both are finite and at least 0."""
    require_number("rho", rho, 0, good=0.05, advice="It is a distance; begin adaptive ones with 0.5.")
    require_number("eta", eta, 0, good=0.01, advice="It is a size of weights.")
