"""LITE: Muon with longer steps, and with curvature's damping, along the flat directions of each matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from ..core import require_number
from .check import parameters_of, require_numbers, require_rate
from .groups import make_group, muon_groups
from .polar import MARGIN, SMALLEST, Quintic, newton_schulz, polar, span
from .registry import Method, add
from .sharded import is_distributed
from .shell import Closure, Guarded, Shell, called

MUON = (3.4445, -4.775, 2.0315)
GROWTH, DECLINE = 1.05, 0.95  # of the threshold, per step
LEAST_RADIUS = 1e-3
RANGES = {
    "weight_decay": (0, inf, 0.1), "momentum": (0, 1, 0.95), "chi": (1, inf, 2.0), "beta1": (-inf, inf, 0.0),
    "sharp": (0, 1, 0.1), "warmup": (0, inf, 0), "ramp": (0, inf, 1000), "floor": (0, 0.999, 0.1),
    "ns_steps": (1, 99, 5), "eps": (0, inf, 1e-7),
}  # fmt: skip


def sharp_part(
    moment: Float[torch.Tensor, "m n"],
    factor: Float[torch.Tensor, "m n"],
    radius: Float[torch.Tensor, ""],
    bounds: tuple[float, float],
) -> Float[torch.Tensor, "m n"]:
    """U 1[s > radius |moment|_F] V^T of moment = U diag(s) V^T, from the `factor` that Muon made of it.

    The singular values of `factor` are in `bounds`, save those of directions that are almost absent from `moment`.
    With the factor's own polished to o = 1, those of moment / tau - o have the sign of s - tau, and the two signs
    together make the indicator. A factor that did not get there, o < 1, is still flat: o (1 + o sign) / 2 vanishes
    with o, where the half sum of o and the sign would not.
    Singular values within 5e-4 |moment|_F of tau come out between 0 and 1. Cost: 8 polynomials of 3 products each and
    2 products more, in float32. Source: Zhu et al. (2026), arXiv:2602.22681, the box of Muon-LITE.

    >>> moment = torch.diag(torch.tensor([4.0, 0.1]))
    >>> sharp_part(moment, torch.eye(2), torch.tensor(0.5), (0.68, 1.13)).diagonal().round(decimals=1)
    tensor([1., 0.])
    """
    dtype = torch.promote_types(moment.dtype, torch.float32)
    # bfloat16 adds about 2 % to the range of the factor
    o = polar(factor.to(dtype), 0.95 * bounds[0], 1.05 * bounds[1], 2e-3)
    x = moment.to(dtype)
    tiny = torch.finfo(dtype).tiny
    x = x / (radius.to(dtype) * torch.linalg.matrix_norm(x)).clamp(min=tiny) - o
    sign = polar(x / (MARGIN * torch.linalg.matrix_norm(x)).clamp(min=tiny), SMALLEST, 1.0)
    if x.shape[0] > x.shape[1]:
        return torch.addmm(o, o, o.T @ sign, beta=0.5, alpha=0.5)
    return torch.addmm(o, sign @ o.T, o, beta=0.5, alpha=0.5)


def flat(x: Float[torch.Tensor, "k n"], sharp: Float[torch.Tensor, "m n"]) -> Float[torch.Tensor, "k n"]:
    """x Q with Q = 1 - P^T P, P = `sharp`: the rows of x without their sharp directions, never forming more than P.

    >>> flat(torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([[0., 1.]])
    """
    m, n = sharp.shape
    x = x.to(sharp.dtype)
    return x - x @ (sharp.T @ sharp) if m > n else x - (x @ sharp.T) @ sharp


def next_radius(
    radius: Float[torch.Tensor, ""], sharp: Float[torch.Tensor, "m n"], share: float
) -> Float[torch.Tensor, ""]:
    """The threshold of the next step: higher if more than floor(share min(m, n)) + 1 directions are sharp, else lower.

    >>> next_radius(torch.tensor(0.5), torch.eye(4), 0.1)
    tensor(0.5250)
    """
    wanted = int(share * min(sharp.shape)) + 1
    factor = torch.where(sharp.square().sum() > wanted, GROWTH, DECLINE)
    return (radius.to(sharp.dtype) * factor).clamp(LEAST_RADIUS, 1.0).to(radius.dtype)


def risen(step: int, warmup: int, ramp: int) -> float:
    """How far the ramp is, 0 to 1: it begins after `warmup` steps and takes `ramp` steps; step counts from 0.

    >>> risen(5, 10, 10), risen(15, 10, 10), risen(99, 10, 10), risen(0, 0, 0)
    (0.0, 0.5, 1.0, 1.0)
    """
    return min(1.0, max(0.0, (step - warmup) / ramp)) if ramp else float(step >= warmup)


def boost(chi: float, rise: float, decay: float, floor: float) -> float:
    """The flat directions' step over the sharp ones': a ramp from 1 to chi, below what makes both end as one.

    `decay` is the learning rate over its peak, and `floor` what decay ends at. The flat rate falls from chi times the
    peak to the floor while the sharp one falls from the peak, both in the schedule's shape.

    >>> boost(2.0, 1.0, 1.0, 0.1), boost(2.0, 0.5, 1.0, 0.1), boost(2.0, 1.0, 0.1, 0.1)
    (2.0, 1.5, 1.0)
    """
    done = min(1.0, max(0.0, (decay - floor) / (1 - floor)))
    along = floor + (1 - floor) * done
    together = (floor + (chi - floor) * done) / along if along else chi
    return min(1 + rise * (chi - 1), together)


class LITE(Guarded):
    """Muon that goes further where the loss is flat; for the hidden matrices of a network.

    Arguments up to `adjust_lr_fn` are those of `torch.optim.Muon`, in its order: lr is dimensionless, the spectral norm
    of the change of a matrix up to the factor of `adjust_lr_fn`. A direction of a matrix is sharp if its momentum is
    among the largest, a share `sharp` of them, else flat. Flat steps are `chi` times as long, weight decay included.
    `beta1` times the orthogonal factor of the present gradient is added along sharp, `beta2` along flat directions.

    During `warmup` steps chi is 1 and beta2 is beta1; both then rise linearly over `ramp` steps (the paper: the warm-up
    of the learning rate, half of the training). `floor`: where your schedule ends, as a share of the peak: chi is held
    so that flat and sharp learning rates end as one. The peak is the group's "initial_lr", which schedulers set.

    chi=1, beta1=0, beta2=0 is `torch.optim.Muon` bit for bit, for an lr that is a number. A step is skipped where a
    gradient is not finite. Raises `ValueError` for parameters that are not real matrices, sparse gradients and settings
    out of range. Memory: as Muon, one buffer of the parameter's size, and a number per matrix. Cost per matrix: Muon's
    5 iterations in bfloat16, 5 more for beta, and 8 in float32: 3 to 8 times Muon's step on one CPU core, for matrices
    of 64 to 512 rows. Sharded parameters (FSDP2): each rank gathers the momentum, and gradient and matrix where it
    needs them, and computes the whole; the results are those of one process, bit for bit.
    Source: Zhu et al. (2026), arXiv:2602.22681.

    >>> layer = torch.nn.Linear(8, 4, bias=False)
    >>> optimizer = LITE(layer.parameters(), lr=0.02, warmup=100, ramp=1000)
    >>> layer(torch.ones(2, 8)).sum().backward(); optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Quintic = MUON,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        chi: float = 2.0,
        beta1: float = 0.0,
        beta2: float = 1.0,
        sharp: float = 0.1,
        warmup: int = 0,
        ramp: int = 1000,
        floor: float = 0.0,
    ) -> None:
        settings = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn,
            "chi": chi, "beta1": beta1, "beta2": beta2, "sharp": sharp, "warmup": warmup, "ramp": ramp, "floor": floor,
            "step": 0,
        }  # fmt: skip
        super().__init__(parameters_of(params), settings)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; raises `ValueError` as the constructor does, and then leaves the optimizer as it was."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    @override
    def step(self, closure: Closure | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step, or none where a gradient is not finite; `closure`, if given, is called once before."""
        loss = called(closure)
        if self._usable():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and p.numel():
                        self._move(p, p.grad, group)
                group["step"] += 1
        return loss

    def _move(self, p: torch.Tensor, grad: torch.Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
            # as many times |M|_F as each singular value has if all are equal
            state["radius"] = torch.tensor(min(p.shape) ** -0.5, dtype=p.dtype, device=p.device)
        buffer, momentum, lr = state["momentum_buffer"], group["momentum"], float(group["lr"])
        settings = tuple(group["ns_coefficients"]), group["ns_steps"], group["eps"]
        buffer.lerp_(grad, 1 - momentum)
        moment = whole(grad.lerp(buffer, momentum) if group["nesterov"] else buffer)
        update = factor = newton_schulz(moment, *settings)

        rise = risen(group["step"], group["warmup"], group["ramp"])
        beta1, beta2 = group["beta1"], group["beta1"] + rise * (group["beta2"] - group["beta1"])
        peak = float(group.get("max_lr", group.get("initial_lr", lr)))
        chi = boost(group["chi"], rise, lr / peak if peak else 1.0, group["floor"])
        damping = newton_schulz(whole(grad), *settings) if beta1 or beta2 else None
        if damping is not None and beta1:
            update = update.float() + beta1 * damping
        decay = lr * group["weight_decay"]
        pull = None
        if chi != 1 or beta2 != beta1:
            sharp = sharp_part(moment, factor, state["radius"], span(*settings[:2]))
            state["radius"] = next_radius(state["radius"], sharp, group["sharp"])
            update = update.to(sharp.dtype)
            if damping is not None and beta2 != beta1:
                update = update + (beta2 - beta1) * flat(damping, sharp)
            if chi != 1:
                update = update + (chi - 1) * flat(update, sharp)
                pull = flat(whole(p), sharp) if decay else None
        p.mul_(1 - decay)
        if pull is not None:
            p.add_(part(pull, p), alpha=-decay * (chi - 1))
        p.add_(part(update, p), alpha=-lr * lr_factor(group["adjust_lr_fn"], p.shape))


def lr_factor(kind: str | None, shape: torch.Size) -> float:
    """What Muon multiplies the learning rate of a matrix with: "original", the default, or "match_rms_adamw".

    >>> lr_factor(None, torch.Size([8, 2])), lr_factor("match_rms_adamw", torch.Size([4, 100]))
    (2.0, 2.0)
    """
    rows, columns = shape
    return 0.2 * sqrt(max(rows, columns)) if kind == "match_rms_adamw" else sqrt(max(1, rows / columns))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a DTensor, gathered; any other tensor as it is."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor


def part(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that every rank has, laid out as the DTensor `like`, without communication; else as it is."""
    if not is_distributed(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def _check(group: Mapping[str, Any]) -> None:
    names = group.get("param_names") or [f"parameter {index}" for index in range(len(group["params"]))]
    for name, p in zip(names, group["params"], strict=True):
        if p.is_complex():
            raise ValueError(f"{name} is complex. Rule: real matrices. Leave it to torch.optim.AdamW.")
        if p.ndim != 2:
            raise ValueError(
                f"{name} has shape {tuple(p.shape)}. Rule: matrices, 2 dimensions. Give hidden matrices to LITE and "
                "the rest to torch.optim.AdamW; `flatwing.optim.muon_groups(model)` splits a model."
            )
    require_rate(group["lr"], 0.02)
    require_numbers(group, RANGES)
    require_numbers(group, {"beta2": (group["beta1"], inf, max(1.0, group["beta1"]))})
    if group["nesterov"] not in (True, False):
        raise ValueError(f"nesterov is {group['nesterov']!r}. Rule: True or False. Common: True.")
    if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
        raise ValueError(f"adjust_lr_fn is {group['adjust_lr_fn']!r}. Rule: None, 'original' or 'match_rms_adamw'.")
    three = group["ns_coefficients"]
    if not isinstance(three, Sequence) or len(three) != 3 or isinstance(three, str):
        raise ValueError(f"ns_coefficients is {three!r}. Rule: three numbers, such as {MUON}.")
    for value, usual in zip(three, MUON, strict=True):
        require_number("a number in ns_coefficients", value, good=usual)


def _make(model: nn.Module, base: Any, **settings: Any) -> Optimizer:
    """LITE for the hidden matrices of a model; embeddings, heads, vectors and others are left to the base."""
    try:
        matrices, rest = muon_groups(model)
    except ValueError:  # a model whose names say nothing: all matrices
        params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices, rest = ([make_group(one for one in params if (one[1].ndim == 2) is two)] for two in (True, False))
    lite = LITE(matrices, **settings)
    return Shell([lite, base(rest)]) if any(group["params"] for group in rest) else lite


add(
    Method(
        name="LITE",
        summary="Muon with longer steps and more damping along flat directions of each matrix",
        paper="Zhu et al. (2026), arXiv:2602.22681",
        lr_unit="dimensionless: the spectral norm of a matrix's change, as for torch.optim.Muon",
        passes=1.0,
        bytes=0.0,
        memory="one number per matrix beyond Muon's momentum",
        make=_make,
        off={"chi": 1.0, "beta1": 0.0, "beta2": 0.0},
        wraps=False,
    )
)
