"""The examples train, the same for the same seed, and are read back from their cache."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from flatwing.data import Splits
from flatwing.train import EXAMPLES, Trained
from flatwing.train import examples as module


def bytes_of(trained: Trained) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in trained.model.state_dict().values())


def test_names_are_frozen() -> None:
    assert list(EXAMPLES) == ["digits", "bytelm"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_quick_example_obeys_the_contract(name: str) -> None:
    seen = []
    first, again, other = (EXAMPLES[name](seed, quick=True, progress=seen.append) for seed in (0, 0, 1))
    assert first.name == name
    assert isinstance(first.data, Splits)
    assert not first.model.training
    assert seen[0]["step"] == 1
    assert bytes_of(first) == bytes_of(again)
    assert bytes_of(first) != bytes_of(other)
    inputs, targets = first.data.test if first.task == "classification" else _shift(first.data.test[:20])
    logits = first.model(inputs)
    assert logits.shape[:-1] == targets.shape
    assert F.cross_entropy(logits.flatten(0, -2), targets.flatten()) < torch.tensor(logits.shape[-1]).log()


def _shift(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows[:, :-1], rows[:, 1:]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_read_back_from_its_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "weights.safetensors"
    trained = EXAMPLES[name](quick=True, steps=3, cache=cache)
    monkeypatch.setattr(module, "fit", lambda *args, **kwargs: pytest.fail("it was trained again"))
    again = EXAMPLES[name](quick=True, steps=3, cache=cache)
    assert bytes_of(again) == bytes_of(trained)
    assert not again.model.training
    with pytest.raises(ValueError, match="was trained with seed=0, wanted is seed=1"):
        EXAMPLES[name](1, quick=True, steps=3, cache=cache)


def test_cache_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        EXAMPLES["digits"](cache=tmp_path / "no" / "weights.safetensors", progress=lambda m: pytest.fail("trained"))


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    EXAMPLES["digits"](quick=True, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_digits_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    one = EXAMPLES["digits"](quick=True, steps=5)
    torch.set_num_threads(2)
    try:
        two = EXAMPLES["digits"](quick=True, steps=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert bytes_of(one) == bytes_of(two)


@pytest.mark.parametrize("name", EXAMPLES)
def test_zero_steps_are_the_untrained_model(name: str) -> None:
    seen = []
    EXAMPLES[name](quick=True, steps=0, progress=seen.append)
    assert seen == []
