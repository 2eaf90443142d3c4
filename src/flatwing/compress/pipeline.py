"""The stages of a compression in order, each one kept when it is finished: plan, factorize, heal, evaluate."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import torch
from torch import nn

from ..nn import LinearInfo, StructuredLayer, linear_layers, matching
from .batch import Batch, select
from .calibration import Data
from .costs import calls_per_sample, unit_cost
from .evaluate import evaluate, quality_loss
from .explore import Explored, decide, explore
from .heal import best_rate, heal
from .landmarks import LANDMARKS, landmarks
from .layerwise import LayerResult, fit_layers
from .measure import flops, linear_parameters, parameters, peak_memory, state_bytes
from .options import Options
from .plan import LayerPlan
from .prices import Prices
from .quantize import fake_quantized, quantizable, quantized_state
from .save import tensors_of
from .source import Source
from .timing import latency, layer_speed
from .work import Work

Progress = Callable[[str, int, int], None]
SEARCHED = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)  # shares that --max-loss tries in turn
LATENCY_SIZES = (1, 16, 64)
SPEED_ROWS = 256
SMALLEST = 8  # a layer with a smaller side is all but a few vectors: it stays, here and in the landmarks
CURVES = ("whitened SVD", "plain SVD")


@final
@dataclass
class Pipeline:
    """One compression: the network, its data, the options, and where finished stages are kept (`work` may be None)."""

    source: Source
    data: Data
    options: Options
    work: Work | None = None
    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)  # of finished stages, where there is no work folder

    def __post_init__(self) -> None:
        self.layers, self.skipped = choose_layers(self.source.model, self.options)
        calls = calls_per_sample(self.source.model, list(self.layers), self.data.fit[0])
        for name, count in calls.items():
            if not count:
                del self.layers[name]
                self.skipped[name] = "the network does not call it on these data"
        if not self.layers:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self.skipped.items())[:3])
            raise ValueError(f"there is no layer to compress. {reasons or 'The network has no linear layers.'}")
        quantized = self.options.quantize is not None
        self.cost = Prices(unit_cost(self.options.unit, self.layers, quantized=quantized, calls=calls))

    @cached_property
    def dense_cost(self) -> float:
        """What the layers cost as they are."""
        self.explored()  # which knows the prices of an interrupted run
        return sum(self.cost(name, None) for name in self.layers)

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        if self.work is not None:
            result = self.work.once(name, compute)
        else:
            result = self.results[name] if name in self.results else self.results.setdefault(name, compute())
        self.seconds.setdefault(name, time.perf_counter() - begin)
        return result

    def explored(self) -> list[Explored]:
        """Error curves and sensitivities of all layers."""

        def compute() -> list[dict[str, Any]]:
            found = explore(
                self.source.model,
                self.layers,
                self.data.fit,
                share=self.options.share,
                cost=self.cost,
                task=self.source.task,
                structures=self.options.structures,
                seed=self.options.seed,
                progress=self.progress,
            )
            return [own.to_dict() for own in found]

        found = [Explored.from_dict(own) for own in self._once("explored", compute)]
        self.cost.learn(found)
        return found

    def plan(self, share: float) -> list[LayerPlan]:
        """The decision for every layer at a share of the dense cost, made once; of 1 or more keeps all layers."""
        explored = self.explored()
        if share >= 1:
            return [
                LayerPlan(e.name, e.shape, None, e.shape[0] * e.shape[1], 0.0, 0.0, 0.0, e.sensitivity, e.spectrum)
                for e in explored
            ]

        def compute() -> list[dict[str, Any]]:
            return self.cost.keep(decide(explored, share * self.dense_cost, self.cost))

        return self.cost.recall(self._once(f"plan_{share}", compute))

    def searched(self) -> tuple[float, list[dict[str, Any]]]:
        """The smallest share whose loss on held-out data stays within `max_loss`, and what was seen on the way."""
        limit = self.options.max_loss
        assert limit is not None
        before = evaluate(self.source.model, self.data.heldout, self.source.task, self.source.model)

        def compute() -> dict[str, Any]:
            best, seen = 1.0, []
            for done, share in enumerate(SEARCHED):
                if self.progress is not None:
                    self.progress(f"trying {share:.0%}", done, len(SEARCHED))
                try:
                    model, _ = self.factorized(self.plan(share), keep=False)
                except ValueError:  # below the cheapest structures
                    break
                lost = quality_loss(
                    before, evaluate(model, self.data.heldout, self.source.task, self.source.model), self.source.task
                )
                seen.append({"share": share, "lost": lost})
                if lost > limit:
                    break
                best = share
            return {"share": best, "seen": seen}

        result = self._once("searched", compute)
        return result["share"], result["seen"]

    def factorized(self, plans: Sequence[LayerPlan], keep: bool = True) -> tuple[nn.Module, list[LayerResult]]:
        """A copy of the network with the planned layers, fitted one after the other."""
        model = copy.deepcopy(self.source.model)
        begin = time.perf_counter()
        if all(plan.candidate is None for plan in plans):
            count = {p.name: p.shape[0] * p.shape[1] for p in plans}
            return model, [LayerResult(n, "dense", c, c, 0.0, 0.0, 0.0, 0.0, 1.0, 0) for n, c in count.items()]
        results = fit_layers(
            self.source.model,
            model,
            self.layers,
            plans,
            self.data.batches,
            len(self.data.fit),
            anchored=self.options.anchored,
            store=self.work.layers({plan.name: plan.structure for plan in plans}) if self.work and keep else None,
            seed=self.options.seed,
            progress=self.progress,
        )
        self.seconds["factorized"] = time.perf_counter() - begin
        return model, results

    def healed(self, model: nn.Module) -> tuple[list[dict[str, Any]], float]:
        """Distil the original into `model`, in place; the metrics of all steps, and the learning rate."""
        begin, options = time.perf_counter(), self.options
        data = (self.source.model, self.data.fit, self.data.heldout, self.source.task)
        settings: dict[str, Any] = {
            "steps": options.heal,
            "optimizer": options.optimizer,
            "match": options.match,
            "precision": options.precision,
            "gradient_checkpointing": options.gradient_checkpointing,
            "seed": options.seed,
        }
        say = self.progress or (lambda what, done, total: None)
        frozen = [p for p in model.parameters() if p.is_floating_point()]
        if any(p.requires_grad for p in frozen):
            frozen = []
        for parameter in frozen:  # a network that was frozen for use is healed as a whole
            parameter.requires_grad_(True)
        say("healing: trying learning rates", 0, 1)
        rate = options.heal_lr or self._once("heal_lr", lambda: best_rate(model, *data, **settings))
        metrics = heal(
            model,
            *data,
            lr=rate,
            checkpoint=None if self.work is None else self.work.folder / "heal.safetensors",
            progress=lambda metric: say("healing", int(metric["step"]), options.heal),
            **settings,
        )
        for parameter in frozen:
            parameter.requires_grad_(False)
        self.seconds["healed"] = time.perf_counter() - begin
        return [dict(metric) for metric in metrics], rate

    def measured(self, name: str, model: nn.Module) -> dict[str, Any]:
        """What the report says of a network: quality on the test data, agreement with the original, sizes.

        The one called "quantized" is to be kept as int8.
        """

        def compute() -> dict[str, Any]:
            if self.progress is not None:
                self.progress(f"evaluating ({name})", 0, 1)
            metrics = evaluate(model, self.data.test, self.source.task, self.source.model)
            batch = select(self.data.test[0], torch.arange(min(16, len(self.data.test[0].inputs))))
            sizes = {
                "parameters": parameters(model),
                "linear_parameters": linear_parameters(model, list(self.layers)),
                "bytes": state_bytes(self._kept(model) if name == "quantized" else model),
                "flops": flops(model, batch),
                "peak_memory": peak_memory(model, batch),
            }
            return {**metrics.to_dict(), **sizes, "latency": []}

        return self._once(f"measured_{name}", compute)

    def _kept(self, model: nn.Module) -> dict[str, torch.Tensor]:
        state = tensors_of(model)
        return quantized_state(state, [key for key in quantizable(model, self.layers) if key in state])[0]

    def timed(self, model: nn.Module) -> dict[str, list[dict[str, Any]]]:
        """Milliseconds of both networks at several batch sizes."""
        rows = torch.cat([torch.arange(len(self.data.test[0].inputs))] * (1 + max(LATENCY_SIZES)))

        def make(size: int) -> Batch:
            return select(self.data.test[0], rows[:size])

        models = {"before": self.source.model, "compressed": model}
        return self._once("timed", lambda: latency(models, make, LATENCY_SIZES, seconds=self.options.timing))

    def compared(self, share: float) -> list[dict[str, Any]]:
        """The landmarks at this share of the parameters."""
        if not self.options.landmarks or not 0 < share < 1:
            return []
        return self._once("landmarks", lambda: self._landmarks(share, tuple(LANDMARKS)))

    def _landmarks(self, share: float, names: Sequence[str]) -> list[dict[str, Any]]:
        if not self.options.landmarks:
            return []
        return landmarks(
            self.source.model,
            self.layers,
            self.data.batches,
            len(self.data.fit),
            self.data.test,
            self.source.task,
            share,
            names=names,
            progress=self.progress,
        )

    def speeds(self, model: nn.Module) -> dict[str, float]:
        """How many times as fast as its dense layer each structured layer is, measured here on `SPEED_ROWS` vectors."""

        def compute() -> dict[str, float]:
            known: dict[str, float] = {}
            found = {}
            for name, layer in structured_layers(model).items():
                if name not in self.layers:
                    continue
                key = repr(layer)
                if key not in known:
                    known[key] = layer_speed(self.layers[name].as_linear(), layer, SPEED_ROWS)
                found[name] = known[key]
            return found

        return self._once("speeds", compute)

    def curve(self, share: float, compressed: Mapping[str, Any]) -> dict[str, Any]:
        """Quality on the test data against the budget, before healing: at half, all and twice the share."""
        key = {"lm": "loss", "classification": "accuracy"}.get(self.source.task, "kl")
        if compressed.get(key) is None:
            key = "kl"

        def value(metrics: Mapping[str, Any]) -> dict[str, Any]:
            own = metrics[key] if key != "kl" else (metrics["agreement"] or {}).get("kl") or metrics["loss"]
            return own or {"value": None, "stderr": None}

        def compute() -> list[dict[str, Any]]:
            points = [{"method": "flatwing", "share": share, **value(compressed)}]
            for other in (share / 2, share * 2):
                if not 0 < other < 0.95 or not self.options.curve:
                    continue
                try:
                    model, _ = self.factorized(self.plan(other), keep=False)
                except ValueError:  # half the share may be below the cheapest structures
                    continue
                metrics = evaluate(model, self.data.test, self.source.task, self.source.model).to_dict()
                points.append({"method": "flatwing", "share": other, **value(metrics)})
                for row in self._landmarks(other, CURVES):
                    own = row["agreement_kl"] if key == "kl" else row[key]
                    points.append({"method": row["name"], "share": other, **(own or {"value": None, "stderr": None})})
            return sorted(points, key=lambda point: point["share"])

        points = self._once("curve", compute)
        dense = value(self.measured("before", self.source.model)) if key != "kl" else {"value": 0.0}
        return {"metric": key, "points": points, "dense": dense["value"]}

    def quantized(self, model: nn.Module) -> nn.Module:
        """A copy of the network with the compressed layers rounded to int8."""
        names = [name for name in self.layers if name in dict(model.named_modules())]
        return fake_quantized(copy.deepcopy(model), names)


def choose_layers(model: nn.Module, options: Options) -> tuple[dict[str, LinearInfo], dict[str, str]]:
    """The layers that may be compressed, and why the others may not."""
    infos = linear_layers(model)
    if not infos:
        return {}, {}
    wanted = matching(infos, options.where, "where")
    unwanted = matching(infos, options.skip, "skip") if options.skip else set()
    layers, skipped = {}, {}
    for name, info in infos.items():
        reason = info.skip
        if reason is None and info.tied_to:
            reason = f"its weight is also that of {info.tied_to[0]}"
        if reason is None and info.is_head and options.where == ("*",):
            reason = "it makes the network's outputs; name it in where to compress it"
        if reason is None and name in unwanted:
            reason = "skip names it"
        if reason is None and name not in wanted:
            reason = "where does not name it"
        if reason is None and min(info.in_features, info.out_features) < SMALLEST:
            reason = f"a side below {SMALLEST} leaves nothing to save"
        if reason is None:
            layers[name] = info
        else:
            skipped[name] = reason
    return layers, skipped


def structured_layers(model: nn.Module) -> dict[str, StructuredLayer]:
    """The layers of a network that have a structure."""
    return {name: m for name, m in model.named_modules() if isinstance(m, StructuredLayer)}
