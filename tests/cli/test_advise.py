"""`flatwing advise`: the answer on stdout, words on stderr, refusals before any work."""

import importlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flatwing import Chain
from flatwing.cli import app
from flatwing.kernels import wisdom

FIELDS = (
    "shape chain patterns choice parameters dense_parameters density flops dense_flops dtype device machine threads "
    "train packed batches wins equals source break_even tried verdict sentence alternatives notes"
)
ROW = "batch rows outcome backend seconds interval dense_seconds dense_interval speedup measured times"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["advise", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--format", "json")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1), result.stderr
    return json.loads(result.stdout)


def test_json_tells_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    record = run_json("--in", 1024, "--out", 512, "--batch", "2, 64", "--dtype", "float64", "--threads", 3, "--train")
    assert list(record) == FIELDS.split()
    assert record["shape"] == [512, 1024], "outputs x inputs"
    assert [list(row) for row in record["batches"]] == [ROW.split()] * 2
    assert [row["batch"] for row in record["batches"]] == [2, 64]
    assert (record["dtype"], record["threads"], record["train"]) == ("float64", 3, True)


def test_a_person_reads_a_table_and_a_sentence() -> None:
    result = run("--in", 1024, "--out", 1024, "--chain", "butterfly(1024)", "--batch", "16,2048", "--threads", 1)
    record = run_json("--in", 1024, "--out", 1024, "--chain", "butterfly(1024)", "--batch", "16,2048", "--threads", 1)
    lines = result.stdout.splitlines()
    assert lines[0] == f"{'chain':<12}{Chain.butterfly(1024)} (10 factors)"
    assert lines[1] == f"{'parameters':<12}20,480 = 2.0% of the 1,048,576 dense ones"
    assert lines[2] == f"{'flops':<12}40,960 per vector instead of 2,097,152"
    assert lines[3] == f"{'task':<12}forward, float32, 1 thread"
    row = next(line.split() for line in lines if line.strip().startswith("2,048"))
    assert row[1] == record["batches"][1]["backend"]
    assert row[-2:] == ["chain", "predicted"]
    assert lines[-2] == f"{'break-even':<12}batch {record['break_even']}"
    assert lines[-1] == record["sentence"]
    assert result.stderr == ""


def test_batches_between_powers_of_two_are_told_apart() -> None:
    lines = run("--chain", "butterfly(1024)", "--batch", "33,64").stdout.splitlines()
    assert [line.split()[:3] for line in lines if line.strip().startswith("33")] == [["33", "as", "64"]]
    assert lines[-1].endswith("Batch 33 counts as 64, as plans are made for powers of two.")


def test_batches_that_were_asked_are_answered_first() -> None:
    """A batch at which dense wins is not answered with other batches, at which the chain wins."""
    arguments = "--in", 64, "--out", 64, "--batch", 1, "--threads", 1
    record = run_json(*arguments)
    assert (record["verdict"], record["wins"] != []) == ("dense", True)
    assert record["sentence"].startswith("Keep dense: at batch 1 it is predicted")
    assert f"the chain wins from {record['break_even']}" in record["sentence"]
    assert run(*arguments, "--format", "quiet").stdout.startswith("dense\t")


@pytest.mark.parametrize("arguments", [("--in", 1, "--out", 1), ("--chain", "(1,1,1,1)")])
def test_no_break_even_where_nothing_is_saved(arguments: tuple[object, ...]) -> None:
    lines = run(*arguments).stdout.splitlines()
    assert lines[-2] == f"{'break-even':<12}none"
    assert lines[-1].startswith("Keep dense: the chain has ")


def test_packed_weights() -> None:
    arguments = "--chain", "butterfly(256)", "--batch", "1", "--threads", 1
    plain, packed = run_json(*arguments), run_json(*arguments, "--packed")
    assert (plain["packed"], packed["packed"]) == (False, True)
    assert packed["batches"][0]["seconds"] < plain["batches"][0]["seconds"]
    assert f"{'task':<12}forward with packed weights, float32, 1 thread" in run(*arguments, "--packed").stdout


@pytest.mark.filterwarnings("default:.*wisdom:RuntimeWarning")
@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a diary", "the wisdom file '{}' is ignored"),
        ('{"format": 1}', "the wisdom file '{}' was damaged"),
    ],
)
def test_a_warning_is_one_sentence(text: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "w.json"
    place.write_text(text)
    monkeypatch.setenv("FLATWING_WISDOM", str(place))
    wisdom.forget()
    result = run("--chain", "butterfly(64)", "--batch", "8", "--threads", 1)
    wisdom.forget()
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {start.format(place)}")
    assert (result.stderr.count("\n"), "RuntimeWarning" in result.stderr) == (1, False)


def test_measuring_is_refused_where_it_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "w.json")
    monkeypatch.setenv("FLATWING_WISDOM", str(tmp_path / "w.json"))
    wisdom.forget()
    result = run("--chain", "butterfly(64)", "--batch", "8", "--measure")
    wisdom.forget()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "is no wisdom file (it is a pipe) and stays as it is" in result.stderr


