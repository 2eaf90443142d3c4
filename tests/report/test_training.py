"""The page of a training run: numbers with errors, both curves, everything escaped, what is missing named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flatwing.report import write
from flatwing.report.training import smooth
from flatwing.report.words import count

RESULT: dict[str, Any] = {
    "format": "flatwing.run", "version": 1, "command": "train", "name": "<b>mine</b>", "task": "classification",
    "created": "2026-01-02T03:04:05", "flatwing": "0.1.0", "seed": 5, "summary": ["Trained & measured."],
    "training": {
        "steps": 3, "unit": "tokens", "per_step": 2048, "seconds": 1.25, "parameters": 12345, "optimizer": "AdamW",
        "lr": 0.003,
    },
    "metrics": {
        "valid": {"loss": {"value": 0.5, "stderr": 0.01}, "accuracy": {"value": 0.9, "stderr": 0.02}, "samples": 180},
        "test": {"loss": {"value": 0.625, "stderr": 0.013}, "samples": 1359},
    },
}  # fmt: skip
LINES = [{"step": 0, "score": 2.5}, *({"step": k, "loss": 3.0 / k, "lr": 0.1 * k, "norm": 1.0} for k in (1, 2, 3))]


def folder(path: Path, result: dict[str, Any] = RESULT, tail: str = "") -> Path:
    path.mkdir(exist_ok=True)
    (path / "result.json").write_text(json.dumps(result))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + tail)
    (path / "config.toml").write_text('[model]\nname = "<i>"\n')
    (path / "environment.json").write_text('{"torch": "2.13"}')
    return path


def test_page_shows_what_was_measured(tmp_path: Path) -> None:
    page = write(folder(tmp_path)).read_text()
    numbers = (count(1359), count(12345), count(2048))
    for text in ("0.500 ± 0.010", "0.625 ± 0.013", "90.0 ± 2.0 %", *numbers, "tokens per step", "2.13"):
        assert text in page, text
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "Trained &amp; measured." in page
    assert "name = &#34;&lt;i&gt;&#34;" in page
    assert "http" not in re.sub(r"<meta http-equiv", "", page)
    (loss,) = re.findall(r'<desc id="chart-loss-desc">(.*?)</desc>', page)
    assert "held-out data: 1 points from 2.500" in loss
    assert "training data: 3 points from 3.000 to 1.000" in loss
    (rate,) = re.findall(r'<desc id="chart-rate-desc">(.*?)</desc>', page)
    assert "3 points from 0.1000 to 0.3000" in rate


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, {key: RESULT[key] for key in ("format", "version", "command")})
    for name in ("metrics.jsonl", "config.toml", "environment.json"):
        (path / name).unlink()
    page = write(path).read_text()
    assert "chart-loss" not in page
    for name in ("metrics.jsonl", "config.toml", "environment.json"):
        assert f"{name} is not in the run folder." in page
    assert page.count("was not measured") == 2


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    assert "ends in the middle of line 5" in write(folder(tmp_path, tail='{"step": 4, "lo')).read_text()
    (tmp_path / "metrics.jsonl").write_text('{"step"\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1"):
        write(tmp_path)


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 2}, {"training": {"lr": -1}}, {"training": 3}])
def test_malformed_results_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"result\.json"):
        write(folder(tmp_path, RESULT | change))


def test_smoothing_is_a_mean_of_the_last_points() -> None:
    points = [(float(k), float(k % 2), None) for k in range(1000)]
    found = [y for _, y, _ in smooth(points)]
    assert all(abs(y - 0.5) < 0.05 for y in found[100:])
    assert found[0] == 0.0
