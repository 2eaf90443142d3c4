"""A recipe leaves a run folder: whole, loadable, the same after an interruption, and nobody else's."""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from flatwing.data import open_data
from flatwing.train import Callback, Training, load_model
from flatwing.train.evaluate import measure
from flatwing.train.parts import make_parts
from flatwing.train.recipe import Recipe, parse_recipe, read_recipe, to_toml
from flatwing.train.run import Outcome, run_recipe

SHORT = ["model.width=16", "run.steps=8", "run.evaluate_every=3", "schedule.warmup=2"]
NAMES = ("checkpoint.safetensors", "config.toml", "environment.json", "metrics.jsonl", "model.safetensors")
FILES = [*NAMES, "result.json"]


def short(*values: str) -> Recipe:
    return read_recipe("digits-mlp", [*SHORT, *values])


class StopAfter(Callback):
    """As Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_metric(self, training: Training, metric: dict[str, Any]) -> None:
        training.stop = metric["step"] == self.step


def test_run_folder_is_whole(tmp_path: Path) -> None:
    recipe, seen = short(), []
    outcome = run_recipe(recipe, tmp_path / "run", name="mine", progress=lambda *told: seen.append(told))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    assert parse_recipe(tomllib.loads((tmp_path / "run" / "config.toml").read_text())) == recipe
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))
    assert [line["step"] for line in lines if "score" in line] == [0, 3, 6, 8]
    assert [(told[0]["step"], *told[1:]) for told in seen] == [(step, 8, 64) for step in range(9)]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result == outcome.result
    assert (result["command"], result["name"], result["task"]) == ("train", "mine", "classification")
    model = load_model(tmp_path / "run" / "model.safetensors").eval()
    data = open_data("digits")
    assert result["metrics"]["test"] == measure(model, data.evaluation("test", 256))
    assert result["metrics"]["valid"]["loss"]["value"] == min(line["score"] for line in lines if "score" in line)
    assert "8 steps of 64 samples" in result["summary"][0]


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("optimizer.name=Muon", 'optimizer.ire={mask="sampled", interval=2, start=1}', "run.precision=bf16"),
        ("optimizer.ire={interval=2, ramp=3}", "optimizer.gradpower={}", "run.precision=fp16", "run.micro_batch=24"),
        ("optimizer.sam={rho=0.1, share=0.5}", "optimizer.blockwise={ratios={ffn=2.0, head=1.0}}"),
        ("model.budget=0.3", "optimizer.name=AdamMini", "guard={}"),
    ],
)
@pytest.mark.parametrize("stop", [2, 5])
def test_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, values: tuple[str, ...], stop: int) -> None:
    recipe = short(*values)
    whole = run_recipe(recipe, tmp_path / "whole")
    halted = run_recipe(recipe, tmp_path / "two", callbacks=[StopAfter(stop)])
    assert halted == Outcome(str(tmp_path / "two"), stop, 8, None)
    assert not (tmp_path / "two" / "result.json").exists()
    gone_on = run_recipe(recipe, tmp_path / "two")
    assert whole.result is not None
    assert gone_on.result is not None
    assert gone_on.result["metrics"] == whole.result["metrics"]
    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_lm_recipe_counts_tokens(tmp_path: Path) -> None:
    sizes = ["model.width=16", "model.depth=1", "model.heads=2", "data.length=16", "data.vocab=128"]
    short = ["run.steps=2", "run.batch_size=3", "run.evaluate_samples=8", "optimizer.ire.start=1"]
    outcome = run_recipe(read_recipe("llama-bytes-ire", sizes + short), tmp_path / "run")
    assert outcome.result is not None
    assert outcome.result["training"]["per_step"] == 48
    assert outcome.result["metrics"]["test"]["samples"] == 8
    assert load_model(tmp_path / "run" / "model.safetensors").config()["vocab"] == 128


def test_same_recipe_twice_is_read_back_and_another_is_refused(tmp_path: Path) -> None:
    first = run_recipe(short(), tmp_path / "run")
    again = run_recipe(short("run.threads=2", "run.micro_batch=7"), tmp_path / "run")
    assert first.result is not None
    assert again.result is not None
    assert again.result["metrics"] == first.result["metrics"]
    config = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(ValueError, match=r"has a run with optimizer\.lr=0\.003, this one has 0\.5.*--overwrite"):
        run_recipe(short("optimizer.lr=0.5"), tmp_path / "run")
    assert (tmp_path / "run" / "config.toml").read_bytes() == config
    other = run_recipe(short("optimizer.lr=0.5"), tmp_path / "run", overwrite=True)
    assert other.result is not None
    assert other.result["metrics"] != first.result["metrics"]


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(ValueError, match=r"has files but no config\.toml"):
        run_recipe(short(), tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        run_recipe(short(), tmp_path / "photo.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_config_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    for number, text in enumerate(["x = 1\n", "no toml", '[model]\nname = "mlp"\n']):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.toml").write_text(text)
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=r"config\.toml' is not of a training run: .*Rule: a new folder"):
                run_recipe(short(), folder, overwrite=overwrite)
        assert [path.read_text() for path in folder.iterdir()] == [text]


@pytest.mark.parametrize("text", ['{"format": "flatwing.run", "command": "compress"}', "[]", "{"])
def test_a_result_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(to_toml(short().table()))
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json' is not of a training run"):
        run_recipe(short(), tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "result.json"]
    assert (tmp_path / "result.json").read_text() == text


def test_a_finished_run_is_kept_without_its_checkpoint(tmp_path: Path) -> None:
    run_recipe(short(), tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has a run with run\.seed=0, this one has 1"):
        run_recipe(short("run.seed=1"), tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


class Killed(Callback):
    """As kill -9 after a step: nothing is saved then."""

    def on_metric(self, training: Training, metric: dict[str, Any]) -> None:
        if metric["step"] == 25:
            raise KeyboardInterrupt("killed")


def test_a_kill_costs_a_twentieth_of_the_run_at_most(tmp_path: Path) -> None:
    recipe = short("run.steps=40", "run.evaluate_every=0", "run.keep=last")
    with pytest.raises(KeyboardInterrupt, match="killed"):
        run_recipe(recipe, tmp_path / "run", callbacks=[Killed()])
    made: list[int] = []
    run_recipe(recipe, tmp_path / "run", progress=lambda metric, *told: made.append(int(metric["step"])))
    assert made == list(range(25, 41))  # 24 was saved
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 41


def test_what_makes_a_long_run_doubtful_is_said_before_it(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = short("run.steps=1", "run.batch_size=1300")
    outcome = run_recipe(recipe, tmp_path / "run", say=said.append)
    assert [line.split(" for ")[0] for line in said] == ["schedule.warmup is 2", "batches are of 1,300"]
    assert outcome.result is not None
    assert outcome.result["summary"][-2:] == said
    assert make_parts(short()).notes == ()


def test_batches_grow_in_stages_and_each_epoch_sees_each_sample_once(tmp_path: Path) -> None:
    recipe = short("run.batch_stages=[[0, 100], [500, 400]]", "run.epochs=2", "run.micro_batch=100")
    parts = make_parts(recipe)
    assert parts.sizes == (*(100,) * 5, *(400,) * 5, 16)  # 2 * 1258 samples
    assert parts.starts[:7] == (0, 100, 200, 300, 400, 500, 900)
    whole = run_recipe(recipe, tmp_path / "whole")
    run_recipe(recipe, tmp_path / "two", callbacks=[StopAfter(6)])
    again = run_recipe(recipe, tmp_path / "two")
    assert whole.result is not None
    assert again.result is not None
    assert again.result["metrics"] == whole.result["metrics"]
    assert "11 steps of 229 samples on average" in whole.result["summary"][0]
    plain = run_recipe(short("run.batch_stages=[[0, 64]]"), tmp_path / "plain").result
    usual = run_recipe(short(), tmp_path / "usual").result
    assert plain is not None
    assert usual is not None
    assert plain["metrics"] == usual["metrics"]  # one stage is a batch size
    late = make_parts(short("run.batch_stages=[[0, 64], [9999, 128]]"))
    assert late.notes == ("run.batch_stages go to 128 at 9,999 samples: this run ends at 512.",)


def rates(folder: Path) -> list[float]:
    return [line["lr"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if line["step"]]


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_rates_follow_the_samples_and_the_scale_of_the_stages(tmp_path: Path, scale: str, factor: float) -> None:
    stages = ["run.batch_stages=[[0, 50], [200, 200]]", f"run.batch_lr_scale={scale}", "run.steps=8"]
    recipe = short(*stages, "schedule.name=linear", "schedule.warmup=0", "optimizer.lr=1e-3", "run.evaluate_every=0")
    run_recipe(recipe, tmp_path / "run")
    seen = [0, 50, 100, 150, 200, 400, 600, 800]  # of 1000
    expected = [1e-3 * (1 - n / 1000) * (1 if n < 200 else factor) for n in seen]
    assert rates(tmp_path / "run") == pytest.approx(expected)


def test_the_rate_that_is_told_is_the_one_of_the_step(tmp_path: Path) -> None:
    found: list[float] = []

    class Look(Callback):
        def on_metric(self, training: Training, metric: dict[str, Any]) -> None:
            if metric["step"]:
                found.append(training.optimizer.param_groups[0]["lr"])

    stages = ["run.batch_stages=[[0, 50], [200, 200]]", "run.batch_lr_scale=linear"]
    run_recipe(short(*stages), tmp_path / "run", callbacks=[Look()])
    assert found == pytest.approx(rates(tmp_path / "run"))


class Margin(Callback):
    """min (f_y - f_j) / |theta|^2 of a network with two layers over the training samples, and |theta|, after steps."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.found, data = steps, dict[int, tuple[float, float]](), open_data("digits")
        self.x, y = data.take(torch.arange(data.sizes["train"]))
        self.own = torch.nn.functional.one_hot(y, 10).bool()

    def on_metric(self, training: Training, metric: dict[str, Any]) -> None:
        if metric["step"] in self.steps:
            with torch.no_grad():
                scores = training.model(self.x)
                gaps = scores[self.own] - scores.masked_fill(self.own, -torch.inf).amax(1)
                square = sum(p.square().sum() for p in training.model.parameters())
            self.found[metric["step"]] = float(gaps.min() / square), float(square) ** 0.5


