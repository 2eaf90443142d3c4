"""What tests of measured times share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flatwing.kernels import wisdom


@pytest.fixture
def wisdom_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A wisdom file of this test, which does not exist yet, nor does its folder."""
    place = tmp_path / "wise" / "w.json"
    monkeypatch.setenv("FLATWING_WISDOM", str(place))
    wisdom.forget()
    yield place
    monkeypatch.undo()
    wisdom.forget()
