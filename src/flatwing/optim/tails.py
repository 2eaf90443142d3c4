"""Tails of the gradient's noise, which decide whether a power of the gradient is predicted to help."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, inf, lgamma, log, sqrt
from typing import Any, final

import torch
from jaxtyping import Float
from torch import nn

from ..core import require_number, require_whole

LEAST = 8  # batches: below, the standard error itself is a guess
SHAPES = (0.2, 400.0)  # the range of shapes that is told apart; above it the noise is as good as uniform


@final
@dataclass(frozen=True)
class Tails:
    """What `diagnose` found: the noise per coordinate, and the power of the gradient that suits it.

    `lightness` is 0 for Gaussian noise, above for lighter tails, below for heavier ones, and `error` its standard error
    over batches; `kurtosis` is the excess, with `kurtosis_error`. `best_power` is the p = a - 1 that is best against
    noise with density exp(-|x|^a) of this lightness, and `low` and `high` are that of two standard errors down and up.
    `signal` is mean^2 / variance of a coordinate: theory holds where it is small. Of `coordinates` looked at, `silent`
    ones had the same gradient in all `batches` and are left out.
    """

    lightness: float
    error: float
    kurtosis: float
    kurtosis_error: float
    best_power: float
    low: float
    high: float
    signal: float
    batches: int
    coordinates: int
    silent: int

    @property
    def verdict(self) -> str:
        """Whether p > 1 is predicted to help, at two standard errors: "helps", "does not help", or "not decided"."""
        if abs(self.lightness) <= 2 * self.error:
            return "not decided"
        return "helps" if self.lightness > 0 else "does not help"

    def __str__(self) -> str:
        return (
            f"p > 1: {self.verdict}. Best power {self.best_power:.2f} ({self.low:.2f} to {self.high:.2f}), from "
            f"{self.batches} batches and {self.coordinates - self.silent} coordinates. Excess kurtosis "
            f"{self.kurtosis:.2f} ± {self.kurtosis_error:.2f}; signal per noise {self.signal:.2g}."
        )


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], torch.Tensor],
    *,
    coordinates: int = 4096,
    seed: int = 0,
) -> Tails:
    """Whether GradPower with p > 1 is predicted to help this model, from its gradients on `batches` at its weights.

    `loss(model, batch)` is the scalar that is trained on, and a batch as large as one step's, accumulation and ranks
    included: averages have lighter tails than their parts. At least 8 batches, better 30 or more; only their number
    counts for the error, as coordinates of one batch belong together. `coordinates` are drawn by `seed` from all
    trainable parameters alike, because Adam takes all steps to be of one size.

    The theory: one coordinate, a signal much smaller than the noise, noise of the same kind at any weights, Adam. Then
    the speed of p is E[phi'(x)] / sqrt(E[phi(x)^2]), phi(x) = sign(x) |x|^p, and the best p for noise with density
    exp(-|x|^a) is a - 1: 1 for a Gaussian, 0 for Laplace noise. It knows nothing of coordinates that are large when
    they matter, nor of the rest of training; "helps" is a reason to try, "does not help" one not to.

    Pure: weights, `.grad`, buffers, mode and random state are as before. Not for sharded models. Cost: a forward and
    backward per batch, and `coordinates` numbers kept of each.
    Raises `ValueError` for fewer than 8 batches, no trainable or complex parameters, gradients that are
    not finite, or no noise.

    >>> model, generator = nn.Linear(8, 1), torch.Generator().manual_seed(0)
    >>> batches = [torch.randn(64, 8, generator=generator) for _ in range(40)]
    >>> diagnose(model, batches, lambda model, x: model(x).square().mean()).verdict
    'not decided'
    """
    require_whole("coordinates", coordinates, good=4096)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("no parameter requires grad. Rule: a model that is trained. Unfreeze what shall be trained.")
    if any(p.is_complex() for p in params):
        raise ValueError("a parameter is complex. Rule: real ones; tails of pairs are not defined here.")
    total = sum(p.numel() for p in params)
    # with replacement where the model is large: a coordinate drawn twice is rare there, a permutation dear
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(total, (coordinates,), generator=generator) if total > coordinates else torch.arange(total)
    picked = picked.unique()
    rows: list[torch.Tensor] = []
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in params if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(seed)
        try:
            for batch in batches:
                gradients = torch.autograd.grad(loss(model, batch), params, allow_unused=True)
                rows.append(_pick(params, gradients, picked))
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
    if len(rows) < LEAST:
        raise ValueError(f"there are {len(rows)} batches. Rule: at least {LEAST}, better 30 or more.")
    return tails(torch.stack(rows))


def tails(g: Float[torch.Tensor, "n d"]) -> Tails:
    """The same from gradients that are there: n batches by d coordinates.

    Per coordinate, from residuals r about the mean, lightness is 1 + E log|r| - E[r^2 log|r|] / E[r^2], less
    1 / (n - 1): the logarithmic slope, at p = 1, of how fast Adam goes with power p. It does not know scales, and
    for Gaussian noise its mean is 0 exactly, at any n. Averaged over coordinates; the error is that over batches
    of the influence of each (the infinitesimal jackknife). With few batches all noise looks more
    Gaussian than it is, which the error does not contain: Laplace noise is at -0.37 for 30 batches, -0.47 for 200 and
    -0.5 in the limit. The sign is right, the best power too near to 1.

    >>> noise = torch.rand(32, 500, generator=torch.Generator().manual_seed(0)) - 0.5
    >>> tails(noise).verdict
    'helps'
    """
    if len(g) < LEAST:
        raise ValueError(f"there are {len(g)} batches. Rule: at least {LEAST}, better 30 or more.")
    if not g.isfinite().all():
        raise ValueError("a gradient is not finite. Rule: finite ones. Take weights and batches that train.")
    g = g.double()
    moving = (g != g[:1]).any(0)
    silent = int((~moving).sum())
    g = g[:, moving]
    if not g.numel():
        raise ValueError("the gradient is the same in all batches. Rule: noise to measure. Pass batches that differ.")
    n = len(g)
    mean = g.mean(0)
    r = g - mean
    variance = r.square().mean(0)
    z = r / variance.sqrt()
    square = z.square()
    # a residual of exactly 0 has no logarithm; far below the others it is one among n
    logs = z.abs().clamp_min(1e-12).log()
    weighted, fourth = (square * logs).mean(0), square.square().mean(0)
    lightness, error = _mean(1 + logs - square * logs - 1 / (n - 1), logs - square * (logs - weighted))
    factor = (n - 1) / ((n - 2) * (n - 3))
    excess, influence = factor * ((n + 1) * (square.square() - 3) + 6), square.square() - 2 * fourth * square
    kurtosis, kurtosis_error = _mean(excess, factor * (n + 1) * influence)
    # what is left of the noise in the mean comes off; the factor is that of 1 / variance for Gaussian noise
    signal = float(((n - 3) / n * mean.square() / variance - 1 / n).mean())
    low, best, high = (best_power(lightness + k * error) for k in (-2, 0, 2))
    return Tails(lightness, error, kurtosis, kurtosis_error, best, low, high, signal, n, g.shape[1] + silent, silent)


def best_power(lightness: float) -> float:
    """The p that is best against noise exp(-|x|^a) of this lightness: a - 1, and at least 0; inf for uniform noise.

    >>> round(best_power(0.0), 6), best_power(0.5)
    (1.0, inf)
    """
    low, high = SHAPES
    if lightness >= shape_lightness(high):
        return inf
    for _ in range(80):  # lightness grows with the shape
        middle = sqrt(low * high)
        low, high = (middle, high) if shape_lightness(middle) < lightness else (low, middle)
    return max(0.0, low - 1)


def shape_lightness(a: float) -> float:
    """The lightness of noise with density exp(-|x|^a): 0 for a = 2, towards 1/3 as it becomes uniform.

    >>> round(shape_lightness(2.0), 12), round(shape_lightness(1.0), 12)
    (0.0, -0.5)
    """
    three, one = torch.digamma(torch.tensor([3 / a, 1 / a], dtype=torch.float64)).tolist()
    return 1 - (three - one) / a


def speed(p: float, a: float) -> float:
    """How fast Adam goes with power p against noise exp(-|x|^a) of variance 1 and a small signal; 1 for p = 1.

    >>> round(speed(1.2, 2.0), 3), round(speed(1.2, 4.0), 3), round(speed(1.2, 1.0), 3)
    (0.996, 1.039, 0.902)
    """

    def moment(s: float) -> float:  # log E|x|^s
        return lgamma((s + 1) / a) - lgamma(1 / a)

    require_number("p", p, above=0, good=1.2, advice="The sign is the limit; take 1e-9 for it.")
    return exp(log(p) + moment(p - 1) + moment(2.0) / 2 - moment(2 * p) / 2)


def _mean(values: Float[torch.Tensor, "n d"], influence: Float[torch.Tensor, "n d"]) -> tuple[float, float]:
    """The mean, and its standard error over batches from how far each batch moves it: coordinates go together."""
    return float(values.mean()), float(influence.mean(1).std()) / sqrt(len(values))


def _pick(
    params: list[nn.Parameter], gradients: tuple[torch.Tensor | None, ...], picked: torch.Tensor
) -> Float[torch.Tensor, " d"]:
    """The picked entries of the flat gradient; `picked` is sorted."""
    rows, begin = [], 0
    for p, g in zip(params, gradients, strict=True):
        index = picked[(picked >= begin) & (picked < begin + p.numel())] - begin
        begin += p.numel()
        rows.append(torch.zeros(len(index)) if g is None else g.detach().flatten()[index.to(g.device)].float().cpu())
    return torch.cat(rows)
