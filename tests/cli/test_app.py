"""The command line as a whole: its options, its version, its ways to end."""

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import flatwing
from flatwing.cli import app

OPTIONS = {
    "advise": "--batch --budget --chain --device --dtype --format --in --measure --out --packed --threads --train",
    "compress": (
        "--anchored --budget --calibration --curve --densify --dry-run --example --field --format "
        "--gradient-checkpointing --heal --heal-lr --landmarks --length --match --max-loss --optimizer --overwrite "
        "--precision --quantize --samples --seed --skip --structure --task --unit --weights-only --where model out"
    ),
    "factorize": (
        "--budget --chain --draw --example --force --format --hierarchical --n --order --out --palm --perm --refine "
        "--starts --support --tolerance source"
    ),
    "train": "--force --format --out --overwrite --quiet -q values what",
    "report": "--format --open --out run",
    "wellposed": "--advise --force --format --pairs --picture source",
    "demo": "--out",
}


def test_options_are_frozen() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: " ".join(sorted(option for parameter in command.params for option in parameter.opts))
        for name, command in commands.items()
    }
    assert options == OPTIONS


def test_only_the_public_api_of_typer_is_used() -> None:
    for path in Path(flatwing.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import click" not in text, path
        assert "from click" not in text, path
        assert "typer._" not in text, path


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["factorize", "-h"], ["demo", "--help"]])
def test_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"flatwing {flatwing.__version__}\n")


def test_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(app, ["factorise"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "factorize" in result.stderr


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError("disk is full"), 2)])
def test_ways_to_end(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def stop(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("flatwing.cli.factorize"), "factorize_matrix", stop)
    result = CliRunner().invoke(app, ["factorize", "--example", "hadamard"])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.splitlines()[-1] == ("interrupted" if code == 130 else "error: disk is full")


def test_faults_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*arguments: object, **named: object) -> None:
        raise AssertionError("a fault")

    monkeypatch.setattr(importlib.import_module("flatwing.cli.factorize"), "factorize_matrix", fault)
    result = CliRunner().invoke(app, ["factorize", "--example", "hadamard"])
    assert isinstance(result.exception, AssertionError)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-m", "flatwing", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)


def test_real_process(tmp_path: Path) -> None:
    good = run("factorize", "--example", "dft", "--n", "16", "--format", "json", "--draw", "a.svg", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["certificate"]["exact"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    bad = run("factorize", "no.npy", cwd=tmp_path)
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "error: there is no file 'no.npy'.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_interrupt_ends_a_real_process_with_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, importlib, flatwing.cli as cli\n"
        "module = importlib.import_module('flatwing.cli.factorize')\n"
        f"module.factorize_matrix = lambda *a, **k: os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", code, "factorize", "--example", "hadamard", "--out", "a.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []
