"""`flatwing report`: the path on stdout, words on stderr, refusals without a traceback."""

import json
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flatwing.cli import app
from report.sample import bare, write_run


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", bare(), bare=True)


def test_path_is_printed(folder: Path) -> None:
    result = run(folder)
    assert (result.exit_code, result.stdout) == (0, f"{folder / 'report.html'}\n")
    assert "one file" in result.stderr
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_quiet_says_only_the_path(folder: Path) -> None:
    result = run(folder, "--format", "quiet")
    assert (result.stdout, result.stderr) == (f"{folder / 'report.html'}\n", "")


def test_json(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--out", tmp_path / "x.html", "--format", "json")
    size = (tmp_path / "x.html").stat().st_size
    assert json.loads(result.stdout) == {"run": str(folder), "report": str(tmp_path / "x.html"), "bytes": size}
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("found", [True, False])
def test_open(folder: Path, monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or found)
    result = run(folder, "--open")
    assert asked == [(folder / "report.html").resolve().as_uri()]
    assert result.exit_code == 0
    assert ("no browser was found" in result.stderr) is not found


def test_refusals(folder: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "nowhere",), "error: '"),
        ((tmp_path,), "has no result.json"),
        ((folder, "--out", tmp_path / "x.txt"), "Rule: .html"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    (folder / "result.json").write_text('{"format": "flatwing.run", "ver')
    assert "result.json is not whole JSON" in run(folder).stderr
