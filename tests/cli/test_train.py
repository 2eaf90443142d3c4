"""`flatwing train`: verbs, a run and its folder, Ctrl-C, torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from distributed import run_python
from flatwing.cli import app
from flatwing.train import load_model
from flatwing.train.recipe import packaged, recipe_text

SHORT = ("model.width=16", "run.steps=8", "run.evaluate_every=4")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *arguments])


def test_ls_names_every_recipe() -> None:
    told = call("ls")
    assert told.exit_code == 0
    assert all(name in told.stdout and line in told.stdout for name, line in packaged().items())
    assert json.loads(call("ls", "--format", "json").stdout)["recipes"] == packaged()
    assert call("ls", "--quiet").stdout.split() == list(packaged())


def test_show_prints_the_recipe() -> None:
    assert call("show", "digits-mlp").stdout == recipe_text("digits-mlp")
    record = json.loads(call("show", "digits-mlp", "--format", "json").stdout)
    assert (record["name"], record["recipe"]["model"]["width"]) == ("digits-mlp", 128)


def test_cp_never_overwrites_without_force(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    assert call("cp", "digits-mlp", str(path)).stdout == f"{path}\n"
    assert path.read_text() == recipe_text("digits-mlp")
    path.write_text("mine")
    refused = call("cp", "digits-vit", str(path))
    assert (refused.exit_code, path.read_text()) == (2, "mine")
    assert "exists. Rule: nothing is overwritten" in refused.stderr
    assert call("cp", "digits-vit", str(path), "--force").exit_code == 0
    assert path.read_text() == recipe_text("digits-vit")


def test_validate_makes_everything_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = call("validate", "digits-mlp", "run.steps=8")
    assert told.exit_code == 0
    assert "steps = 8" in told.stdout
    assert "26,122 parameters, 8 steps, 1,258 training samples" in told.stderr
    assert json.loads(call("validate", "digits-mlp", "--format", "json").stdout)["parameters"] == 26122
    assert "schedule.warmup is 30 for 8 steps" in told.stderr
    refused = call("validate", "digits-mlp", "optimizer.name=AdmaW")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "did you mean 'AdamW'" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_leaves_a_folder_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = call("digits-mlp", *SHORT)
    assert told.exit_code == 0, told.stderr
    assert "digits-mlp (1,482 parameters) was trained on digits for 8 steps of 64 samples" in told.stdout
    folder = tmp_path / "flatwing-digits-mlp"
    assert load_model(folder / "model.safetensors").config() == {"width": 16, "depth": 2}
    page = (folder / "report.html").read_text()
    assert "chart-loss" in page
    assert "chart-rate" in page
    assert call("digits-mlp", *SHORT, "--quiet").stdout == "flatwing-digits-mlp\n"  # it is read back
    record = json.loads(call("digits-mlp", *SHORT, "--format", "json").stdout)
    assert record["folder"] == "flatwing-digits-mlp"
    assert record["metrics"] == json.loads((folder / "result.json").read_text())["metrics"]


def test_a_file_of_the_user_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text("digits-mlp"))
    told = call(str(path), *SHORT, "--out", str(tmp_path / "run"), "--format", "json")
    assert json.loads(told.stdout)["name"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits-mpl",), "did you mean 'digits-mlp'"),
        (("digits-mlp", "run.setps=3"), "did you mean 'steps'"),
        (("show",), "Rule: flatwing train show NAME"),
        (("validate",), "Rule: flatwing train validate RECIPE"),
        (("cp", "digits-mlp"), "Rule: flatwing train cp NAME FILE.toml"),
        (("cp", "digits-mlp", "x"), "its name ends in .toml. Write x.toml"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str) -> None:
    told = call(*arguments)
    assert (told.exit_code, told.stdout) == (2, "")
    assert message in told.stderr


def test_divergence_is_told_without_a_traceback(tmp_path: Path) -> None:
    values = ("optimizer.name=SGD", "optimizer.lr=1e30", "run.clip=0.0", "optimizer.weight_decay=0.0")
    told = call("digits-mlp", *SHORT, *values, "--out", str(tmp_path / "run"))
    assert (told.exit_code, told.stdout) == (1, "")
    assert "error: loss is" in told.stderr
    assert "Lower lr" in told.stderr


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "flatwing", "train", *arguments]


MAIN = "from flatwing.cli import main; main()"  # where nothing is asked about how the process starts


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    long = ("digits-mlp", "model.width=16", "run.steps=1000", "run.evaluate_every=0", "run.keep=last")
    process = subprocess.Popen(
        command(*long, "--out", "run"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 20):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (130, ""), err
    assert "the same command goes on" in err
    assert not (tmp_path / "run" / "result.json").exists()
    done = len(metrics(tmp_path / "run"))
    assert 20 < done < 1000
    for folder in ("run", "whole"):
        told = run_python(MAIN, "train", *long, "--out", str(tmp_path / folder), "--quiet")
        assert told.returncode == 0, told.stderr
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    models = [load_model(tmp_path / folder / "model.safetensors").state_dict() for folder in ("run", "whole")]
    assert all((models[0][name] == models[1][name]).all() for name in models[0])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_shares_each_batch_and_one_rank_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    values = ("digits-mlp", *SHORT, f"run.parallel={parallel}", "optimizer.ire={start=2}")
    arguments = ["train", *values, "--out", "two", "--format", "json"]
    monkeypatch.chdir(tmp_path)
    if parallel == "ddp":
        told = subprocess.run(
            [*launch, "flatwing", *arguments], env=environment, capture_output=True, text=True, timeout=200
        )
    else:
        told = run_python(MAIN, *arguments, world=2)
    assert told.returncode == 0, told.stderr
    record = json.loads(told.stdout)
    alone = json.loads(call(*values, "--out", str(tmp_path / "one"), "--format", "json").stdout)
    for split in ("valid", "test"):
        assert record["metrics"][split]["loss"]["value"] == pytest.approx(alone["metrics"][split]["loss"]["value"])
        assert record["metrics"][split]["samples"] == alone["metrics"][split]["samples"]
    assert len(metrics(tmp_path / "two")) == 9
    # what rank 0 refuses ends all of them, with the reason
    told = run_python(MAIN, *arguments, "run.seed=5", world=2)
    assert told.returncode != 0
    assert told.stderr.count("error: 'two' has a run with run.seed=0, this one has 5") == 2
    assert (tmp_path / "two" / "result.json").exists()
    assert load_model(tmp_path / "two" / "model.safetensors").config() == {"width": 16, "depth": 2}


@pytest.mark.parametrize(("world", "finalized"), [("1", True), ("2", False)])
def test_a_process_of_torchrun_leaves_before_threads_of_gloo_can_abort_it(world: str, finalized: bool) -> None:
    code = "import atexit, sys; atexit.register(print, 'finalized'); sys.argv[1:] = ['train', 'show', 'no-such']\n"
    code += "from flatwing.cli import main; print('begins'); main()"
    environment = os.environ | {"WORLD_SIZE": world}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.split()) == (2, ["begins"] + ["finalized"] * finalized)
    assert "no-such" in done.stderr
