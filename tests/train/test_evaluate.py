"""Means and standard errors over rows, for labels and for texts."""

from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatwing.train.evaluate import measure

X = torch.randn(13, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(13) % 5


def test_numbers_are_those_of_the_definition() -> None:
    found = measure(nn.Identity(), [(X[:8], Y[:8]), (X[8:], Y[8:])])
    losses = F.cross_entropy(X, Y, reduction="none")
    right = (X.argmax(1) == Y).float()
    assert found["samples"] == 13
    for name, values in (("loss", losses), ("accuracy", right)):
        assert found[name]["value"] == pytest.approx(values.mean().item())
        assert found[name]["stderr"] == pytest.approx(values.std().item() / sqrt(13))


def test_a_text_is_one_sample() -> None:
    logits, targets = X[:12].view(3, 4, 5), Y[:12].view(3, 4)
    found = measure(nn.Identity(), [(logits, targets)])
    losses = F.cross_entropy(X[:12], Y[:12], reduction="none").view(3, 4).mean(1)
    assert found["samples"] == 3
    assert found["loss"]["value"] == pytest.approx(losses.mean().item())
    assert found["loss"]["stderr"] == pytest.approx(losses.std().item() / sqrt(3))


def test_nothing_to_measure_on_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to measure on"):
        measure(nn.Identity(), [])
