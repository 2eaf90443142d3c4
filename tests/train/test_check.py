"""Arguments of `fit` that cannot work are refused by name before anything is done, as a user meets them."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flatwing.optim import SAM
from flatwing.train import fit, make_optimizer
from flatwing.train.loop import cross_entropy

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 0, 1, 2])
user_fit: Callable[..., Any] = inspect.unwrap(fit)  # without the tests' check of annotations, which comes first


def batches(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return X, Y


def run(**arguments: Any) -> None:
    model, drawn = arguments.pop("model", nn.Linear(4, 3)), arguments.pop("batches", batches)
    user_fit(model, drawn, **{"steps": 2, "lr": 0.1} | arguments)


@pytest.mark.parametrize("name", ["steps", "lr", "weight_decay", "floor", "warmup", "every", "seed"])
@pytest.mark.parametrize("value", ["x", None, [], True, math.nan])
def test_numbers_are_numbers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*\. Rule: a (whole )?number.*Nearest good value"):
        run(**{name: value})


@pytest.mark.parametrize("name", ["steps", "warmup", "every", "save_every", "micro_batch", "seed"])
def test_counts_are_whole(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 1.5. Rule: a whole number"):
        run(**{name: 1.5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "got a NoneType. Rule: the model itself"),
        ({"model": [nn.Linear(4, 3)]}, "got a list. Rule: the model itself"),
        ({"batches": None}, "batches is None. Rule: a function. Write batches="),
        ({"loss": None}, "loss is None. Rule: a function"),
        ({"fetch": 3}, "fetch is 3. Rule: a function, or None"),
        ({"evaluate": 0.5}, "evaluate is 0.5. Rule: a function, or None"),
        ({"progress": "bar"}, "progress is 'bar'. Rule: a function, or None"),
        ({"optimizer": None}, "optimizer is 'NoneType'. Rule: a name such as 'AdamW', or a function"),
        ({"optimizer": torch.optim.AdamW}, "optimizer is .*AdamW.*Write optimizer=lambda model"),
        ({"optimizer": make_optimizer(nn.Linear(4, 3), "SGD", 0.1)}, "optimizer is 'SGD'. Rule: a name"),
        ({"optimizer": lambda model: None}, "the function optimizer returned a NoneType"),
        ({"optimizer": lambda model: torch.optim.LBFGS(model.parameters())}, "LBFGS, which steps with a closure"),
        ({"optimizer": lambda model: SAM(torch.optim.SGD(model.parameters(), 0.1))}, r"SAM, .*callbacks=\[SamPhase"),
        ({"callbacks": None}, "callbacks is None. Rule: a list of objects of class Callback"),
        ({"callbacks": [print]}, r"callbacks is \[<built-in function print>\]"),
        ({"options": [0.9]}, r"options is \[0.9\]. Rule: a dict"),
        ({"settings": 3}, "settings is 3. Rule: a dict"),
        ({"checkpoint": 3}, "checkpoint is 3. Rule: a file, or None"),
        ({"precision": ["bf16"]}, r"unknown precision \['bf16'\]. Known: fp32"),
        ({"clip": "x"}, "clip is 'x'. Rule: a number"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**arguments)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, r"a batch is a NoneType. Rule: a pair \(inputs, targets\)"),
        (X, "a batch is a Tensor. Rule: a pair"),
        ((X,), "a batch is 1 parts. Rule: a pair"),
        ((X[:4], Y), r"targets are torch.int64 of shape \(6,\) for 4 rows of scores"),
        ((X, Y.float()), "targets are torch.float32 .*Rule: a whole number for each row"),
        ((X[:0], Y[:0]), "for 0 rows of scores. Rule: .* at least one row"),
        ((X, Y + 1), "a target is 3, the model has 3 classes. Rule: 0 to 2. Count from 0"),
    ],
)
def test_batches_that_cross_entropy_cannot_read_are_told(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(batches=lambda step, generator: batch)


def test_ignored_targets_are_still_ignored() -> None:
    masked = torch.tensor([0, 1, -100, 0, 1, 2])
    assert torch.equal(cross_entropy(nn.Identity(), (X, masked)), nn.functional.cross_entropy(X, masked))
