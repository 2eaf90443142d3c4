"""A run that is interrupted and started again ends with the bytes of one that was not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from flatwing.optim import IRE
from flatwing.train import OPTIMIZERS, Callback, Metric, Training, cross_entropy, fit
from flatwing.train.optimizers import REFUSED
from flatwing.train.state import RUN
from flatwing.train.storage import load_tensors

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


def homogeneous() -> nn.Module:
    """What PRGD takes."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3, bias=False))


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
        pytest.param({"precision": "fp16", "micro_batch": 3}, id="fp16, micro-batches"),
        pytest.param({"optimizer": lambda model: around(model)}, id="counters in groups, masks"),
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
    fitting = homogeneous if name == "PRGD" else make
    whole, again = fitting(), fitting()
    run(whole, optimizer=name, lr=1e-3)
    with pytest.raises(Interruption, match=r"^$"):
        run(fitting(), 5, optimizer=name, lr=1e-3, checkpoint=tmp_path / "run.safetensors")
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


def around(model: nn.Module) -> torch.optim.Optimizer:
    return IRE(torch.optim.AdamW(model.parameters(), lr=0.05), kappa=2.0, interval=3, ramp=5)


def test_loss_scale_and_numbers_of_groups_are_kept(tmp_path: Path) -> None:
    path, found = tmp_path / "run.safetensors", []

    class Look(Callback):
        def on_start(self, training: Training) -> None:
            found.append([dict(group, params=None) for group in training.optimizer.param_groups])

    def overflows(model: nn.Module, batch: object) -> torch.Tensor:
        return cross_entropy(model, batch) * 1e36  # at any loss scale from 1000 on

    settings = {"steps": 9, "lr": 0.05, "precision": "fp16", "every": 1, "optimizer": around, "checkpoint": path}
    with pytest.raises(Interruption, match=r"^$"):
        run(make(), 4, **settings, loss=overflows)
    _, notes = load_tensors(path, RUN)
    assert notes["scaler"]["scale"] == 65536 / 2**3  # three steps are saved, all of them skipped
    fit(make(), batches, **settings, callbacks=[Look()])
    fit(make(), batches, **settings, callbacks=[Look()])
    before, after = found[0][0], found[1][0]
    assert (before["ire_step"], after["ire_step"]) == (0, 6)
    assert after["betas"] == (0.9, 0.999)
    assert type(after["betas"]) is tuple
    assert load_tensors(path, RUN)[1]["scaler"]["scale"] == 65536 / 2**3  # it went on from there


def test_checkpoint_in_its_own_rhythm(tmp_path: Path) -> None:
    path, steps = tmp_path / "run.safetensors", []

    class Look(Callback):
        def on_metric(self, training: Training, metric: Metric) -> None:
            steps.append(load_tensors(path, RUN)[1]["step"] if path.exists() else 0)

    run(make(), steps=7, every=2, save_every=3, checkpoint=path, callbacks=[Look()])
    assert steps == [0, 0, 0, 3, 3, 3, 6]  # as a step is reported, before it is saved
    assert load_tensors(path, RUN)[1]["step"] == 7


def test_another_optimizers_groups_are_refused(tmp_path: Path) -> None:
    def one(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(model.parameters()), lr=0.1)

    def two(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)

    two.__name__ = "one"
    run(make(), checkpoint=tmp_path / "run.safetensors", optimizer=one)
    with pytest.raises(ValueError, match=r"1 groups of parameters, this run has 6\. Rule: the same optimizer"):
        run(make(), checkpoint=tmp_path / "run.safetensors", optimizer=two)


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
