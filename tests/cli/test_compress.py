"""`flatwing compress`: one object on stdout, words on stderr, a plan that writes nothing, refusals with exit code 2."""

import functools
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import flatwing
from flatwing.cli import app
from flatwing.cli.compress import show
from flatwing.compress import Compression, compress
from flatwing.train import EXAMPLES, DigitsMLP

QUICK = ("--structure", "low_rank", "--no-landmarks", "--no-curve", "--samples", "300")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a network, its layers dense."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("cli") / "model"
    options: dict[str, Any] = {"structures": ["low_rank"], "landmarks": False, "curve": False, "timing": 0.01}
    compress(DigitsMLP(width=16), out, budget=1.0, **options)
    return out


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are measured for a moment only, and examples are the small ones."""
    monkeypatch.setattr(
        importlib.import_module("flatwing.cli.compress"), "compress", functools.partial(compress, timing=0.01)
    )
    digits = functools.partial(EXAMPLES["digits"], quick=True)
    monkeypatch.setitem(EXAMPLES._entries, "digits", digits)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["compress", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_json_is_one_object(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(model, out, *QUICK, "--budget", 0.5, "--heal", 3, "--heal-lr", 1e-3, "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    record = json.loads(result.stdout, parse_constant=refuse)
    assert (record["run"], record["report"]) == (str(out), str(out / "report.html"))
    assert Path(record["report"]).is_file()
    for stage in ("before", "compressed", "healed"):
        assert record["metrics"][stage]["agreement"]["kl"]["value"] >= -1e-6
    assert record["metrics"]["healed"]["linear_parameters"] <= 0.5 * record["metrics"]["before"]["linear_parameters"]
    assert record["seed"] == 0
    assert not flatwing.load(out).training


def test_quiet_is_the_path_of_the_report(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "out", *QUICK, "--format", "quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path / 'out' / 'report.html'}\n"


def test_human_output_and_report(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(model, out, *QUICK)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"before +compressed", result.stdout)
    assert re.search(r"^ *parameters +\d", result.stdout, re.M)
    assert f"model:  {out}" in result.stdout
    again = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "again.html"), "--format", "json"])
    assert again.exit_code == 0, again.stderr
    assert "layers.0" in (tmp_path / "again.html").read_text(encoding="utf-8")


def test_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "out", *QUICK, "--dry-run")
    assert result.exit_code == 0
    for word in ("layers.0", "low_rank(rank=", "predicted error", "bound", "head", "skipped: it makes"):
        assert word in result.stdout
    assert "nothing was written" in result.stderr
    record = json.loads(run(model, *QUICK, "--dry-run", "--format", "json").stdout)
    assert (record["dry_run"], record["run"], record["report"]) == (True, None, None)
    assert list(tmp_path.iterdir()) == []
    assert run("--example", "digits", tmp_path / "out", *QUICK, "--dry-run").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_bound_that_is_not_known_is_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "a", "shape": [9, 9], "action": "replaced", "structure": "low_rank(rank=2)", "parameters": 36,
           "dense_parameters": 81, "error": 0.25, "lower_bound": 0.125}  # fmt: skip
    budget = {"share": 0.4, "unit": "parameters"}
    for bound, said in ((None, r"0\.2500 +-\s*$"), (0.125, r"0\.2500 +0\.1250\s*$")):
        layers = [row, {**row, "name": "b", "lower_bound": bound}]
        show(Compression(None, {"dry_run": True, "layers": layers, "budget": budget}))
        told = capsys.readouterr()
        (line,) = [line for line in told.out.splitlines() if line.strip().startswith("b")]
        assert re.search(said, line)
        assert ("the predicted error is that of a lower rank" in " ".join(told.err.split())) == (bound is None)


def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--example", "digits", *QUICK, "--budget", 0.6, "--format", "json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["run"] == "flatwing-digits"
    assert 0 < record["metrics"]["before"]["accuracy"]["value"] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["flatwing-digits"]
    again = run("--example", "digits", *QUICK)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "exists. Rule: nothing is overwritten without --overwrite" in again.stderr
    assert run("--example", "digits", "other", *QUICK, "--format", "quiet").stdout == "other/report.html\n"


def test_weights_alone(tmp_path: Path) -> None:
    save_file({"layers.0.up.weight": torch.randn(64, 32), "norm.weight": torch.ones(32)}, tmp_path / "a.safetensors")
    result = run(tmp_path / "a.safetensors", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "without data nothing says which errors the network minds" in result.stdout
    assert "--calibration" in result.stdout
    assert "nothing was written" not in result.stderr
    assert "norm.weight" in load_file(tmp_path / "out" / "model.safetensors")
    record = json.loads(run(tmp_path / "a.safetensors", tmp_path / "two", "--format", "json").stdout)
    assert record["run"] == str(tmp_path / "two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--example", "digit"), "unknown example 'digit', did you mean 'digits'? Known: digits, bytelm."),
        (("MODEL", "OUT", "--structure", "low_rnk"), "unknown structure 'low_rnk', did you mean 'low_rank'"),
        (("MODEL", "OUT", "--optimizer", "AdanW"), "did you mean 'AdamW'"),
        (("MODEL", "OUT", "--budget", "0"), "budget is 0.0. Rule: a number, above 0 and at most 1"),
        (("MODEL", "OUT", "--budget", "nan"), "budget is nan. Rule: a number"),
        (("MODEL", "OUT", "--where", "layer.*"), "matches none of the 3 linear layers"),
        (("MODEL", "OUT", "--calibration", "nowhere.txt"), "there are no calibration data at 'nowhere.txt'"),
        (("MODEL", "OUT", "--task", "vision"), "task='vision'. Rule: one of"),
        (("MODEL", "OUT", "--quantize", "int8", "--densify"), "exclude each other"),
        (("MODEL",), "OUT is missing. Rule: flatwing compress MODEL OUT"),
        (("nowhere", "OUT"), "there is no 'nowhere'"),
        (("MODEL", "missing/OUT"), "does not exist. Make it first"),
        ((), "OUT is missing"),
    ],
)
def test_refusals(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*(str(model) if word == "MODEL" else word for word in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_disk_full(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flatwing.compress.save.write_stream", fail)
    result = run(model, tmp_path / "out", *QUICK)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "error: [Errno 28] No space left on device\n")
    assert not (tmp_path / "out").exists()
