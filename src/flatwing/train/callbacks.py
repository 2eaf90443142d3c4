"""What may happen between the steps of a run without being in the loop: a few hooks, and those that come with us."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from ..core import require_number, require_whole
from ..nn import LayerPair
from ..nn.wellposed import pair_names
from .distributed import launched
from .guard import FactorWatch
from .state import Metric

SMOOTHING = 0.1  # of the loss that the guard compares: about the last ten steps


@dataclass(slots=True)
class Training:
    """What a callback sees of a run.

    `network` is what computes gradients, DDP around `model` for instance, and the model itself in one process.
    `gradient()` computes the gradient of the batch of this step at the weights of the moment into `.grad`, all
    micro-batches and ranks included, and returns the mean loss; under float16 it is multiplied by the loss scale.
    `batches` are functions that fetch the micro-batches of this rank. `rates` are the learning rates of all steps:
    step k is at places[k] of the schedule, in steps, and its rate is multiplied by scales[k]; see `repace`.
    `stop` = True ends the run after this step, on all ranks, with a checkpoint if there is one.
    """

    model: nn.Module
    network: nn.Module
    optimizer: Optimizer
    rates: Sequence[float]
    metrics: list[Metric] = field(default_factory=list)
    step: int = 0
    gradient: Callable[[], torch.Tensor] = field(default=lambda: torch.zeros(()), repr=False)
    batches: Sequence[Callable[[], Any]] = ()
    stop: bool = False
    curve: Callable[[float], float] = field(default=lambda place: 0.0, repr=False)
    places: Sequence[float] = ()
    scales: Sequence[float] = ()

    def repace(self, places: Sequence[float], scales: Sequence[float]) -> None:
        """Let the steps be at other places of the schedule, and scale their rates; to be called in `on_start`."""
        self.places, self.scales = places, scales
        self.rates = [self.curve(place) * scale for place, scale in zip(places, scales, strict=True)]

    @property
    def steps(self) -> int:
        """Length of the whole run."""
        return len(self.rates)


class Callback:
    """Base class: override what you need. All ranks of a run have the same callbacks, in the same order.

    A callback keeps nothing that a resumed run could not compute again, from the number of the step or from
    `training.metrics`, in `on_start`.
    """

    def on_start(self, training: Training) -> None:
        """Before the first step of a run, or of its continuation; `training.metrics` are those so far."""

    def on_gradient(self, training: Training) -> None:
        """The gradient of the step is in `.grad`, of all micro-batches and ranks, before unscaling and clipping."""

    def on_metric(self, training: Training, metric: Metric) -> None:
        """A step was made, or the start was scored (step 0)."""

    def on_end(self, training: Training) -> None:
        """The run ends, also by an error."""


@final
class DivergenceGuard(Callback):
    """Ends a run that diverges: `FloatingPointError` once the smoothed loss is `factor` times its lowest value so far.

    Looks from step `after` on, and waits for the end of the warm-up of the smoothing. Losses that are not positive are
    not looked at. `pairs` are names (first, second) of linear layers, such as those that `nn.wellposed.layer_pairs`
    calls not closed: a `UserWarning` says once for each that its norms grow like distance^(-1/2) while the product of
    the two converges (`FactorWatch`). That begins anew when a run is resumed, and wants whole weights. Raises
    `ValueError` for numbers out of range and a pair of a layer and itself, `TypeError` for what is no pair of names,
    and at the start of the run `ValueError` for names that the model does not have, or whose sizes do not fit.
    """

    def __init__(self, factor: float = 3.0, after: int = 20, pairs: Sequence[tuple[str, str] | LayerPair] = ()) -> None:
        require_number("factor", factor, above=1, good=3.0)
        require_whole("after", after, 0, good=20)
        self.factor, self.after = factor, after
        self.pairs = pair_names(pairs)
        self._begin()

    def _begin(self) -> None:
        self._watches = [FactorWatch(*pair) for pair in self.pairs]
        self._smooth: float | None = None
        self._lowest = float("inf")

    @override
    def on_start(self, training: Training) -> None:
        """Look for the layers of the pairs, and go through the losses so far."""
        self._begin()
        for watch in self._watches:
            watch.require(training.model)
        for metric in training.metrics:
            self._look(metric)

    @override
    def on_metric(self, training: Training, metric: Metric) -> None:
        """Compare the loss with the lowest."""
        self._look(metric)
        if self._smooth is not None and self._smooth > self.factor * self._lowest > 0:
            raise FloatingPointError(
                f"the loss is {self._smooth:.4g} at step {metric['step']} after {self._lowest:.4g} before. Rule: below "
                f"{self.factor:g} times the lowest. Lower lr, or raise warmup."
            )
        for watch in tuple(self._watches):
            growth = watch.look(training.model, int(metric["step"]))
            if growth is not None and watch.certain:
                self._watches.remove(watch)
                warnings.warn(
                    f"step {metric['step']}: {watch.first!r} and {watch.second!r} together: {growth}. Best weights "
                    "may not exist. Use weight decay, or add the entries that `flatwing wellposed --advise` names.",
                    stacklevel=2,
                )

    def _look(self, metric: Metric) -> None:
        loss = metric.get("loss")
        if loss is None:
            return
        self._smooth = loss if self._smooth is None else self._smooth + SMOOTHING * (loss - self._smooth)
        if metric["step"] >= self.after:
            self._lowest = min(self._lowest, self._smooth)


@final
class StopOnSignal(Callback):
    """Ctrl-C or SIGTERM ends the run after the step that is being made, so that it can be saved; twice ends at once.

    Under torchrun Ctrl-C comes twice, from the terminal and from torchrun, so there only a kill ends at once.

    Use it as a context around the run; `caught` says whether it was.

    >>> with StopOnSignal() as stopper:
    ...     stopper.caught
    False
    """

    def __init__(self) -> None:
        self.caught = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = True
        if not launched():
            self._restore()  # the next one is heard as usual

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    @override
    def on_metric(self, training: Training, metric: Metric) -> None:
        """Ask for the end where a signal came."""
        training.stop = training.stop or self.caught


@contextmanager
def running(callbacks: Sequence[Callback], training: Training) -> Iterator[None]:
    """Start callbacks, and end those that were started, the last one first, also after an error."""
    started: list[Callback] = []
    try:
        for callback in callbacks:
            started.append(callback)
            callback.on_start(training)
        yield
    finally:
        for callback in reversed(started):
            callback.on_end(training)
