"""Measured times: kept between processes, merged, and never a reason to fail."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import flatwing
from flatwing import Chain
from flatwing.kernels import explain, wisdom
from flatwing.kernels import wisdom_file as wisdom_file_of
from flatwing.kernels.backend import Task
from flatwing.kernels.plan import plan_for

CHAIN = Chain.butterfly(16)
TASK = Task(CHAIN, rows=8)


def test_what_is_stored_is_found_in_this_process_and_the_next(wisdom_file: Path) -> None:
    wisdom.store(TASK, {"bmm": 2e-6, "F.linear": 3e-6})
    assert wisdom.lookup(TASK) == {"bmm": 2e-6, "F.linear": 3e-6}
    code = (
        "from flatwing import Chain; from flatwing.kernels import wisdom; from flatwing.kernels.backend import Task\n"
        "print(dict(wisdom.lookup(Task(Chain.butterfly(16), rows=8))))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'bmm': 2e-06, 'F.linear': 3e-06}\n"


@pytest.mark.parametrize(
    "other",
    [
        Task(Chain.butterfly(32), rows=8),
        Task(CHAIN, rows=9),
        Task(CHAIN, rows=8, dtype=torch.float64),
        Task(CHAIN, rows=8, layout="batch-last"),
        Task(CHAIN, rows=8, train=True),
        Task(CHAIN, rows=8, threads=2),
        Task(CHAIN, rows=8, device="cuda"),
        Task(CHAIN, rows=8, products=2),
        Task(CHAIN, rows=8, packed=True),
    ],
    ids=wisdom.key,
)
def test_another_task_is_not_known(wisdom_file: Path, other: Task) -> None:
    wisdom.store(TASK, {"bmm": 2e-6})
    assert wisdom.lookup(other) == {}


def test_rows_between_powers_of_two_share_an_entry(wisdom_file: Path) -> None:
    wisdom.store(Task(CHAIN, rows=8), {"bmm": 2e-6})
    assert wisdom.lookup(TASK) == wisdom.lookup(Task(CHAIN, rows=6)) == {"bmm": 2e-6}
    assert wisdom.lookup(Task(CHAIN, rows=4)) == {}


def test_times_of_rows_that_no_plan_is_made_for_are_refused(wisdom_file: Path) -> None:
    with pytest.raises(ValueError, match=r"times of 33 rows cannot be kept. Rule: a power of two.*measure 64 rows"):
        wisdom.store(Task(CHAIN, rows=33), {"bmm": 2e-6})
    assert not wisdom_file.exists()


def test_another_machine_is_not_known(wisdom_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wisdom.store(TASK, {"bmm": 2e-6})
    monkeypatch.setattr(wisdom, "machine", lambda device="cpu": "another one, torch 3")
    wisdom.forget()
    assert wisdom.lookup(TASK) == {}
    wisdom.store(TASK, {"bmm": 5e-6})
    assert sorted(json.loads(wisdom_file.read_text())["machines"]) != ["another one, torch 3"], "the first one is kept"


def test_machine_tells_what_times_depend_on() -> None:
    assert f"torch {torch.__version__}" in wisdom.machine()
    assert wisdom.machine().endswith(f", flatwing {flatwing.__version__}")
    assert not wisdom.machine().startswith(",")


def test_plans_follow_what_was_measured(wisdom_file: Path) -> None:
    before, version = plan_for(TASK), wisdom.version()
    assert not before.measured
    wisdom.store(TASK, {"dense": 1e-7, "bmm": 5e-6, "F.linear": 4e-7})
    assert wisdom.version() != version
    after = plan_for(TASK)
    assert (after.backend, after.measured, after.seconds, after.dense_seconds) == ("dense", True, 1e-7, 4e-7)
    assert explain(CHAIN, batch=7).backend == "dense"
    assert plan_for(Task(CHAIN, rows=16)).measured is False


def test_new_numbers_join_the_old_ones_and_the_last_one_stays(wisdom_file: Path) -> None:
    wisdom.store(TASK, {"bmm": 2e-6, "dense": 3e-6})
    wisdom.store(TASK, {"bmm": 4e-6})
    wisdom.forget()
    assert wisdom.lookup(TASK) == {"bmm": 4e-6, "dense": 3e-6}


def test_old_tasks_and_machines_are_forgotten(wisdom_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wisdom, "KEPT", 2)
    for rows in (1, 2, 1, 4):
        wisdom.store(Task(CHAIN, rows=rows), {"bmm": 1e-6})
    assert [rows for rows in (1, 2, 4) if wisdom.lookup(Task(CHAIN, rows=rows))] == [1, 4]
    monkeypatch.setattr(wisdom, "MACHINES", 2)
    for name in ("b", "c"):
        monkeypatch.setattr(wisdom, "machine", lambda device="cpu", name=name: name)
        wisdom.store(TASK, {"bmm": 1e-6})
    assert list(json.loads(wisdom_file.read_text())["machines"]) == ["b", "c"]


def test_a_warning_that_is_an_error_does_not_fail_a_multiplication(wisdom_file: Path) -> None:
    wisdom_file.parent.mkdir()
    wisdom_file.write_text("no")
    assert explain(CHAIN, batch=8).seconds > 0  # pytest turns warnings into errors


def test_the_file_is_read_once(wisdom_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(wisdom, "read", lambda place: reads.append(place) or wisdom_file_of.Found({}))
    for rows in (1, 2, 4):
        plan_for(Task(CHAIN, rows=rows, dtype=torch.complex128))
    assert reads == [wisdom_file]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_seconds_that_are_none_are_not_stored(wisdom_file: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"no time of a multiplication. Rule: between 1e-08 and 100000"):
        wisdom.store(TASK, {"bmm": value})
    assert not wisdom_file.exists()


@pytest.mark.parametrize("link", [False, True])
def test_the_null_device_means_no_file(link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(os.devnull)
    monkeypatch.setenv("FLATWING_WISDOM", str(tmp_path / "link") if link else os.devnull)
    wisdom.forget()
    assert wisdom.path() is None
    assert not wisdom.keeps()
    wisdom.require_place()
    wisdom.store(TASK, {"bmm": 1e-6})
    assert wisdom.lookup(TASK) == {}


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLATWING_WISDOM")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found: Callable[[], str] = lambda: wisdom.path().relative_to(tmp_path).as_posix()  # noqa: E731
    assert found() == ".cache/flatwing/wisdom.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert found() == "c/flatwing/wisdom.json"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert found() == "Library/Caches/flatwing/wisdom.json"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "AppData"))
    assert found() == "AppData/flatwing/wisdom.json"
    monkeypatch.setenv("FLATWING_WISDOM", "here.json")
    assert wisdom.path() == Path("here.json")


@pytest.mark.parametrize("store", [lambda: wisdom.store(TASK, {"bmm": 1e-6}), lambda: wisdom.store_rates("cpu", {})])
def test_a_place_that_cannot_be_written_is_told(wisdom_file: Path, store: Callable[[], None]) -> None:
    wisdom_file.parent.write_text("a file where a folder should be")
    with pytest.raises(ValueError, match=r"wise/w.json' cannot be written .*name another with FLATWING_WISDOM"):
        store()


def test_a_place_below_a_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATWING_WISDOM", f"{os.devnull}/w.json")
    wisdom.forget()
    with pytest.raises(ValueError, match=r"/w.json' cannot be written"):
        wisdom.store(TASK, {"bmm": 1e-6})
