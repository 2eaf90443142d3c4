"""Pictures show supports: no entry disappears, nothing appears that is not there, and files are whole or absent."""

from pathlib import Path

import numpy as np
import pytest

from flatwing.report.picture import CELLS, FAINTEST, PHASES, _Panel, draw_factors

WHITE = [1.0, 1.0, 1.0]


def test_signs_are_colours_and_absent_entries_are_white() -> None:
    colours = _Panel(np.array([[2.0, -2.0], [0.0, 1.0]])).colours()
    np.testing.assert_allclose(colours[0], [PHASES[0], PHASES[2]])
    np.testing.assert_allclose(colours[1, 0], WHITE)
    np.testing.assert_allclose(colours[1, 1], 1 - (FAINTEST + (1 - FAINTEST) / 2) * (1 - PHASES[0]))


def test_zero_inside_the_support_is_coloured() -> None:
    array = np.ma.masked_array([[0.0, 0.0], [0.0, 5.0]], mask=[[False, True], [True, False]])
    colours = _Panel(array).colours()
    assert (colours[0, 0] < 0.95).any(), "in the support"
    np.testing.assert_allclose(colours[0, 1], WHITE)


def test_matrix_of_zeros_has_a_picture() -> None:
    np.testing.assert_allclose(_Panel(np.zeros((3, 4))).colours(), np.ones((3, 4, 3)))
    inside = np.ma.masked_array(np.zeros((2, 2)), mask=False)
    assert (_Panel(inside).colours() < 1).any(axis=-1).all()


def test_wide_range_is_logarithmic() -> None:
    colours = _Panel(np.array([[1.0, 1e-3, 1e-6, 1e-9]])).colours()[0, :, 0]
    depth = (1 - colours) / (1 - PHASES[0, 0])
    np.testing.assert_allclose((depth - FAINTEST) / (1 - FAINTEST), [1, 0.5, 0, 0], atol=1e-9)


def test_phase_turns_through_four_colours() -> None:
    colours = _Panel(np.array([[1, 1j, -1, -1j, (1 + 1j) / 2**0.5]])).colours()[0]
    np.testing.assert_allclose(colours[:4], PHASES, atol=1e-12)
    np.testing.assert_allclose(colours[4], (PHASES[0] + PHASES[1]) / 2)


def test_no_entry_of_a_large_matrix_disappears() -> None:
    array = np.zeros((1000, 300))
    array[-1, -1], array[501, 7] = -1, 1e-9
    colours = _Panel(array).colours()
    assert colours.shape == (250, 75, 3)
    assert max(colours.shape[:2]) <= CELLS
    assert sorted(map(tuple, np.argwhere((colours < 0.999).any(-1)))) == [(125, 1), (249, 74)]
    np.testing.assert_allclose(colours[249, 74], PHASES[2])


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")])
def test_suffix_decides_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"picture{suffix}"
    factors = (np.eye(4) for _ in range(2))
    draw_factors(factors, path, matrix=np.eye(4), exact=True, titles=["A", "$1", "2_$"], suptitle="a $ name_{")
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_very_different_shapes_fit_in_one_row(tmp_path: Path) -> None:
    path = tmp_path / "low_rank.png"
    draw_factors([np.ones((500, 1)), np.ones((1, 300))], path, titles=["(1,500,1,1)", "(1,1,300,1)"])
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("name", ["picture.pdf", "picture", "picture.png.gz"])
def test_other_suffix_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    def factors() -> object:
        pytest.fail("work began")
        yield

    with pytest.raises(ValueError, match=r"its suffix is '.*'. Rule: .png or .svg"):
        draw_factors(factors(), tmp_path / name)  # type: ignore[arg-type]


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist\. Make it first"):
        draw_factors([np.eye(2)], tmp_path / "no" / "picture.png")


@pytest.mark.parametrize("array", [np.ones(3), np.ones((2, 2, 2)), np.ones((0, 3))])
def test_what_is_not_a_matrix_is_refused_and_leaves_no_file(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a panel shows a matrix, got an array of shape \("):
        draw_factors([array], tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_number_of_titles_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 panels have 1 titles"):
        draw_factors([np.eye(2)], tmp_path / "picture.png", matrix=np.eye(2), titles=["only one"])


def test_pyplot_is_not_touched(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from flatwing.report import draw_factors; assert 'matplotlib' not in sys.modules;"
        f"draw_factors([np.eye(3)], {str(tmp_path / 'a.png')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
