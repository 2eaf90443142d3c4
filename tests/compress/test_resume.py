"""Killed at any moment and started again, a compression ends with the bytes of one that was left alone."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flatwing.compress import compress
from flatwing.compress.batch import Batch
from flatwing.compress.costs import unit_cost
from flatwing.compress.layerwise import LayerResult
from flatwing.compress.work import Layers, Work, check_output, fingerprint
from flatwing.train import DigitsMLP

KILLS = int(os.environ.get("FLATWING_KILLS", "3"))  # more on demand: each one starts the run again
SETTINGS: dict[str, Any] = {
    "budget": 0.5, "heal": 8, "heal_lr": 1e-3, "structures": ["low_rank", "blast_4"], "landmarks": False,
    "curve": False, "timing": 0.01, "samples": 100,
}  # fmt: skip
COMPARED = ("model.safetensors", "flatwing.json")
FILES = {
    "README.md", "config.toml", "environment.json", "flatwing.json", "metrics.jsonl", "model.safetensors",
    "report.html", "result.json",
}  # fmt: skip


def network() -> DigitsMLP:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return DigitsMLP(width=24, depth=3).eval()


def run(out: Path, **options: Any) -> None:
    compress(network(), out, **(SETTINGS | options))


def child(out: Path, **options: Any) -> int:
    """Start the run in a process of its own, which has all imports already; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            run(out, **options)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def content(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in COMPARED}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked, so that they start at once")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    run(tmp_path / "warm")  # what is imported late is imported now
    begin = time.perf_counter()
    assert os.waitpid(child(tmp_path / "whole"), 0)[1] == 0
    duration = time.perf_counter() - begin
    wanted = content(tmp_path / "whole")
    assert wanted == content(tmp_path / "warm")
    dice, killed = random.Random(0), 0
    for number in range(KILLS):  # one of every part of the run, the last ones just before the end
        out = tmp_path / f"out{number}"
        late = number >= KILLS - max(1, KILLS // 4)
        pause = duration * (dice.uniform(0.85, 1.0) if late else (number + dice.random()) / KILLS)
        pid = child(out)
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        if out.exists():
            assert {path.name for path in out.iterdir()} == FILES  # whole
        if not out.exists() or out.with_name(out.name + ".partial").exists():
            assert os.waitpid(child(out), 0)[1] == 0
        assert content(out) == wanted
        assert {path.name for path in out.iterdir()} == FILES
    assert killed >= KILLS // 2
    assert not list(tmp_path.glob("*.partial"))


def test_killed_after_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage that is kept is kept once: the run dies after each write of the work folder in turn."""

    class Killed(BaseException):
        pass

    run(tmp_path / "whole")
    wanted, out, written = content(tmp_path / "whole"), tmp_path / "out", []
    write, save = Work.write, Layers.save

    def die_after(function: Any) -> Any:
        def wrapped(self: Any, name: str, *args: Any) -> None:
            known = name in written
            function(self, name, *args)
            if not known:
                written.append(name)
                raise Killed

        return wrapped

    monkeypatch.setattr(Work, "write", die_after(write))
    monkeypatch.setattr(Layers, "save", die_after(save))
    for _ in range(40):
        try:
            run(out)
            break
        except Killed:
            assert not out.exists()
    assert out.exists()
    assert len(written) > 8
    assert content(out) == wanted


@pytest.mark.parametrize("step", [0, 1, 2])
def test_killed_between_the_last_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """An old output is replaced: before any renaming, when it is set aside, when the new one stands in its place."""
    out, real = tmp_path / "out", os.replace
    run(out, budget=1.0, heal=0)
    old, moved = content(out), []

    def replace(source: Any, target: Any) -> None:
        if out in (Path(source), Path(target)):
            if len(moved) == step:
                raise KeyboardInterrupt("stopped")
            moved.append(target)
        real(source, target)
        if len(moved) == step == 2:
            raise KeyboardInterrupt("stopped")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        run(out, overwrite=True, heal=0)
    monkeypatch.setattr(os, "replace", real)
    check_output(out, overwrite=True)  # what a new run does first
    assert (content(out) == old) == (step < 2)
    run(out, overwrite=step < 2, heal=0)
    run(tmp_path / "whole", heal=0)
    assert content(out) == content(tmp_path / "whole")
    assert not list(tmp_path.glob("*.partial"))


def test_old_output_is_not_taken_for_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run(out, heal=0, budget=1.0)
    old = content(out)

    def stop(self: Work) -> None:
        raise KeyboardInterrupt("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Work, "begin_output", stop)
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            run(out, heal=0, overwrite=True)
    with pytest.raises(ValueError, match="nothing is overwritten"):
        run(out, heal=0)
    assert content(out) == old
    run(out, heal=0, overwrite=True)
    assert content(out) != old


def test_other_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Work) -> None:
        raise KeyboardInterrupt("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Work, "begin_output", stop)
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            run(tmp_path / "out", heal=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").rglob("*")}
    for other, name in (({"budget": 0.4}, "budget"), ({"seed": 1}, "seed"), ({"samples": 99}, "samples")):
        with pytest.raises(ValueError, match=f"unfinished run with another {name}"):
            run(tmp_path / "out", heal=0, **other)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").rglob("*")} == before
    run(tmp_path / "out", heal=0, budget=0.4, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def stopped_before_output(out: Path, **options: Any) -> None:
    """A run that is interrupted when all layers are finished."""

    def stop(self: Work) -> None:
        raise KeyboardInterrupt("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "begin_output", stop)
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            run(out, **options)


def test_costs_that_change_do_not_change_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A latency measured again is another one: the run goes on with the prices that it began with."""
    factor = [1.0]

    def drifting(unit: str, layers: Any, **options: Any) -> Any:
        plain = unit_cost("parameters", layers, **options)
        return lambda name, candidate: plain(name, candidate) * (1.0 if candidate is None else factor[0])

    monkeypatch.setattr("flatwing.compress.pipeline.unit_cost", drifting)
    run(tmp_path / "whole", heal=0, unit="latency")
    wanted = json.loads((tmp_path / "whole" / "result.json").read_text())
    for slower in (0.7, 100.0):  # with the last, nothing would fit the budget
        out = tmp_path / f"out{slower}"
        factor[0] = 1.0
        stopped_before_output(out, heal=0, unit="latency")
        factor[0] = slower
        run(out, heal=0, unit="latency")
        result = json.loads((out / "result.json").read_text())
        assert result["budget"] == wanted["budget"]
        assert [row["structure"] for row in result["layers"]] == [row["structure"] for row in wanted["layers"]]
        assert content(out) == content(tmp_path / "whole")


def test_layers_of_another_plan_are_not_taken(tmp_path: Path) -> None:
    layer = torch.nn.Linear(8, 8)
    result = LayerResult("a", "dense", 64, 64, 0.0, 0.0, 0.0, 0.0, 1.0, 9)
    work = Work(tmp_path / "out", {"seed": 0}, overwrite=False)
    assert not work.has_layers
    work.layers({"a": "dense", "b": "dense"}).save("a", layer, result)
    assert work.has_layers
    assert work.layers({"a": "dense", "b": "low_rank(rank=2)"}).load("a", layer) is None
    found = work.layers({"a": "dense", "b": "dense"}).load("a", layer)
    assert found is not None
    assert found[1] == result


def test_finished_layers_survive_a_plan_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    stopped_before_output(out, heal=0)
    for plan in (tmp_path / "out.partial").glob("plan_*.json"):
        plan.unlink()

    def fail(*args: Any) -> None:
        raise ValueError("the budget is too small")

    monkeypatch.setattr("flatwing.compress.pipeline.decide", fail)
    with pytest.raises(ValueError, match="the budget is too small"):
        run(out, heal=0)
    assert list((tmp_path / "out.partial" / "layers").iterdir())


def test_other_task_targets_and_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(60, 64, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10

    def batches(y: torch.Tensor) -> list[Batch]:
        return [Batch((x[i : i + 20],), targets=y[i : i + 20]) for i in (0, 20, 40)]

    stopped_before_output(tmp_path / "out", heal=0, calibration=batches(y), samples=None)
    for options, name in (
        ({"calibration": batches(y), "task": "other"}, "task"),
        ({"calibration": batches(y.flip(0))}, "calibration"),
    ):
        with pytest.raises(ValueError, match=f"unfinished run with another {name}"):
            run(tmp_path / "out", heal=0, samples=None, **options)
    monkeypatch.setattr("flatwing.compress.api.__version__", "0.0.0")
    with pytest.raises(ValueError, match="unfinished run with another flatwing"):
        run(tmp_path / "out", heal=0, calibration=batches(y), samples=None)


def test_fingerprint_sees_all_that_counts() -> None:
    ones = torch.ones(4)
    values = [
        ones, ones.int(), ones.bfloat16(), ones.reshape(2, 2), torch.tensor(1.0), [ones], [ones, None], {"a": ones},
        {"b": ones}, {"a": ones, "b": 1}, {"a": ones, "b": True}, "a", b"a", None, [["a"], "b"], [["a", "b"]],
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": [torch.ones(4)]}) == fingerprint({"a": [ones]})
    assert fingerprint(object()) == fingerprint(object())  # whose address must not count
