"""A run folder: what is missing is named, what is cut off is refused, nothing outside of it is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from flatwing.report.folder import read_run
from report.sample import bare, result, write_run


def broken(change: dict[str, Any]) -> dict[str, Any]:
    """A record in which paths such as "layers.0.shape" have other values."""
    record = result()
    for path, value in change.items():
        *parents, last = path.split(".")
        inner: Any = record
        for key in parents:
            inner = inner[int(key) if key.isdecimal() else key]
        inner[int(last) if last.isdecimal() else last] = value
    return record


def test_everything_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    record = run.record
    assert (record.name, record.task, record.seed, len(record.summary)) == ("bytelm", "lm", 0, 5)
    assert list(record.metrics) == ["before", "compressed", "healed", "quantized"]
    assert record.metrics["healed"].loss is not None
    assert record.metrics["healed"].loss.value == 1.5447
    assert [timing.batch for timing in record.metrics["before"].latency] == [1, 8, 64]
    assert (len(record.layers), len(record.landmarks)) == (17, 10)
    assert record.layers[0].blocks == (8, 8)
    assert record.layers[1].chain == ((1, 8, 8, 16), (8, 16, 16, 1))
    assert record.curve is not None
    assert (len(record.curve.points), record.curve.dense) == (12, 1.3827)
    assert [step.step for step in run.healing] == list(range(1, 201))
    assert run.seconds == {"load": 0.2, "calibrate": 8.1, "plan": 31.0, "factorize": 64.0, "heal": 74.2}
    assert run.environment["threads"] == "2"
    assert run.config is not None
    assert "budget = 0.25" in run.config
    assert run.model == tmp_path / "model.safetensors"
    assert run.notes == ()


def test_only_the_result_is_needed(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, bare(), bare=True))
    assert (run.healing, run.seconds, run.environment, run.config, run.model) == ((), {}, {}, None, None)
    missing = ("metrics.jsonl", "environment.json", "config.toml")
    assert run.notes == tuple(f"{name} is not in the run folder." for name in missing)


def test_missing_folder_and_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' is not a run folder: there is no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a finished run: it has no result\.json\. Finish the run"):
        read_run(tmp_path)
    (tmp_path / "result.json").mkdir()
    with pytest.raises(ValueError, match=r"cannot read '.*result\.json'"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "environment.json"])
def test_file_cut_off_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path) / name
    whole = path.read_bytes()
    for size in range(0, len(whole), max(len(whole) // 20, 1)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{name} is not whole JSON: .* \(line 1, column \d+\)"):
            read_run(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "environment.json", "config.toml"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, name: str) -> None:
    (write_run(tmp_path) / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text: .* at byte 0"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", r"result\.json: format is 'other'\. Rule: 'flatwing\.run'"),
        ("version", 2, r"result\.json: version is 2\. Rule: 1, the version that this flatwing reads"),
        ("layers", None, "layers is None. Rule: present"),
        ("layers", {}, "layers is {}. Rule: a list"),
        ("layers.3.shape", [1, -2], r"layers\[3\]\.shape is \[1, -2\]\. Rule: a list of whole numbers of at least 1"),
        ("layers.3.action", "burnt", r"layers\[3\]\.action is 'burnt'\. Rule: one of replaced, kept, skipped"),
        ("layers.3.chain", [], r"layers\[3\]\.chain is \[\]\. Rule: a list of patterns"),
        ("layers.1.chain.1", [1, 2, 3], r"layers\[1\]\.chain\.1 is \[1, 2, 3\]\. Rule: 4 whole numbers"),
        ("layers.0.error", -0.1, r"layers\[0\]\.error is -0\.1\. Rule: a number that is at least 0"),
        ("layers.0.name", None, r"layers\[0\]\.name is None\. Rule: present"),
        ("metrics", None, "metrics is None. Rule: an object"),
        ("metrics.before", None, r"metrics\.before is None\. Rule: present"),
        ("metrics.before.loss", 1.0, r"metrics\.before\.loss is 1\.0\. Rule: an object"),
        ("metrics.before.loss.value", "1", r"metrics\.before\.loss\.value is '1'\. Rule: a number"),
        ("metrics.healed.bytes", -5, r"metrics\.healed\.bytes is -5\. Rule: a number that is at least 0"),
        ("landmarks.2.name", 7, r"landmarks\[2\]\.name is 7\. Rule: a text"),
        ("curve.points.0.share", "all", r"curve\.points\[0\]\.share is 'all'\. Rule: a number"),
        ("summary", "one text", "summary is 'one text'. Rule: a list"),
        ("budget.share", "half", r"budget\.share is 'half'\. Rule: a number"),
        ("budget.unit", 3, r"budget\.unit is 3\. Rule: a text"),
        ("calibration.tokens", "many", r"calibration\.tokens is 'many'\. Rule: a number"),
        ("calibration.warnings", [3], r"calibration\.warnings is \[3\]\. Rule: a list of texts"),
        ("heal.optimizer", [], r"heal\.optimizer is \[\]\. Rule: a text"),
        ("files.model", "../secret", "files.model is '../secret'. Rule: a file inside the run folder"),
        ("files.model", "/etc/hostname", "Rule: a file inside the run folder"),
    ],
)
def test_wrong_value_is_refused_by_name(tmp_path: Path, path: str, value: object, message: str) -> None:
    write_run(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(broken({path: value})))
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


def test_model_behind_a_link_to_the_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    folder = write_run(tmp_path / "run")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="Rule: a file inside the run folder"):
        read_run(folder)


def test_log_that_ends_in_the_middle_of_a_line_is_noted(tmp_path: Path) -> None:
    path = write_run(tmp_path) / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:100], '{"stage": "heal", "st']))
    run = read_run(tmp_path)
    assert (len(run.healing), run.healing[-1].step) == (95, 95)
    assert run.notes == ("metrics.jsonl ends in the middle of line 101, which is left out.",)


def test_log_with_a_broken_line_inside_is_refused(tmp_path: Path) -> None:
    (write_run(tmp_path) / "metrics.jsonl").write_text('{"stage": "plan"}\nnonsense\n{"stage": "plan"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is not whole JSON"):
        read_run(tmp_path)


def test_steps_that_were_run_again_count_once(tmp_path: Path) -> None:
    lines = [{"stage": "heal", "step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 9.0), (2, 2.0), (3, 1.0))]
    lines += [{"stage": "factorize", "layer": "a", "seconds": 1.5}, {"stage": "factorize", "layer": "b", "seconds": 2}]
    lines += [{"unknown": True}, {"stage": "heal", "step": 4, "loss": float("nan"), "heldout": 0.5}]
    (write_run(tmp_path) / "metrics.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    run = read_run(tmp_path)
    assert [(s.step, s.loss, s.heldout) for s in run.healing] == [
        (1, 3.0, None),
        (2, 2.0, None),
        (3, 1.0, None),
        (4, None, 0.5),
    ]
    assert run.seconds == {"factorize": 3.5}


def test_dense_quality_may_carry_its_error(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, broken({"curve.dense": {"value": 1.25, "stderr": 0.1}})))
    assert run.record.curve is not None
    assert run.record.curve.dense == 1.25
