import os
import stat
from pathlib import Path

import pytest

from flatwing.core import replacing, require_writable


def test_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with replacing(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
        assert not target.exists()
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_file_is_an_ordinary_one(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with replacing(tmp_path / "out") as temporary:
            temporary.write_text("new")
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o644
        assert os.umask(0o022) == 0o022, "the umask of the process is as before"
    finally:
        os.umask(old)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failure_in_the_middle_keeps_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise failure("disk gone")

    with pytest.raises(failure, match="disk gone"):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_missing_folder_is_named_before_any_work(tmp_path: Path) -> None:
    message = r"cannot write .*: the folder '.*nowhere' does not exist\. Make it first"
    with pytest.raises(ValueError, match=message), replacing(tmp_path / "nowhere" / "out.txt"):
        pytest.fail("the body must not run")


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*: it is a folder\. Name a file in it"):
        require_writable(tmp_path)


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere, so ask for a refusal
    with pytest.raises(ValueError, match=r"cannot write .*: no permission in .* Choose another folder"):
        require_writable(tmp_path / "out.txt")
    assert os.listdir(tmp_path) == []


def test_writable_path_is_left_alone(tmp_path: Path) -> None:
    require_writable(str(tmp_path / "out.txt"))
    assert os.listdir(tmp_path) == []
