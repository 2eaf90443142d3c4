"""Measuring, remembering, and files that are not ours."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flatwing.kernels import wisdom
from flatwing.kernels.gpu import tune
from flatwing.kernels.gpu.model import Choice
from flatwing.kernels.gpu.tiles import Tile

TILES = [Tile("flat", rows, 16, 16) for rows in (16, 32, 64)]
CHOICES = tuple(Choice(float(i), tile) for i, tile in enumerate(TILES))
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLATWING_WISDOM", str(tmp_path / "wisdom.json"))
    monkeypatch.delenv("FLATWING_TUNE", raising=False)
    monkeypatch.setattr(tune, "_known", None)
    return tmp_path


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[Tile]:
    """Every tile takes a second but the one of 32 rows; the list says what was measured."""
    measured: list[Tile] = []

    def seconds(run: Callable[[], None], device: torch.device) -> float:
        run()
        return 0.5 if measured[-1].rows == 32 else 1.0

    monkeypatch.setattr(tune, "_seconds", seconds)
    return measured


def pick(measured: list[Tile], choices: tuple[Choice, ...] = CHOICES) -> Tile:
    return tune._remembered("factor", choices, CUDA, measured.append)


def test_the_fastest_is_taken_and_kept(slow: list[Tile], folder: Path) -> None:
    assert pick(slow).rows == 32
    assert slow == TILES
    tune.forget()
    assert pick(slow).rows == 32
    assert slow == TILES, "the second time the file knows"
    assert sorted(path.name for path in folder.iterdir()) == ["tiles.json"]


def test_what_is_kept_belongs_to_one_gpu(slow: list[Tile], monkeypatch: pytest.MonkeyPatch) -> None:
    pick(slow)
    tune.forget()
    monkeypatch.setattr(wisdom, "machine", lambda device="cpu": "another GPU")
    pick(slow)
    assert slow == TILES + TILES


def test_a_tile_that_does_not_suit_is_not_taken_from_a_file(slow: list[Tile]) -> None:
    pick(slow)
    tune.forget()
    assert pick(slow, CHOICES[:1]).rows == 16


def test_without_tuning_the_model_decides(slow: list[Tile], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATWING_TUNE", "0")
    assert pick(slow) == TILES[0]
    assert slow == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "machines": {}}', '{"format": 1, "machines": {"x": 3}}', "\x00\xff"]
)
def test_a_broken_file_is_ignored_with_a_warning(slow: list[Tile], folder: Path, text: str) -> None:
    (folder / "tiles.json").write_text(text, encoding="latin-1")
    with pytest.warns(RuntimeWarning, match=r"tiles\.json.* is ignored .* Remove it\."):
        assert pick(slow).rows == 32
    assert json.loads((folder / "tiles.json").read_text())["format"] == 1


def test_nothing_is_kept_where_nothing_can_be(slow: list[Tile], folder: Path) -> None:
    (folder / "tiles.json").mkdir()
    with warnings.catch_warnings(record=True, action="always") as seen:
        assert pick(slow).rows == 32
    assert "are not kept in" in str(seen[-1].message)


def test_the_null_device_keeps_nothing(slow: list[Tile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATWING_WISDOM", "/dev/null")
    assert tune.path() is None
    assert pick(slow).rows == 32


def test_tiles_that_fail_are_left_out() -> None:
    def start(tile: Tile) -> None:
        if tile.rows < 64:
            raise RuntimeError(f"no room for {tile.rows} rows")

    def seconds(run: Callable[[], None]) -> float:
        run()
        return 1.0

    assert tune.fastest(TILES, start, seconds).rows == 64
    with pytest.raises(RuntimeError, match="no room for 32 rows"):
        tune.fastest(TILES[:2], start, seconds)


def test_without_a_gpu_nothing_is_measured() -> None:
    x = torch.ones(2, 2)
    assert tune.tile_for("factor", (), 2, x, False, CHOICES, lambda tile: pytest.fail("measured")) == TILES[0]


def test_labels_tell_apart_what_needs_other_tiles() -> None:
    from flatwing.structure import Pattern

    def label(pattern: Pattern, rows: int = 64, dtype: torch.dtype = torch.float32, last: bool = False) -> str:
        return tune.label("factor", (pattern,), rows, dtype, last)

    base = Pattern(1, 48, 64, 3)
    assert label(base) == label(Pattern(1, 64, 50, 4))
    others = [
        label(base, rows=128),
        label(base, dtype=torch.float16),
        label(base, last=True),
        label(base.T),
        label(Pattern(2, 48, 64, 3)),
    ]
    assert len({label(base), *others[:3], others[4]}) == 5
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    tf32 = label(base)
    torch.set_float32_matmul_precision(precision)
    assert tf32 != label(base)
