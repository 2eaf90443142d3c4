"""`flatwing wellposed`: verdicts on stdout, what was left out on stderr, refusals before any work."""

import json
import subprocess
import sys
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
    assert lines[1] == "    where X = S1, Y = S2"
    assert "X[0,0] Y[0,0] = 0, but X[0,0] Y[0,1] = 1 and X[1,0] Y[0,0] = 1" in lines[2]
    assert lines[3:7] == [
        "    eps 1e-01: error 0.01, norms 28.28",
        "    eps 1e-02: error 0.0001, norms 282.8",
        "    eps 1e-03: error 1e-06, norms 2828",
        "    eps 1e-04: error 1e-08, norms 2.828e+04",
    ]
    legend = "    (rows and columns of X Y: 1 in the limit, # restricted, + free, . zero)"
    assert lines[7:11] == ["      01", "    0 #1", "    1 1+", legend]
    assert lines[11].startswith("    advice: add 1 entry: X[0,1] (the smallest change); or use weight decay")
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


def test_quiet_looks_for_no_advice(lu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("flatwing.cli.wellposed.repair", lambda *given, **options: asked.append(given))
    assert run(lu, "--advise", "--format", "quiet").stdout == "not closed\t1 not closed\n"
    assert asked == []
    run(lu, "--advise", "--format", "json")
    assert len(asked) == 1


def test_numbers_order_the_masks_of_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", **{"S10": ONES, "S9": LOWER.T, "S1": LOWER})
    lines = [line for line in run(tmp_path / "many.npz").stdout.splitlines() if line[0] == "S"]
    assert [line.split("  ")[0].strip() for line in lines] == ["S1 @ S9", "S9 @ S10", "S1 @ S9 @ S10"]
    assert lines[1].split()[3] == "closed"
    np.savez(tmp_path / "named.npz", **{"b": ONES * 1.0, "a": LOWER.T.astype(np.int8)})
    assert run(tmp_path / "named.npz").stdout.startswith("b @ a  closed")


def test_neighbours_in_models_are_assumed_from_numbers_and_told(tmp_path: Path) -> None:
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
        ("fc1.weight @ fc0.weight_mask", "not closed"),
        ("fc10.weight @ fc1.weight", "closed"),
    ]
    assert (record["assumed"], record["whole"]) == (True, None)
    assert (
        "note: assumed from the numbers in names, y = second @ first @ x: fc0.weight_mask:fc1.weight, " in result.stderr
    )
    assert "note: in no pair: out.weight (5x4)" in result.stderr


def test_blocks_are_refused_and_named_pairs_are_taken(tmp_path: Path) -> None:
    """As in transformers: the number is that of a block, and its square matrices all multiply."""
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
    shapes = ((4, 4), (4, 4), (8, 4), (4, 8))
    file = tmp_path / "llama.safetensors"
    tensors = {
        f"model.layers.{i}.{name}.weight": torch.ones(shape)
        for i in range(2)
        for name, shape in zip(names, shapes, strict=True)
    }
    tensors["model.layers.0.mlp.up_proj.weight"] *= torch.arange(32).reshape(8, 4) % 3
    save_file({**tensors, "model.embed_tokens.weight": torch.ones(9, 4)}, file)
    refused = run(file)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "do not tell which matrices follow each other: model.layers.0.mlp.down_proj.weight (4x8), " in refused.stderr
    # the sentence ends in what works
    ending = refused.stderr.strip().split("--pairs ")[-1]
    assert ending == "model.layers.0.mlp.up_proj.weight:model.layers.0.mlp.down_proj.weight"
    assert run(file, "--pairs", ending).exit_code == 0
    result = run(
        file,
        *("--pairs", "model.layers.0.mlp.up_proj:model.layers.0.mlp.down_proj.weight"),
        *("--pairs", "model.layers.1.mlp.up_proj:model.layers.1.mlp.down_proj"),
        *("--format", "json"),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    record = json.loads(result.stdout)
    assert [pair["pair"] for pair in record["pairs"]] == [
        f"model.layers.{i}.mlp.down_proj.weight @ model.layers.{i}.mlp.up_proj.weight" for i in range(2)
    ]
    assert [pair["shapes"] for pair in record["pairs"]] == [[[4, 8], [8, 4]]] * 2
    assert not record["assumed"]


def test_masks_of_a_model_hold_0_and_1(tmp_path: Path) -> None:
    tensors = {"0.weight_mask": torch.tensor([[1.0, 0.5]]), "1.weight": torch.ones(2, 1)}
    save_file(tensors, tmp_path / "net.safetensors")
    assert "0.weight_mask[0,1] is 0.5. Rule: a mask holds 0 and 1" in run(tmp_path / "net.safetensors").stderr


def test_pairs_of_factors_are_named_as_data_flows(lu: Path, tmp_path: Path) -> None:
    assert run(lu, "--pairs", "S2:S1").stdout.startswith("S1 @ S2  not closed")
    assert run(lu, "--pairs", "S1:S2").stdout.startswith("S2 @ S1  not closed")
    np.savez(tmp_path / "wide.npz", S1=ONES, S2=np.ones((2, 3), dtype=bool))
    assert "Write --pairs S2:S1." in run(tmp_path / "wide.npz", "--pairs", "S1:S2").stderr


def test_three_masks_are_judged_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "three.npz"
    np.savez(file, S1=LOWER, S2=LOWER.T, S3=np.eye(2, dtype=np.int8))
    lines = run(file).stdout.splitlines()
    (whole,) = [
        i for i, line in enumerate(lines) if line.startswith("S1 @ S2 @ S3  not closed  3 factors that act as 2")
    ]
    assert [line.split(":")[0].strip() for line in lines[whole + 1 :]] == [
        "not attained",
        *(f"eps 1e-0{i}" for i in (1, 2, 3, 4)),
    ]
    record = json.loads(run(file, "--format", "json").stdout)
    assert [pair["pair"] for pair in record["pairs"]] == ["S1 @ S2", "S2 @ S3"]
    assert (record["whole"]["pair"], record["whole"]["status"]) == ("S1 @ S2 @ S3", "not closed")
    assert len(record["whole"]["family"]["factors"]) == 3
    np.savez(file, S1=LOWER, S2=LOWER.T, S3=ONES)
    record = json.loads(run(file, "--format", "json").stdout)
    assert (record["status"], record["whole"]["status"]) == ("not closed", "closed")


def test_products_with_supports_are_read(tmp_path: Path) -> None:
    product = MaskedProduct([LOWER, LOWER.T], [torch.ones(2, 2), torch.ones(2, 2)])
    product.save(tmp_path / "product.safetensors")
    assert run(tmp_path / "product.safetensors").stdout.startswith("factor 0 @ factor 1  not closed")


def test_undecided_tells_what_was_tried(tmp_path: Path) -> None:
    S = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1]], dtype=bool)
    T = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=bool)
    np.savez(tmp_path / "m.npz", S=S, T=T)
    result = run(tmp_path / "m.npz", "--advise")
    assert result.stdout.startswith("S @ T  undecided   no criterion covers")
    assert result.stdout.count("tried:") == 3
    assert "advice: to be certain, add " in result.stdout
    assert "# restricted" in result.stdout
    assert "in the limit" not in result.stdout, "there is none"


