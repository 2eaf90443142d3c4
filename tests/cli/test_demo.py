"""`flatwing demo`: one table, one picture."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flatwing.cli import app


def test_demo_prints_a_table_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # its own picture is replaced
        result = CliRunner().invoke(app, ["demo"])
        assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    for name in ("hadamard", "dft", "dct"):
        assert "exact" in rows[name]
    assert float(rows["noisy-butterfly"][-2].removesuffix("x")) < 1.2
    assert {"smooth", "digits", "gaussian"} <= set(rows)
    picture = Path("flatwing-demo") / "hadamard.png"
    assert f"picture of the Hadamard factors: {picture}" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.rglob("*")] == ["flatwing-demo", "hadamard.png"]


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "a")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is a file. Rule: a folder" in result.stderr
