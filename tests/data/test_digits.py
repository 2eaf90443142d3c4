"""Digits: scaled, split by class without overlap, the same for the same seed."""

import pytest
import torch
from sklearn.datasets import load_digits

from flatwing.data import digit_images


def rows(seed: int = 0) -> list[torch.Tensor]:
    return [torch.cat([x, y[:, None]], 1) for x, y in (digit_images(s, seed) for s in ("train", "valid", "test"))]


def test_splits_are_the_whole_data_once() -> None:
    images, labels = load_digits(return_X_y=True)
    whole = torch.cat([torch.tensor(images).float() / 16, torch.tensor(labels)[:, None]], 1)
    ours = torch.cat(rows())
    assert ours.shape == (1797, 65)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, whole.tolist()))


@pytest.mark.parametrize(("split", "share"), [("train", 0.7), ("valid", 0.1), ("test", 0.2)])
def test_each_class_keeps_its_share(split: str, share: float) -> None:
    x, y = digit_images(split)
    labels = torch.tensor(load_digits(return_X_y=True)[1])
    assert (y.bincount(minlength=10) - share * labels.bincount()).abs().max() <= 1
    assert x.min() == 0
    assert x.max() == 1
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_seed_draws_the_split() -> None:
    assert torch.equal(digit_images("test", 1)[0], digit_images("test", 1)[0])
    assert not torch.equal(digit_images("test", 1)[0], digit_images("test", 0)[0])


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        digit_images("validation")
