"""One training run of `optimizers.py`: a byte language model, a base optimizer, and a method of flatwing.optim on it.

The loop is written out, because it is what a user of these methods writes: nothing of flatwing.train drives it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from flatwing.data import chunks, python_sources, windows
from flatwing.optim import IRE, LITE, GradPower, Shell, block_sharpness, blockwise_lr, muon_groups, ratios_of
from flatwing.train import Model, build_model

FLOOR = 1 / 20  # of the peak learning rate, at the end of the cosine
WARMUP = 0.1  # of the run


@dataclass(frozen=True)
class Tier:
    """The size of an experiment; `lr` is where each base begins to look for its best."""

    name: str
    model: dict[str, int]
    context: int
    batch: int
    steps: int
    device: str
    lr: dict[str, float] = field(default_factory=lambda: {"AdamW": 4e-3, "Muon": 4e-3})
    ascii_only: bool = True
    bf16: bool = False


TIERS = {
    "t0": Tier(
        "t0",
        {"vocab": 128, "width": 64, "depth": 2, "heads": 4, "kv_heads": 4, "hidden": 172, "context": 64},
        context=64, batch=16, steps=600, device="cpu",
    ),
    "t1": Tier(
        "t1",
        {"vocab": 256, "width": 384, "depth": 6, "heads": 6, "kv_heads": 6, "hidden": 1024, "context": 256},
        context=256, batch=128, steps=3000, device="cuda", lr={"AdamW": 2e-3, "Muon": 2e-3}, ascii_only=False,
        bf16=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """What is trained: `lr` is the peak of the base, `horizon` the length in units of the tier's steps."""

    tier: str
    base: str
    method: str
    lr: float
    seed: int
    horizon: float = 1.0

    @property
    def key(self) -> str:
        return f"{self.tier}/{self.base}/{self.method}/{self.lr:.4g}/{self.seed}/{self.horizon:g}"


@lru_cache
def corpus(split: str, ascii_only: bool) -> torch.Tensor:
    text = python_sources(split)
    return text[text < 128] if ascii_only else text


@lru_cache
def measured(tier: str) -> dict[str, float]:
    """Ratios from the blocks' own sharpness, after a fifth of a run of plain AdamW, seed 0: once for all trials."""
    spec = TIERS[tier]
    result: dict[str, float] = {}

    def look(step: int, model: Model, tokens: torch.Tensor) -> None:
        if step == spec.steps // 5:
            result.update(ratios_of(block_sharpness(model, lambda: model(tokens), draws=20).mean))

    train(Trial(tier, "AdamW", "alone", spec.lr["AdamW"], 0, horizon=0.25), look)
    return result


def make(trial: Trial, model: Model) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """The optimizer of a trial, and what there is to say of it."""
    name, start = trial.method, round(WARMUP * steps_of(trial))
    ratios = name.removeprefix("Blockwise ") if name.startswith("Blockwise") else None
    adam: dict[str, Any] = {"lr": trial.lr, "betas": (0.9, 0.95), "weight_decay": 0.1}
    notes: dict[str, Any] = {}
    chosen = measured(trial.tier) if ratios == "measured" else "published"

    def split(params: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Groups of some parameters, each block with a learning rate of its own where the method says so."""
        if ratios is None:
            return [{"params": list(params)}]
        groups = list(blockwise_lr(model, trial.lr, chosen, params=params))
        notes.setdefault("ratios", {}).update({group["block"]: round(group["ratio"], 3) for group in groups})
        return groups

    if trial.base == "AdamW":
        base: torch.optim.Optimizer = torch.optim.AdamW(split(model.parameters()), **adam)
    else:
        matrices, others = (split(p for group in part for p in group["params"]) for part in muon_groups(model))
        settings: dict[str, Any] = {"lr": trial.lr, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
        if name == "LITE":
            ramp = steps_of(trial) // 2
            muon: torch.optim.Optimizer = LITE(matrices, **settings, warmup=start, ramp=ramp, floor=FLOOR)
        else:
            muon = torch.optim.Muon(matrices, **settings)
        base = Shell([muon, torch.optim.AdamW(others, **adam)])
    if name.startswith("IRE"):
        return IRE(base, mask=name.removeprefix("IRE "), start=start, seed=trial.seed), notes
    if name == "GradPower":
        return GradPower(base, p=1.2), notes
    return base, notes


def steps_of(trial: Trial) -> int:
    return round(TIERS[trial.tier].steps * trial.horizon)


def rate(step: int, steps: int, peak: float, floor: float) -> float:
    """Linear rise, then half a cosine down to `floor`, which is the same for all groups."""
    warmup = WARMUP * steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def train(trial: Trial, look: Callable[[int, Model, torch.Tensor], None] | None = None) -> dict[str, Any]:
    """Train, and return the losses at the end, in nats per byte, and what it cost."""
    tier, steps = TIERS[trial.tier], steps_of(trial)
    torch.manual_seed(trial.seed)
    model = build_model("llama", tier.model).to(tier.device)
    order = torch.Generator().manual_seed(trial.seed)  # same initial weights and same batches for every method
    text = corpus("train", tier.ascii_only)
    optimizer, notes = make(trial, model)
    peaks = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    passes, begin, broken = 0, time.perf_counter(), False
    for step in range(steps):
        rows = windows(text, tier.context, tier.batch, order).to(tier.device)
        inputs, targets = rows[:, :-1], rows[:, 1:]
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = rate(step, steps, peak, FLOOR * trial.lr)

        def forward(inputs: torch.Tensor = inputs) -> torch.Tensor:
            nonlocal passes
            passes += 1
            with torch.autocast(tier.device, torch.bfloat16, enabled=tier.bf16):
                return model(inputs).float()

        if isinstance(optimizer, IRE):
            optimizer.refresh(forward)
        loss = F.cross_entropy(forward().flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(loss.item()):
            broken = True
            break
        optimizer.step()
        if look is not None:
            look(step, model, inputs)
    seconds = time.perf_counter() - begin
    ends = {split: math.inf if broken else evaluate(model, tier, split) for split in ("valid", "test")}
    return {**asdict(trial), **ends, "passes": passes / steps, "seconds": round(seconds, 1), **notes}


@torch.no_grad()
def evaluate(model: Model, tier: Tier, split: str) -> float:
    rows = chunks(corpus(split, tier.ascii_only)[: 1 << 16], tier.context)
    total = 0.0
    for part in rows.split(64):
        part = part.to(tier.device)
        logits = model(part[:, :-1]).float()
        total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return total / rows[:, 1:].numel()