def test_large_pairs_get_advice_without_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatwing.cli.wellposed.SEARCHED", 3)
    np.savez(tmp_path / "lu.npz", S1=LOWER, S2=LOWER.T)
    assert "advice: too large to search for entries to add; use weight decay" in run(
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
    rows = [line.split()[1] for line in lines if len(line.split()) == 2 and set(line.split()[1]) <= set("1#+.")]
    assert (len(rows), {len(row) for row in rows}) == (16, {64})
    assert sum(row.count("1") for row in rows) == 2, "the limit is not cut off"
    assert "the rest is cut off" in lines[-1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": ONES}, "has 1 masks (a). Rule: two or more"),
        ({"a": ONES, "b": np.ones((3, 2), dtype=bool)}, "a is (2, 2), b is (3, 2). Rule: in the order"),
        ({"a": ONES, "b": np.zeros((2, 2), dtype=bool)}, "b: the mask of shape (2, 2) allows no entry"),
        ({"a": ONES, "b": np.full((2, 2), np.nan)}, "b[0,0] is nan. Rule: a mask holds 0 and 1"),
        ({"a": ONES, "b": ONES * np.array([[1, 1], [0, 3]])}, "b[1,1] is 3. Rule: a mask holds 0 and 1"),
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
    (tmp_path / "folder.safetensors").mkdir()
    for name, message in (
        ("nothing.npz", "there is no file"),
        ("folder.safetensors", "it is a folder. Name a file in it"),
        ("lu.pt", "its suffix is '.pt'. Rule: .npz or .safetensors"),
        ("cut.npz", "not a readable numpy archive"),
        ("single.npz", "not a readable numpy archive"),
        ("cut.safetensors", "not a readable safetensors file"),
        ("apart.safetensors", "no two matrices that multiply: a.weight (2x2), b.weight (3x5)"),
    ):
        result = run(tmp_path / name)
        assert (result.exit_code, result.stdout) == (2, ""), name
        assert message in result.stderr, name


def test_other_commands_are_not_imported(lu: Path) -> None:
    code = "import sys; from flatwing.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'.'.join(name.split('.')[:3]) for name in sys.modules if name.startswith('flatwing')}))"
    done = subprocess.run(
        [sys.executable, "-c", code, "wellposed", str(lu)], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.startswith("S1 @ S2  not closed")
    names = done.stdout.splitlines()[-1]
    assert "flatwing.cli.wellposed" in names
    assert not any(
        f"'flatwing.{name}'" in names for name in ("cli.train", "cli.compress", "compress", "train", "report")
    )
