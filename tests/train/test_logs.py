"""Metrics appear in the file while the run goes on; a run that goes on leaves one line per step."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flatwing.train import fit
from flatwing.train.logs import JsonLines, TensorBoard


def train(path: Path, stop: int | None = None, **more: Any) -> list[dict[str, Any]]:
    def batches(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop:
            raise KeyboardInterrupt
        if step:
            assert len(lines(path)) == step  # of a step, as soon as it is made
        return torch.randn(4, 3, generator=generator)

    torch.manual_seed(0)
    return fit(
        nn.Linear(3, 2), batches, steps=6, lr=0.1, loss=lambda m, x: m(x).square().mean(), every=2,
        checkpoint=path.with_suffix(".safetensors"), callbacks=[JsonLines(path)], **more,
    )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_step_is_a_line_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = train(path)
    found = lines(path)
    assert all(line.pop("seconds") >= 0 for line in found)
    assert found == metrics


def test_a_resumed_run_keeps_its_lines_and_drops_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train(path, stop=5)
    before = lines(path)
    assert len(before) == 5
    before[-1]["seconds"] += 100.0  # as if the first part had been long
    path.write_text("".join(json.dumps(line) + "\n" for line in before))
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # the process died while it wrote
    metrics = train(path)
    found = lines(path)
    assert found[:5] == before[:5]  # each step was saved
    seconds = [line["seconds"] for line in found]
    assert seconds == sorted(seconds)  # time goes on where it stopped
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in found] == metrics


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        JsonLines(tmp_path / "no" / "metrics.jsonl")


def test_tensorboard_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    metrics = fit(
        nn.Linear(3, 2), lambda s, g: torch.ones(1, 3), steps=1, lr=0.1, loss=lambda m, x: m(x).mean(),
        callbacks=[TensorBoard(tmp_path)],
    )  # fmt: skip
    scalars = [(name, value, 1) for name, value in metrics[0].items() if name != "step"]
    assert calls == [(str(tmp_path), 1), *scalars, "closed"]


def test_missing_tensorboard_is_refused_with_the_line_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        TensorBoard(tmp_path)
