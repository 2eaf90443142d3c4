"""Trained models to try the library on, made on the spot: digits in seconds, a byte language model in minutes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch

from ..core import Registry, require_writable, threads_for
from ..data import Splits, chunks, digit_images, python_sources, windows
from .loop import fit
from .models import ByteLM, DigitsViT, Model
from .state import Metric
from .storage import load_model, save_model

Pair = tuple[torch.Tensor, torch.Tensor]


@final
@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model with the data it was trained, chosen and tested on.

    `task` is "classification", with data as pairs x (n, 64), y (n,), or "lm", with data as chunks (n, length + 1) of
    tokens: inputs [:, :-1], targets [:, 1:].
    """

    model: Model
    name: str
    task: str
    data: Splits[torch.Tensor] | Splits[Pair]


class Example(Protocol):
    """Trains a built-in model, the same one for the same seed.

    `quick` trains a smaller model for a few steps only, to see that all fits together. With `cache`, a safetensors
    file, the weights are kept there and read back when it exists; another recipe's is refused with `ValueError`.
    """

    def __call__(
        self,
        seed: int = 0,
        *,
        quick: bool = False,
        steps: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: Callable[[Metric], None] | None = None,
    ) -> Trained:
        """Train, or read the cache, and return model and data."""
        ...


EXAMPLES: Registry[Example] = Registry("example")


@EXAMPLES.register("digits")
def digits(
    seed: int = 0,
    *,
    quick: bool = False,
    steps: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[Metric], None] | None = None,
) -> Trained:
    """The digits ViT (0.2 million parameters), trained on scikit-learn's digits in 25 s: test accuracy 98 %.

    See `Example` for the arguments. With `quick` the model is a smaller one.
    """
    data = Splits(digit_images("train"), digit_images("valid"), digit_images("test"))
    x, y = data.train
    size = 16 if quick else 64

    def batches(step: int, generator: torch.Generator) -> Pair:
        rows = torch.randint(len(x), (size,), generator=generator)
        return x[rows], y[rows]

    def make() -> Model:
        return DigitsViT(width=16, depth=1, heads=2) if quick else DigitsViT()

    recipe = {"example": "digits", "seed": seed, "quick": quick, "steps": _or(steps, 40 if quick else 600)}
    recipe |= {"optimizer": "Muon", "options": {}, "lr": 1e-2, "weight_decay": 0.05}
    with threads_for(64):  # small matrices: two threads that wait for each other take twice as long on a busy machine
        model = _trained(make, batches, recipe, cache, progress)
    return Trained(model, "digits", "classification", data)


@EXAMPLES.register("bytelm")
def bytelm(
    seed: int = 0,
    *,
    quick: bool = False,
    steps: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[Metric], None] | None = None,
) -> Trained:
    """The byte language model (1.2 million parameters), trained on Python's standard library in 6 to 8 minutes.

    Test loss 1.29 nats per byte. See `Example` for the arguments. With `quick` the model is a smaller one.
    """
    limit = 40_000 if quick else None
    train, valid, test = (python_sources(split, limit) for split in ("train", "valid", "test"))
    length, size = (32, 4) if quick else (128, 16)

    def batches(step: int, generator: torch.Generator) -> Pair:
        rows = windows(train, length, size, generator)
        return rows[:, :-1], rows[:, 1:]

    def make() -> Model:
        return ByteLM(width=32, depth=2, heads=2, context=length) if quick else ByteLM(context=length)

    recipe = {"example": "bytelm", "seed": seed, "quick": quick, "steps": _or(steps, 20 if quick else 2400)}
    recipe |= {"optimizer": "AdamW", "options": {"betas": [0.9, 0.95]}, "lr": 4e-3, "weight_decay": 0.1}
    model = _trained(make, batches, recipe, cache, progress)
    return Trained(model, "bytelm", "lm", Splits(chunks(train, length), chunks(valid, length), chunks(test, length)))


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _trained(
    make: Callable[[], Model],
    batches: Callable[[int, torch.Generator], Pair],
    recipe: dict[str, Any],
    cache: str | os.PathLike[str] | None,
    progress: Callable[[Metric], None] | None,
) -> Model:
    """A model made by a recipe, from the cache if it is there, in evaluation mode."""
    if cache is not None:
        if Path(cache).exists():
            return load_model(cache, recipe).eval()
        require_writable(cache)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe["seed"])
        model = make()
    settings = {name: value for name, value in recipe.items() if name not in ("example", "quick")}
    warmup = min(50, recipe["steps"] // 10)
    fit(model, batches, schedule="linear", warmup=warmup, progress=progress, **settings)
    if cache is not None:
        save_model(cache, model, recipe)
    return model.eval()
