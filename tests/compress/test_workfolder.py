"""OUT appears whole, unfinished work is resumed by the same job only, and nothing that is not ours is removed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatwing.compress.workfolder import WorkFolder


def started(out: Path, job: dict[str, object], text: str = "new", **options: bool) -> WorkFolder:
    work = WorkFolder(out)
    assert work.prepare(job, **options)
    (work.product / "flatwing.json").write_text(text)
    return work


def finished(out: Path, text: str = "old") -> None:
    started(out, {"a": 1}, text).commit()


def test_the_same_job_resumes_with_its_parts(tmp_path: Path) -> None:
    work = started(tmp_path / "out", {"a": 1})
    (work.parts / "0").write_text("part")
    (work.parts / ".00001-ab_01xyz.safetensors").write_text("half a part")
    again = WorkFolder(tmp_path / "out")
    assert again.prepare({"a": 1})
    assert [path.name for path in again.parts.iterdir()] == ["0"]
    assert list(again.product.iterdir()) == []


def test_another_job_is_refused_or_starts_over(tmp_path: Path) -> None:
    work = started(tmp_path / "out", {"a": 1, "b": 2})
    (work.parts / "0").write_text("part")
    with pytest.raises(ValueError, match=r"unfinished work of other options: a was 1 and is 3\. Rule.*--overwrite"):
        work.prepare({"a": 3, "b": 2})
    assert (work.parts / "0").exists()
    assert work.prepare({"a": 3, "b": 2}, overwrite=True)
    assert list(work.parts.iterdir()) == []


def test_out_exists(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    with pytest.raises(ValueError, match=r"out' exists\. Rule: nothing is overwritten"):
        WorkFolder(tmp_path / "out").prepare({"a": 1})
    assert not (tmp_path / "out.partial").exists()


def test_overwrite_replaces_at_the_end(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    work = started(tmp_path / "out", {"a": 2}, overwrite=True)
    assert (tmp_path / "out" / "flatwing.json").read_text() == "old"
    work.commit()
    assert (tmp_path / "out" / "flatwing.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["foreign", "file", "link"])
def test_overwrite_removes_only_what_flatwing_wrote(tmp_path: Path, kind: str) -> None:
    finished(tmp_path / "other")
    out = tmp_path / "out"
    if kind == "foreign":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    elif kind == "file":
        out.write_text("years of work")
    else:
        out.symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="is not a directory that flatwing wrote, so it is not overwritten"):
        WorkFolder(out).prepare({"a": 1}, overwrite=True)


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is in the way and is not unfinished work of flatwing"):
            WorkFolder(tmp_path / "out").prepare({"a": 1}, overwrite=overwrite)
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


def test_killed_before_the_first_write(tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "parts").mkdir(parents=True)
    (tmp_path / "out.partial" / ".job-ab_01xyz.json").write_text("{")
    assert WorkFolder(tmp_path / "out").prepare({"a": 1})


class Killed(Exception):
    """Stands for SIGKILL: nothing after it is run."""


def kill(*_: object) -> None:
    raise Killed("now")


@pytest.mark.parametrize("moment", ["rename out", "rename product", "remove", "remove job"])
def test_killed_while_it_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Before the first rename, before the second, before the removal, and in it: never is OUT lost."""
    out = tmp_path / "out"
    finished(out)
    work = started(out, {"a": 2}, overwrite=True)

    def until(method: Callable[..., Any], *deadly: str) -> Callable[..., Any]:
        """The method, but a kill where it meets one of these at this moment."""

        def call(path: Path, *rest: object, **given: object) -> Any:
            if f"{moment} {path.name}" in deadly and path != out:
                raise Killed("now")
            return method(path, *rest, **given)

        return call

    monkeypatch.setattr(Path, "rename", until(Path.rename, "rename product out") if moment != "rename out" else kill)
    monkeypatch.setattr(Path, "unlink", until(Path.unlink, "remove job job.json"))
    if moment == "remove":
        monkeypatch.setattr(WorkFolder, "_clear", kill)
    with pytest.raises(Killed, match="now"):
        work.commit()
    monkeypatch.undo()
    again = WorkFolder(out)
    todo = again.prepare({"a": 2}, overwrite=True)
    assert todo == moment.startswith("rename")
    assert (out / "flatwing.json").read_text() == ("old" if todo else "new")
    if todo:
        (again.product / "flatwing.json").write_text("new")
        again.commit()
    assert (out / "flatwing.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_parent_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder '.*none' does not exist\. Make it first"):
        WorkFolder(tmp_path / "none" / "out").prepare({})


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": 1, "finished": true}', "[1]", '{"format": "flatwing.parts"}'])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_job_that_is_not_ours_is_left_alone(tmp_path: Path, text: str, overwrite: bool) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "job.json").write_text(text)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is in the way and is not unfinished work of flatwing"):
        WorkFolder(tmp_path / "out").prepare({"a": 1}, overwrite=overwrite)
    assert (folder / "thesis.tex").exists()


def test_only_what_a_job_makes_is_removed(tmp_path: Path) -> None:
    work = started(tmp_path / "out", {"a": 1})
    for file in (work.folder / ".env", work.parts / ".notes"):
        file.write_text("mine")
    assert WorkFolder(tmp_path / "out").prepare({"a": 1})
    assert (work.parts / ".notes").exists()
    assert work.prepare({"a": 2}, overwrite=True)
    assert (work.folder / ".env").read_text() == "mine"


def test_a_link_as_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out.partial").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="is in the way"):
        WorkFolder(tmp_path / "out").prepare({"a": 1}, overwrite=True)
