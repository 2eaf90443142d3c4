"""`flatwing wellposed`: verdicts on stdout, what was left out on stderr, refusals before any work."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from flatwing.cli import app
from flatwing.structure import MaskedProduct

LOWER = np.tril(np.ones((2, 2), dtype=bool))
ONES = np.ones((2, 2), dtype=bool)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["wellposed", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def lu(tmp_path: Path) -> Path:
    np.savez(tmp_path / "lu.npz", S1=LOWER, S2=LOWER.T)
    return tmp_path / "lu.npz"


def test_the_lu_example_is_explained(lu: Path) -> None:
    result = run(lu, "--advise")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("S1 @ S2  not closed  inner index 0 on rows {0, 1} x columns {0, 1}")
    assert "X[0,0] Y[0,0] = 0, but X[0,0] Y[0,1] = 1 and X[1,0] Y[0,0] = 1" in lines[1]
    assert lines[2:6] == [
        "    eps 1e-01: error 0.01, norms 28.28",
        "    eps 1e-02: error 0.0001, norms 282.8",
        "    eps 1e-03: error 1e-06, norms 2828",
        "    eps 1e-04: error 1e-08, norms 2.828e+04",
    ]
    assert lines[6:9] == ["    #1", "    1+", "    (1 in the limit, # restricted, + free, . zero)"]
    assert lines[9].startswith("    advice: add 1 entry: X[0,1] (the smallest change); or use weight decay")
    assert "advice" not in run(lu).stdout


def test_json_and_quiet(lu: Path) -> None:
    record = json.loads(run(lu, "--format", "json", "--advise").stdout)
    assert record["status"] == "not closed"
    (pair,) = record["pairs"]
    assert (pair["pair"], pair["shapes"]) == ("S1 @ S2", [[2, 2], [2, 2]])
    assert pair["family"]["limit"] == [[0, 1], [1, 0]]
    assert [row["error"] for row in pair["family"]["measured"]] == pytest.approx([1e-2, 1e-4, 1e-6, 1e-8])
    assert pair["advice"]["added"] == [[0, 0, 1]]
    assert run(lu, "--format", "quiet").stdout == "not closed\t1 not closed\n"


def test_numbers_order_the_masks_of_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", **{"S10": ONES, "S9": LOWER.T, "S1": LOWER})
    lines = [line for line in run(tmp_path / "many.npz").stdout.splitlines() if line[0] == "S"]
    assert [line.split("  ")[0].strip() for line in lines] == ["S1 @ S9", "S9 @ S10"]
    assert lines[1].split()[3] == "closed"
    np.savez(tmp_path / "named.npz", **{"b": ONES * 2.5, "a": LOWER.T.astype(np.int8)})
    assert run(tmp_path / "named.npz").stdout.startswith("b @ a  closed")


def test_models_are_read_from_last_to_first(tmp_path: Path) -> None:
    lower = torch.from_numpy(LOWER)
    tensors = {
        "fc0.weight_orig": torch.randn(2, 2),
        "fc0.weight_mask": lower.T.float().contiguous(),
        "fc0.bias": torch.zeros(2),
        "fc1.weight": (lower * torch.randn(2, 2).bfloat16()).contiguous(),
        "fc10.weight": torch.randn(3, 2),
        "out.weight": torch.randn(5, 4),
    }
    save_file(tensors, tmp_path / "net.safetensors")
    result = run(tmp_path / "net.safetensors", "--format", "json")
    record = json.loads(result.stdout)
    assert [(pair["pair"], pair["status"]) for pair in record["pairs"]] == [
        ("fc10.weight @ fc1.weight", "closed"),
        ("fc1.weight @ fc0.weight_mask", "not closed"),
    ]
    assert "note: out.weight (5, 4) and fc10.weight (3, 2) do not multiply" in result.stderr


def test_products_with_supports_are_read(tmp_path: Path) -> None:
    product = MaskedProduct([LOWER, LOWER.T], [torch.ones(2, 2), torch.ones(2, 2)])
    product.save(tmp_path / "product.safetensors")
    assert run(tmp_path / "product.safetensors").stdout.startswith("factor 0 @ factor 1  not closed")


def test_undecided_tells_what_was_tried(tmp_path: Path) -> None:
    S = np.array([[1, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=bool)
    T = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=bool)
    np.savez(tmp_path / "m.npz", S=S, T=T)
    result = run(tmp_path / "m.npz", "--advise")
    assert result.stdout.startswith("S @ T  undecided   no criterion covers")
    assert result.stdout.count("tried:") == 3
    assert "advice: add " in result.stdout


def test_large_pairs_get_advice_without_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatwing.cli.wellposed.SEARCHED", 3)
    np.savez(tmp_path / "lu.npz", S1=LOWER, S2=LOWER.T)
    assert "advice: too large to search for entries to add; or use weight decay" in run(
        tmp_path / "lu.npz", "--advise"
    ).stdout.replace("\n", " ")


def test_picture(lu: Path, tmp_path: Path) -> None:
    for name, start in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml")):
        assert run(lu, "--picture", tmp_path / name).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    refused = run(lu, "--picture", tmp_path / "p.png")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "nothing is overwritten without --force" in refused.stderr
    assert run(lu, "--picture", tmp_path / "p.png", "--force").exit_code == 0
    assert "its suffix is '.gif'" in run(lu, "--picture", tmp_path / "p.gif").stderr


def test_letters_of_large_pairs_are_cut(tmp_path: Path) -> None:
    lower = np.tril(np.ones((80, 80), dtype=bool))
    lower[:, 1:] &= np.eye(80, dtype=bool)[:, 1:]
    np.savez(tmp_path / "m.npz", S=lower, T=lower.T)
    lines = run(tmp_path / "m.npz").stdout.splitlines()
    rows = [line.strip() for line in lines if set(line.strip()) <= set("1#+.")]
    assert (len(rows), {len(row) for row in rows}) == (16, {64})
    assert sum(row.count("1") for row in rows) == 2, "the limit is not cut off"
    assert "the rest is cut off" in lines[-1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": ONES}, "has 1 masks (a). Rule: two or more"),
        ({"a": ONES, "b": np.ones((3, 2), dtype=bool)}, "a is (2, 2), b is (3, 2). Rule: in the order"),
        ({"a": ONES, "b": np.zeros((2, 2), dtype=bool)}, "b: the mask of shape (2, 2) allows no entry"),
        ({"a": ONES, "b": np.full((2, 2), np.nan)}, "b: the matrix has NaN entries"),
        ({"a": ONES, "b": np.ones(2)}, "b: the mask has shape (2,)"),
        ({"a": ONES, "b": np.array([["x", "y"]])}, "b has dtype <U1. Rule: a mask"),
        ({"a": ONES, "b": np.array([[None, 1], [1, 1]])}, "can run code"),
        ({"a": np.array([[True, False]]), "b": np.array([[False], [True]])}, "the product is zero"),
    ],
)
def test_bad_masks_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **arrays)
    result = run(tmp_path / "m.npz")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_bad_files_are_refused(tmp_path: Path, lu: Path) -> None:
    (tmp_path / "cut.npz").write_bytes(lu.read_bytes()[:100])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, LOWER)
    save_file({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(3, 5)}, tmp_path / "apart.safetensors")
    for name, message in (
        ("nothing.npz", "there is no file"),
        ("lu.pt", "its suffix is '.pt'. Rule: .npz or .safetensors"),
        ("cut.npz", "not a readable numpy archive"),
        ("single.npz", "not a readable numpy archive"),
        ("cut.safetensors", "not a readable safetensors file"),
        ("apart.safetensors", "no two neighbouring matrices that multiply"),
    ):
        result = run(tmp_path / name)
        assert (result.exit_code, result.stdout) == (2, ""), name
        assert message in result.stderr, name