def test_quiet_is_one_line() -> None:
    assert run("--chain", "low_rank(64,64,rank=64)", "--format", "quiet").stdout == "dense\t(1,64,64,1)(1,64,64,1)\n"


def test_budget_lists_alternatives() -> None:
    result = run("--in", 1024, "--out", 1024, "--budget", 0.25)
    assert "predicted to be the fastest within 0.25 of the parameters" in result.stdout
    assert "low_rank(1024, 1024, rank=128)" in result.stdout
    assert len(run_json("--in", 1024, "--out", 1024, "--budget", 0.25)["alternatives"]) == 4


def test_measure_times_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATWING_WISDOM", str(tmp_path / "w.json"))
    monkeypatch.setattr("flatwing.kernels.race.HOPELESS", 1e9)  # else who is left out may win where all others stall
    wisdom.forget()
    arguments = ("--chain", "butterfly(64)", "--batch", "8", "--threads", 1)
    record = run_json(*arguments, "--measure")
    row = record["batches"][0]
    assert row["measured"] is True
    assert row["interval"][0] <= row["seconds"] <= row["interval"][1]
    assert record["tried"] == [8]
    wisdom.forget()
    again = run_json(*arguments)["batches"][0]
    assert (again["measured"], again["seconds"], again["interval"]) == (True, row["seconds"], None)
    wisdom.forget()


def test_an_interruption_is_told_and_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATWING_WISDOM", str(tmp_path / "w.json"))
    wisdom.forget()
    module = importlib.import_module("flatwing.kernels.advise")
    real = module.race

    def race(task: object) -> object:
        if task.rows == 16:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(module, "race", race)
    result = run("--chain", "butterfly(64)", "--batch", "8,9", "--measure")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("interrupted\n")
    assert "rows=8 " in (tmp_path / "w.json").read_text()
    wisdom.forget()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"m (outputs) is missing"),
        (("--in", 8, "--out", 8, "--batch", "1,x"), "--batch 1,x: 'x' is no batch"),
        (("--in", 8, "--out", 8, "--batch", "0"), "'0' is no batch. Rule: whole numbers from 1 on"),
        (("--in", 8, "--out", 8, "--batch", ""), "'' is no batch"),
        (("--in", 8, "--out", 8, "--batch", "²"), "'²' is no batch"),
        (("--in", 8, "--out", 8, "--dtype", "flaot32"), "did you mean 'float32'?"),
        (("--in", 8, "--out", 8, "--device", "cdua"), "did you mean 'cuda'?"),
        (("--in", 8, "--out", 8, "--budget", 2), "budget is 2.0. Rule"),
        (("--in", 8, "--out", 8, "--chain", "butterfly(16)"), "shape 16 x 16, wanted is 8 x 8"),
        (("--in", 8, "--out", 8, "--chain", "nonsense"), "is not a chain"),
        (("--in", 10**7, "--out", 10**7, "--measure"), "Leave out --measure"),
        (("--in", 8, "--out", 8, "--train", "--packed"), "--train and --packed were both given"),
        (("--in", -1, "--out", 8), "n (inputs) is -1"),
    ],
)
def test_refusals(arguments: tuple[object, ...], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
