"""A run that is interrupted and started again ends with the bytes of one that was not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from flatwing.train import OPTIMIZERS, Metric, fit
from flatwing.train.optimizers import REFUSED

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


class Interruption(Exception):
    """What a test throws into a run."""


def batches(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(40, (8,), generator=generator)
    return X[rows], Y[rows]


def make() -> nn.Module:
    """Matrices, vectors, a buffer and dropout: all kinds of state."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))


def evaluate(model: nn.Module) -> float:
    return nn.functional.cross_entropy(model(X), Y).item()


def run(model: nn.Module, stop: int = -1, **settings: object) -> list[Metric]:
    """Train, and fall over after the given step."""

    def progress(metric: Metric) -> None:
        if metric["step"] == stop:
            raise Interruption

    return fit(model, batches, progress=progress, **({"steps": 9, "lr": 0.05, "every": 2} | settings))


def bytes_of(model: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


@pytest.mark.parametrize("stop", [1, 2, 3, 6, 8, 9])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"evaluate": evaluate, "keep": "best"}, id="best"),
        pytest.param({"optimizer": "Muon", "precision": "bf16"}, id="two optimizers, bf16"),
    ],
)
def test_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, stop: int, settings: dict[str, object]) -> None:
    whole = make()
    expected = run(whole, **settings)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Interruption, match=r"^$"):
        run(make(), stop, checkpoint=path, **settings)
    again = make()
    metrics = run(again, checkpoint=path, **settings)
    assert bytes_of(again) == bytes_of(whole)
    assert metrics == expected


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(REFUSED)))
def test_every_optimizer_resumes_exactly(tmp_path: Path, name: str) -> None:
    whole, again = make(), make()
    run(whole, optimizer=name, lr=1e-3)
    with pytest.raises(Interruption, match=r"^$"):
        run(make(), 5, optimizer=name, lr=1e-3, checkpoint=tmp_path / "run.safetensors")
    run(again, optimizer=name, lr=1e-3, checkpoint=tmp_path / "run.safetensors")
    assert bytes_of(again) == bytes_of(whole)


def test_resumed_run_does_not_repeat_steps(tmp_path: Path) -> None:
    path, drawn = tmp_path / "run.safetensors", []

    def spy(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(step)
        return batches(step, generator)

    with pytest.raises(Interruption, match=r"^$"):
        run(make(), 5, checkpoint=path)
    fit(make(), spy, steps=9, lr=0.05, every=2, checkpoint=path)
    assert drawn == [4, 5, 6, 7, 8]


def test_finished_run_is_read_back(tmp_path: Path) -> None:
    path, first, second = tmp_path / "run.safetensors", make(), make()
    metrics = run(first, checkpoint=path)
    before = path.read_bytes()
    assert run(second, checkpoint=path) == metrics
    assert bytes_of(second) == bytes_of(first)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.Linear(9, 3))


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (make, {"lr": 0.1}, "is of a run with lr=0.05, this one has lr=0.1"),
        (make, {"seed": 1}, "with seed=0, this one has seed=1"),
        (make, {"options": {"betas": (0.8, 0.9)}}, "this one has options="),
        (wider, {}, "the weights do not fit Sequential"),
    ],
)
def test_another_runs_state_is_refused(
    tmp_path: Path, model: Callable[[], nn.Module], change: dict[str, object], message: str
) -> None:
    path = tmp_path / "run.safetensors"
    run(make(), checkpoint=path)
    with pytest.raises(ValueError, match=message):
        run(model(), checkpoint=path, **change)


def test_options_survive_the_file(tmp_path: Path) -> None:
    path, options = tmp_path / "run.safetensors", {"betas": (0.8, 0.9)}
    metrics = run(make(), checkpoint=path, options=options)
    assert run(make(), checkpoint=path, options=options) == metrics


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(make(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not readable"):
        run(make(), checkpoint=path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="not readable"):
        run(make(), checkpoint=path)


def test_missing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        fit(make(), lambda s, g: pytest.fail("a batch"), steps=1, lr=0.1, checkpoint=tmp_path / "no" / "run")