def test_prgd_widens_the_margin_of_a_homogeneous_network(tmp_path: Path) -> None:
    values = ["model.width=32", "optimizer.lr=0.3", "run.steps=1300", "run.evaluate_every=0", "run.checkpoint_every=0"]
    run_recipe(read_recipe("digits-margin", values), tmp_path / "run", callbacks=[watch := Margin(500, 900, 1300)])
    (early, start), (middle, one), (late, two) = (watch.found[step] for step in (500, 900, 1300))
    assert early < 0 < middle < late  # it separates the classes, and then more and more widely
    for radius in (one, two):  # which is set, in powers of the growth of the scores
        power = 2 * math.log(radius / start) / math.log(1.2)
        assert power == pytest.approx(max(1, round(power)), abs=0.1)


def test_epochs_are_steps_over_the_training_samples() -> None:
    assert make_parts(short("run.epochs=2", "run.batch_size=100")).steps == 26  # 2 * 1258 / 100, rounded up


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("model.name=digits-mpl", "unknown architecture 'digits-mpl', did you mean 'digits-mlp'"),
        ("model.widht=3", "unknown argument of DigitsMLP 'widht', did you mean 'width'"),
        ("data.name=python", "model 'digits-mlp' is for 'classification', data 'python' are 'lm'"),
        ("data.sede=1", "unknown option of data 'digits' 'sede', did you mean 'seed'"),
        ("run.batch_size=0", "run.batch_size is 0"),
        ("run.batch_stages=[[5, 64]]", r"stages begin at \[5\] samples. Rule: at 0"),
        ("run.batch_stages=[[0, 0]]", "batch size from 0 samples on is 0"),
        ("run.epochs=1e300", r"run.epochs asks for .* steps. Rule: at most 100,000,000"),
        ("run.steps=200000000", r"run.steps asks for 2e\+08 steps. Rule: at most 100,000,000"),
        ("guard={after=-5}", "after is -5. Rule: a whole number, at least 0"),
        ("run.batch_lr_scale=sqrt", "run.batch_lr_scale is 'sqrt' without stages"),
        ("run={steps=4, batch_stages=[[0, 64]], batch_lr_scale='cubic'}", "unknown lr_scale 'cubic'. Known: none"),
        ("run.threads=0", "run.threads is 0"),
        ("run.device=tpu", "run.device is 'tpu'. Rule: auto, cpu"),
        ("run.precision=fp8", "unknown precision 'fp8'"),
        ("optimizer={name='PRGD'}", r"operation gelu \(gelu\) is not homogeneous"),
        ("optimizer.name=AdmaW", "unknown optimizer 'AdmaW', did you mean 'AdamW'"),
        ("optimizer.ire={kapa=1}", "unknown setting of ire 'kapa', did you mean 'kappa'"),
        ("optimizer.gradpower={p=-1.0}", "p is -1"),
        ("optimizer.sam={rho=-1.0}", "rho is -1"),
        ("guard={factor=0.5}", "factor is 0.5"),
        ("schedule.floor=2.0", "floor is 2.0. Rule: a number from 0 to 1"),
        ("run.seed=-1", "run.seed is -1. Rule: a whole number from 0"),
        ("run.seed=99999999999999999999", "run.seed is 99999999999999999999. Rule: a whole number from 0"),
        ("schedule.name=cosin", "unknown schedule 'cosin', did you mean 'cosine'"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, value: str, message: str) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match=message):
        run_recipe(short(value), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing was begun
    assert torch.get_num_threads() == threads
