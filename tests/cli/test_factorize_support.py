"""`flatwing factorize` on supports, by projections, and by the hierarchical scheme."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from flatwing.cli import app
from flatwing.factorize import factorize_fixed, palm
from flatwing.structure import MaskedProduct


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["factorize", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "A.npy", np.random.default_rng(0).standard_normal((6, 8)))
    return tmp_path / "A.npy"


def masks(path: Path, *arrays: np.ndarray, **named: np.ndarray) -> Path:
    np.savez(path / "masks.npz", *arrays, **named)
    return path / "masks.npz"


def test_two_supports(matrix: Path, tmp_path: Path) -> None:
    file = masks(tmp_path, np.ones((6, 2), bool), np.ones((2, 8), bool))
    out = tmp_path / "out.safetensors"
    result = run(matrix, "--support", file, "--format", "json", "--out", out)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    A = np.load(matrix)
    wanted = factorize_fixed(A, [np.ones((6, 2), bool), np.ones((2, 8), bool)])
    assert record["certificate"]["error"] == pytest.approx(wanted.certificate.error, rel=1e-12)
    assert record["certificate"]["ratio"] == pytest.approx(1)
    assert (record["shape"], record["factors"], record["parameters"]) == ([6, 8], [[6, 2], [2, 8]], 28)
    assert (record["method"], record["out"], record["dtype"]) == (f"supports of {file}", str(out), "float64")
    product = MaskedProduct.load(out)
    error = np.linalg.norm(A - product.dense().numpy()) / np.linalg.norm(A)
    assert error == pytest.approx(wanted.certificate.error, rel=1e-12)


def test_numbers_0_and_1_are_masks(matrix: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    both = [rng.random((6, 4)) < 0.6, rng.random((4, 8)) < 0.6]
    lines = []
    for dtype in (bool, np.uint8, np.float16, np.float64):
        file = masks(tmp_path, *(mask.astype(dtype) for mask in both))
        lines.append(run(matrix, "--support", file, "--format", "quiet").stdout)
    assert lines[0].endswith("6x4 @ 4x8\n")
    assert set(lines) == {lines[0]}


def test_three_supports_in_the_order_of_their_numbers(matrix: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = {"S1": (6, 5), "S2": (5, 7), "S10": (7, 8)}
    arrays = {name: rng.random(shape) < 0.6 for name, shape in shapes.items()}
    file = masks(tmp_path, **dict(reversed(arrays.items())))
    result = run(matrix, "--support", file, "--starts", 2, "--format", "json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["factors"] == [[6, 5], [5, 7], [7, 8]]
    wanted = palm(np.load(matrix), list(arrays.values()), starts=2)
    assert record["certificate"]["error"] == pytest.approx(wanted.certificate.error, rel=1e-9)
    assert record["certificate"]["theorem"].startswith("no guarantee")


def test_projections(matrix: Path) -> None:
    record = json.loads(run(matrix, "--palm", "splin(3) spcol(2)", "--format", "json").stdout)
    wanted = palm(np.load(matrix), "splin(3) spcol(2)")
    assert record["certificate"]["error"] == pytest.approx(wanted.certificate.error, rel=1e-12)
    assert record["parameters"] == 18 + 16
    assert record["certificate"]["ratio"] is None


def test_scheme_on_an_example_in_words() -> None:
    result = run("--example", "hadamard", "--n", 16, "--hierarchical", "hadamard")
    assert result.exit_code == 0, result.stderr
    lines = {line[:12].strip(): line[12:] for line in result.stdout.splitlines()}
    assert lines["matrix"] == "hadamard(16), 16 x 16 float64"
    assert lines["method"] == "hierarchical hadamard"
    assert lines["factors"] == "16x16 @ 16x16 @ 16x16 @ 16x16"
    assert lines["parameters"] == "32 + 32 + 32 + 32 = 50.0% of the 256 dense ones"
    assert lines["result"].startswith("this product is exact to rounding")
    assert lines["theorem"].startswith("no guarantee")
    assert "factors in" not in lines


def test_quiet_is_one_line(matrix: Path) -> None:
    result = run(matrix, "--palm", "sp(9)*2", "--format", "quiet")
    error, parameters, sizes = result.stdout.strip().split("\t")
    assert 0 < float(error) < 1
    assert (parameters, sizes, result.stderr) == ("18", "6x6 @ 6x8", "")


def test_seed_of_the_machine_does_not_matter(matrix: Path) -> None:
    lines = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        lines.append(run(matrix, "--palm", "sp(9)*2", "--starts", 3, "--format", "quiet").stdout)
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--palm", "spcl(3)"], "unknown projection 'spcl', did you mean 'spcol'"),
        (["--palm", ""], "holds no projection"),
        (["--palm", "nm(2,5) id"], "factor 0, nm(2,5)"),
        (["--hierarchical", "hadamard"], "the scheme 'hadamard' for 6 x 8"),
        (["--palm", "id", "--hierarchical", "hadamard"], "--palm and --hierarchical were given"),
        (["--palm", "id", "--chain", "butterfly(8)"], "--chain with --palm. Rule: for chains only"),
        (["--palm", "id", "--tolerance", "0.1"], "--tolerance with --palm"),
        (["--palm", "id", "--refine", "2"], "--refine with --palm"),
        (["--palm", "id", "--order", "l2r"], "--order with --palm"),
        (["--palm", "id", "--perm", "bitrev"], "--perm with --palm"),
        (["--palm", "id", "--draw", "a.png"], "--draw with --palm"),
        (["--hierarchical", "hadamard", "--starts", "2"], "--starts 2 with --hierarchical"),
        (["--starts", "2"], "--starts 2 is for --support and --palm"),
        (["--support", "masks.npy"], "cannot read masks from 'masks.npy'. Rule: an .npz"),
        (["--support", "masks.npz"], "there is no file 'masks.npz'"),
    ],
)
def test_refusals(
    matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(matrix, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.full((6, 2), 0.5), np.ones((2, 8), bool)], "arr_0[0,0] is 0.5. Rule: a mask holds 0 and 1"),
        ([np.ones((6, 2), complex), np.ones((2, 8), bool)], "arr_0 has dtype complex128. Rule: a mask"),
        ([np.ones((6, 2), bool), np.ones((3, 8), bool)], "arr_0 is (6, 2), arr_1 is (3, 8)"),
        ([np.ones((5, 2), bool), np.ones((2, 8), bool)], "A is 6 x 8, a product on supports (5, 2) and (2, 8)"),
        ([np.zeros((6, 2), bool), np.ones((2, 8), bool)], "allows no entry"),
        ([], "holds no mask. Rule: one per factor"),
    ],
)
def test_masks_are_refused(matrix: Path, tmp_path: Path, arrays: list[np.ndarray], message: str) -> None:
    result = run(matrix, "--support", masks(tmp_path, *arrays))
    assert result.exit_code == 2
    assert message in result.stderr


def test_broken_archives_are_refused_and_nothing_is_executed(matrix: Path, tmp_path: Path) -> None:
    file = masks(tmp_path, np.ones((6, 2), bool), np.ones((2, 8), bool))
    file.write_bytes(file.read_bytes()[:200])
    result = run(matrix, "--support", file)
    assert result.exit_code == 2
    assert "is not a readable numpy archive" in result.stderr
    np.savez(file, np.array([object()], dtype=object))
    result = run(matrix, "--support", file)
    assert result.exit_code == 2
    assert "holds Python objects (a pickle)" in result.stderr
