"""`flatwing factorize`: data on stdout, words on stderr, files whole or absent."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from flatwing import SparseProduct
from flatwing.cli import app
from flatwing.data import MATRICES

FIELDS = (
    "input dtype shape chain patterns dense parameters density flops order perm certificate splits notes why refine "
    "out draw seconds"
)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["factorize", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    return json.loads(result.stdout, parse_constant=refuse)


def test_json_tells_everything() -> None:
    record = run_json("--example", "hilbert", "--n", 16, "--chain", "butterfly(16)")
    assert list(record) == FIELDS.split()
    assert record["input"] == "hilbert(16)"
    assert (record["shape"], record["dtype"], record["parameters"]) == ([16, 16], "float64", 128)
    assert (record["density"], record["flops"], record["perm"]) == (0.5, 256, "none")
    assert record["chain"] == "(1,2,2,8)(2,2,2,4)(4,2,2,2)(8,2,2,1)"
    assert record["patterns"][0] == [1, 2, 2, 8]
    certificate = record["certificate"]
    assert certificate["error"] == pytest.approx(0.1143, rel=1e-3)
    assert 0 < certificate["lower_bound"] <= certificate["error"] <= certificate["guarantee"]
    assert certificate["ratio"] == pytest.approx(certificate["error"] / certificate["lower_bound"])
    assert [split["position"] for split in record["splits"]] == [1, 2, 3]
    assert {"rank", "blocks", "block_shape", "error", "matrix_error"} <= set(record["splits"][0])


@pytest.mark.parametrize("name", [name for name in MATRICES if MATRICES[name](16).chain is not None])
def test_example_has_its_natural_chain(name: str) -> None:
    record = run_json("--example", name, "--n", 16)
    assert record["chain"] == str(MATRICES[name](16).chain)
    assert record["perm"] == MATRICES[name](16).perm
    assert record["certificate"]["error"] < (0.02 if name == "noisy-butterfly" else 1e-14)


def test_unknown_ratio_is_null() -> None:
    record = run_json("--example", "hadamard", "--n", 4, "--chain", "(1,4,1,1)(1,1,4,1)", "--order", "l2r")
    assert record["certificate"]["ratio"] is None or record["certificate"]["ratio"] >= 1


@pytest.mark.parametrize("order", ["best", "l2r", "r2l", "balanced", "2,1,3", "3, 1, 2"])
def test_order(order: str) -> None:
    record = run_json("--example", "hilbert", "--n", 16, "--chain", "butterfly(16)", "--order", order)
    names = {"l2r": [1, 2, 3], "r2l": [3, 2, 1], "balanced": [2, 1, 3], "2,1,3": [2, 1, 3], "3, 1, 2": [3, 1, 2]}
    assert record["order"] == names.get(order, record["order"])


def test_refine_and_perm_are_passed_on(tmp_path: Path) -> None:
    arguments = ("--example", "hilbert", "--n", 16, "--chain", "butterfly(16)")
    assert run_json(*arguments, "--refine", 3)["certificate"]["error"] < run_json(*arguments)["certificate"]["error"]
    np.save(tmp_path / "dft.npy", MATRICES["dft"](16).matrix.numpy())
    file = (tmp_path / "dft.npy", "--chain", "butterfly(16)")
    assert run_json(*file)["certificate"]["error"] > 0.5
    for perm, wish in (("bitrev", file), ("auto", file), ("auto", (tmp_path / "dft.npy", "--tolerance", 1e-9))):
        record = run_json(*wish, "--perm", perm)
        assert record["certificate"]["exact"]
        assert record["perm"].startswith("bitrev")
        assert record["density"] <= 0.5
        assert record["certificate"]["order"] == ("found" if perm == "auto" else "given")


def test_an_unknown_order_is_searched(tmp_path: Path) -> None:
    matrix = MATRICES["dft"](16).matrix.numpy()
    np.save(tmp_path / "a.npy", matrix[np.random.permutation(16)][:, np.random.permutation(16)])
    record = run_json(tmp_path / "a.npy", "--chain", "butterfly(16)", "--perm", "search")
    assert record["certificate"]["exact"]
    assert record["perm"].startswith("search: clusters from ")
    refused = run(tmp_path / "a.npy", "--perm", "search")
    assert refused.exit_code != 0
    assert "--perm search looks for the order that a chain needs. Give --chain too." in refused.stderr


def test_human_output_says_what_is_proved() -> None:
    result = run("--example", "hilbert", "--n", 16, "--chain", "butterfly(16)")
    assert result.exit_code == 0
    assert re.search(r"within \d\.\d\dx of the best any product of this shape can do", result.stdout)
    assert "128 = 50.0% of the 256 dense ones" in result.stdout
    assert "Cuts" in result.stdout


def test_words_go_to_stderr() -> None:
    result = run("--example", "dft", "--n", 16, "--format", "json")
    assert "natural chain of dft(16), its columns reordered (bitrev)" in result.stderr
    assert json.loads(result.stdout)


def test_quiet_is_one_line() -> None:
    result = run("--example", "noisy-butterfly", "--n", 8, "--format", "quiet")
    error, parameters, chain = result.stdout.rstrip("\n").split("\t")
    assert 0 < float(error) < 0.02
    assert (int(parameters), chain) == (48, "(1,2,2,4)(2,2,2,2)(4,2,2,1)")
    assert result.stderr == ""


def test_file_without_a_wish_gets_the_default_tolerance(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MATRICES["smooth"](64).matrix.numpy())
    result = run(tmp_path / "a.npy", "--format", "json")
    assert "choosing a chain for tolerance 0.01" in result.stderr
    assert json.loads(result.stdout)["certificate"]["error"] <= 0.01


def test_tolerance_and_budget_are_kept() -> None:
    record = run_json("--example", "smooth", "--tolerance", 0.1)
    assert record["certificate"]["error"] <= 0.1
    assert record["density"] < 1
    assert record["why"]
    assert run_json("--example", "smooth", "--budget", 0.5)["density"] <= 0.5
    assert run_json("--example", "smooth", "--budget", 2000)["parameters"] <= 2000


def test_dense_is_an_answer() -> None:
    record = run_json("--example", "gaussian", "--tolerance", 0.01)
    assert record["dense"] is True
    assert record["chain"] == "(1,64,64,1)"
    assert record["why"]
    result = run("--example", "gaussian", "--tolerance", 0.01)
    assert result.exit_code == 0
    assert result.stdout.startswith("gaussian(64): dense is best: ")


def test_outputs_are_written_and_can_be_read(tmp_path: Path) -> None:
    out, picture = tmp_path / "factors.safetensors", tmp_path / "factors.png"
    record = run_json("--example", "dft", "--n", 16, "--out", out, "--draw", picture)
    assert (record["out"], record["draw"]) == (str(out), str(picture))
    torch.testing.assert_close(SparseProduct.load(out).dense(), MATRICES["dft"](16).matrix)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [picture, out]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    for option, name in (("--out", "factors.safetensors"), ("--draw", "factors.svg")):
        path = tmp_path / name
        path.write_bytes(b"precious")
        result = run("--example", "hadamard", "--n", 8, option, path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert re.search(r"error: '.*' exists. Rule: nothing is overwritten without --force", result.stderr)
        assert path.read_bytes() == b"precious"
        assert run("--example", "hadamard", "--n", 8, option, path, "--force").exit_code == 0
        assert path.read_bytes() != b"precious"


def test_half_precision_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "half.npy", np.eye(8, dtype=np.float16))
    save_file({"w": torch.eye(8, dtype=torch.bfloat16)}, tmp_path / "half.safetensors")
    for name, dtype in (("half.npy", "float16"), ("half.safetensors", "bfloat16")):
        picture = tmp_path / f"{dtype}.png"
        record = run_json(tmp_path / name, "--chain", "butterfly(8)", "--draw", picture)
        assert record["dtype"] == dtype
        assert record["notes"] == [f"{dtype} input was computed in float32"]
        assert picture.exists()
