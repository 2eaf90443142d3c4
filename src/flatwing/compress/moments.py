"""Moments of a layer's inputs, before and after the layers in front of it changed, and the best target they imply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float

from ..factorize import Metric
from ..factorize.metric import solve

CHUNK = 8192  # samples that are multiplied in the precision of the activations before they are added up in float64
PLENTY = 10  # samples per input from which on little damping is enough
DAMP, DAMP_FEW = 1e-3, 3e-2
ROUNDING = 1e-5  # share of E[h^2] below which a variance is little but the rounding of float32


@final
class Moments:
    """Sums over samples of x (input in the original network), h (input in the compressed one) and d (residual error).

    Kept in float64: E[h h^T], E[x h^T], E[d h^T] per layer that writes to a residual stream, and the means.
    Without any sample nothing is known of a layer: its target is its own weight, in the Frobenius norm.
    """

    def __init__(self, inputs: int) -> None:
        zeros = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.samples = 0
        self.hh, self.xh = zeros, zeros.clone()
        self.h, self.x = zeros[0].clone(), zeros[0].clone()
        self.dh: dict[str, torch.Tensor] = {}
        self.d: dict[str, torch.Tensor] = {}

    def add(
        self,
        x: Float[torch.Tensor, "samples n"],
        h: Float[torch.Tensor, "samples n"],
        residuals: dict[str, Float[torch.Tensor, "samples _"]],
    ) -> None:
        """Add samples; `residuals` maps names of layers to d, what their residual stream lacks before they write."""
        self.samples += len(h)
        for start in range(0, len(h), CHUNK):
            rows = slice(start, start + CHUNK)
            xs, hs = x[rows].float(), h[rows].float()
            self.hh += (hs.mT @ hs).double().cpu()
            self.xh += (xs.mT @ hs).double().cpu()
            self.h += hs.sum(0, dtype=torch.float64).cpu()
            self.x += xs.sum(0, dtype=torch.float64).cpu()
            for name, residual in residuals.items():
                ds = residual[rows].float()
                cross, sums = (ds.mT @ hs).double().cpu(), ds.sum(0, dtype=torch.float64).cpu()
                self.dh[name] = self.dh[name] + cross if name in self.dh else cross
                self.d[name] = self.d[name] + sums if name in self.d else sums

    @property
    def damp(self) -> float:
        """Share of the mean variance to add to every direction: more with fewer than about 10 samples per input."""
        return DAMP if self.samples >= PLENTY * len(self.h) else DAMP_FEW

    def covariance(self, centred: bool) -> Float[torch.Tensor, "n n"]:
        """E[h h^T], without the mean's share if `centred`.

        An input that hardly varies then has a variance above 0 and no covariance, which would be rounding alone.
        """
        if not centred:
            return self.hh / self._count
        result, still = self._centred()
        result[still] = result[:, still] = 0
        result.diagonal()[still] = ROUNDING * self.hh.diagonal()[still] / self._count
        return result

    @property
    def _count(self) -> int:
        return max(1, self.samples)

    def _centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """E[h h^T] without the mean's share, as summed, and which inputs hardly vary."""
        second, mean = self.hh / self._count, self.h / self._count
        result = second - torch.outer(mean, mean)
        return result, result.diagonal() <= ROUNDING * second.diagonal()

    def objective(
        self, name: str, W: Float[torch.Tensor, "m n"], bias: torch.Tensor | None, V: Float[torch.Tensor, "m n"]
    ) -> float:
        """E|W x + b + d - V h - b'|^2, best b' if there is a bias, up to a constant that does not depend on V."""
        W = W.double().cpu()
        hh, cross = self._second_moments(name, W, bias is not None)
        return float(((V @ hh) * V).sum() - 2 * (V * cross).sum())

    def _second_moments(self, name: str, W: torch.Tensor, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """E[h h^T] and E[(W x + d) h^T], without the means' shares if `centred`."""
        count = self._count
        cross = (W @ self.xh + self.dh.get(name, torch.zeros((), dtype=torch.float64))) / count
        if centred:
            cross = cross - torch.outer(W @ self.x + self._sum_of_d(name, len(W)), self.h) / count**2
        hh = self.covariance(centred)
        if centred:
            still = self._centred()[1]
            cross[:, still] = W[:, still] * hh.diagonal()[still]  # nothing to correct where nothing varies
        return hh, cross

    def _sum_of_d(self, name: str, m: int) -> torch.Tensor:
        return self.d[name] if name in self.d else torch.zeros(m, dtype=torch.float64)

    def target(self, name: str, W: Float[torch.Tensor, "m n"], bias: Float[torch.Tensor, " m"] | None) -> Target:
        r"""What layer `name` should be now: W', b' that minimise E|W x + b + d - W' h - b'|^2, damped towards W.

        $W_t = W + (W (E[x h^T] - E[h h^T]) + E[d h^T]) E[h h^T]^{-1}$. Moments are centred for layers with a bias,
        which then takes up the difference of the means. Raises `ValueError` naming the layer where its inputs are no
        finite numbers.
        """
        W = W.double().cpu()
        hh, cross = self._second_moments(name, W, bias is not None)
        try:
            metric = Metric.identity(len(hh)) if hh.diagonal().sum() == 0 else Metric(hh, self.damp)
            wanted = W + solve(metric.covariance, (cross - W @ hh).mT).mT
        except ValueError as error:
            raise ValueError(f"layer {name!r}, moments of its inputs on the calibration data: {error}") from error
        mean = None
        if bias is not None:
            mean = (W @ self.x + self._sum_of_d(name, len(W))) / self._count + bias.detach().double().cpu()
        return Target(wanted, mean, self.h / self._count, metric)


@final
@dataclass(frozen=True)
class Target:
    """The matrix to approximate, in which norm, and the mean output from which the bias follows."""

    matrix: Float[torch.Tensor, "m n"]
    mean_output: Float[torch.Tensor, " m"] | None
    mean_input: Float[torch.Tensor, " n"]
    metric: Metric

    def bias(self, W: Float[torch.Tensor, "m n"]) -> Float[torch.Tensor, " m"] | None:
        """The bias with which the mean output is right; None for layers without one."""
        return None if self.mean_output is None else self.mean_output - W.double().cpu() @ self.mean_input
