"""Every bad input has its own message on stderr, exit code 2, nothing on stdout and no file left behind."""

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from flatwing.cli import app

CHAIN = ("--chain", "butterfly(8)")
GOOD = np.arange(64.0).reshape(8, 8)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command in `tmp_path` that must be refused, before any work; what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, works: bool = False) -> str:
        if not works:
            module = importlib.import_module("flatwing.cli.factorize")
            for name in ("choose", "factorize_matrix"):
                monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("work began"))
        before = sorted(tmp_path.rglob("*"))
        result = CliRunner().invoke(app, ["factorize", *map(str, arguments)])
        assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return result.stderr

    return run


def with_entry(value: float) -> np.ndarray:
    array = GOOD.copy()
    array[2, 3] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (with_entry(np.nan), r"a.npy: A has 1 entries that are NaN or Inf, the first is nan at \(2, 3\)"),
        (with_entry(np.inf), r"the first is inf at \(2, 3\)"),
        (with_entry(np.nan).astype(np.complex64), "NaN or Inf"),
        (np.zeros((0, 8)), r"shape \(0, 8\) is empty"),
        (np.array(1.0), r"shape \(\). Rule: a matrix \(2 dimensions\)"),
        (np.ones(8), r"shape \(8,\). Rule: a matrix \(2 dimensions\)"),
        (np.ones((2, 8, 8)), r"shape \(2, 8, 8\). Rule: a matrix \(2 dimensions\)"),
        (GOOD.astype(int), "A has dtype int64. Rule: a real or complex floating-point matrix"),
        (GOOD > 3, "A has dtype bool. Rule"),
        (GOOD.astype(str), "A has dtype <U.*Rule"),
        (GOOD.astype(np.longdouble), "A has dtype float128. Rule: at most float64"),
        (GOOD.astype("datetime64[s]"), r"A has dtype datetime64\[s\]. Rule"),
    ],
)
def test_bad_matrix(refused: Callable[..., str], array: np.ndarray, message: str) -> None:
    np.save("a.npy", array)
    assert re.search("error: a.npy: ", said := refused("a.npy", *CHAIN))
    assert re.search(message, said)


def test_pickles_are_never_read(refused: Callable[..., str]) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (Path("trapped"),)

    array = np.empty((1, 1), dtype=object)
    array[0, 0] = Trap()
    np.save("a.npy", array, allow_pickle=True)
    np.savez("b.npz", w=array, allow_pickle=True)
    Path("c.npy").write_bytes(__import__("pickle").dumps(Trap()))
    torch.save(torch.ones(8, 8), "d.pt")
    for source in ("a.npy", "b.npz:w", "c.npy"):
        assert "holds Python objects (a pickle), which can run code" in refused(source, *CHAIN)
    assert "its suffix is '.pt'" in (said := refused("d.pt", *CHAIN))
    assert "may be a pickle" in said
    assert not Path("trapped").exists()


def test_file_that_claims_more_than_it_holds(refused: Callable[..., str]) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }".ljust(117) + b"\n"
    for shape, message in ((b"-1, 4", "could only read"), (b"__import__('os').getcwd(),", "malformed")):
        content = header % shape
        Path("a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + bytes(80))
        assert message in refused("a.npy", *CHAIN)
    banner = "%%MatrixMarket matrix coordinate real general\n"
    Path("a.mtx").write_text(f"{banner}200000 200000 1\n1 1 2.5\n")
    assert "is 200000 x 200000. Rule: it is made dense" in refused("a.mtx", *CHAIN)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors", "a.mtx"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95])
def test_truncated_file(refused: Callable[..., str], name: str, keep: float) -> None:
    np.save("a.npy", GOOD)
    np.savez("a.npz", w=GOOD)
    save_file({"w": torch.ones(8, 8)}, "a.safetensors")
    Path("a.mtx").write_text("%%MatrixMarket matrix array real general\n8 8\n" + "1.5\n" * 64)
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: int(len(whole) * keep)])
    assert re.search(rf"'{name}' is not a readable .*, it may be truncated \(.*\)", refused(name, *CHAIN), re.DOTALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.npy",), r"there is no file 'no.npy'"),
        (("god.npy",), r"there is no file 'god.npy'. Did you mean 'good.npy'"),
        (("folder.npy",), r"'folder.npy': it is a folder"),
        (("good.txt",), r"'good.txt': its suffix is '.txt'. Rule: .npy, .npz:KEY, .safetensors:KEY or .mtx"),
        (("good.npy:w",), r"suffix"),
        ((), r"give an INPUT file or --example NAME, got neither"),
        (("good.npy", "--example", "dft"), r"got both"),
        (("good.npy", "--n", "8"), r"--n 8 is the size of an --example"),
        (("--example", "hilbrt"), r"unknown example matrix 'hilbrt', did you mean 'hilbert'"),
        (("--example", "hadamard", "--n", "63"), r"n=63. Rule: a power of two. The nearest good value is 64"),
        (("good.npy", *CHAIN, "--budget", "0.5"), r"--chain and --budget were given. Rule: at most one"),
        (("good.npy", *CHAIN, "--tolerance", "0.5"), r"--chain and --tolerance were given. Rule: at most one"),
        (("good.npy", "--budget", "half"), r"--budget half is not a number. Rule"),
        (("good.npy", "--chain", "buterfly(8)"), r"unknown chain family 'buterfly', did you mean 'butterfly'"),
        (("good.npy", "--chain", "butterfly"), r"'butterfly' is not a chain. Rule"),
        (("good.npy", "--chain", "(1,2,2,4)(3,2,2,1)"), r"factors 0 and 1 do not fit"),
        (("good.npy", "--tolerance", "0.1", "--order", "2,1"), r"not chosen yet. Give --chain too"),
        (("good.npy", *CHAIN, "--out", "p.npz"), r"its suffix is '.npz'. Rule: .safetensors"),
        (("good.npy", *CHAIN, "--draw", "p.pdf"), r"its suffix is '.pdf'. Rule: .png or .svg"),
        (("good.npy", *CHAIN, "--out", "no/p.safetensors"), r"the folder 'no' does not exist"),
        (("good.npy", *CHAIN, "--draw", "no/p.png"), r"the folder 'no' does not exist"),
        (("good.npy", *CHAIN, "--out", "folder.safetensors"), r"'folder.safetensors': it is a folder"),
        (("good.npy", *CHAIN, "--draw", "old.png"), r"'old.png' exists. Rule: nothing is overwritten without --force"),
        (("good.npy", *CHAIN, "--refine", "-1"), r"Invalid value for '--refine'"),
        (("good.npy", *CHAIN, "--format", "xml"), r"'xml' is not one of"),
        (("good.npy", *CHAIN, "--perm", "random"), r"'random' is not one of"),
        (("good.npy", "--chian", "x"), r"No such option"),
    ],
    ids=str,
)
def test_bad_argument(refused: Callable[..., str], arguments: tuple[str, ...], message: str) -> None:
    np.save("good.npy", GOOD)
    Path("good.txt").write_text("1 2\n3 4\n")
    Path("old.png").write_text("precious")
    for name in ("folder.npy", "folder.safetensors"):
        Path(name).mkdir()
    assert re.search(message, refused(*arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chain", "butterfly(16)"), r"16"),
        (("--chain", "(1,2,2,4)(2,2,2,2)(1,2,2,4)"), r"not chainable"),
        ((*CHAIN, "--order", "upwards"), r"--order upwards is unknown. Rule: best, l2r"),
        ((*CHAIN, "--order", "1,1"), r"order \(1, 1\) is not a permutation of the splits 1 to 2"),
        (("--tolerance", "-0.1"), r"tolerance"),
        (("--tolerance", "nan"), r"tolerance"),
        (("--budget", "0"), r"budget"),
        (("--budget", "-1.5"), r"budget"),
        (("--budget", "nan"), r"budget"),
    ],
    ids=str,
)
def test_the_library_refuses(refused: Callable[..., str], arguments: tuple[str, ...], message: str) -> None:
    np.save("good.npy", GOOD)
    said = refused("good.npy", *arguments, "--out", "p.safetensors", works=True)
    assert re.search(rf"^error: .*{message}", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.npz", r"'a.npz' holds 2 matrices: left \(8x8\), right \(8x4\), bias \(8\). Name one, such as 'a.npz:left'"),
        ("a.npz:rihgt", r"'a.npz' has no array 'rihgt', did you mean 'right'\? It holds left \(8x8\)"),
        ("a.npz:bias", r"a.npz:bias: A has shape \(8,\)"),
        ("vectors.npz", r"'vectors.npz' holds no matrix: u \(8\), v \(4\)"),
        ("empty.npz", r"'empty.npz' holds no matrix: nothing"),
        ("a.safetensors", r"'a.safetensors' holds 2 matrices: .*Name one, such as"),
        ("a.safetensors:rihgt", r"'a.safetensors' has no array 'rihgt', did you mean 'right'"),
        ("no.npz:left", r"there is no file 'no.npz'"),
    ],
)
def test_keys(refused: Callable[..., str], source: str, message: str) -> None:
    arrays = {"left": GOOD, "right": GOOD[:, :4].copy(), "bias": GOOD[0]}
    np.savez("a.npz", **arrays)
    np.savez("vectors.npz", u=np.ones(8), v=np.ones(4))
    np.savez("empty.npz")
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, "a.safetensors")
    assert re.search(message, refused(source, *CHAIN))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(refused: Callable[..., str]) -> None:
    Path("locked").mkdir(mode=0o555)
    assert "no permission in 'locked'" in refused("--example", "dft", "--out", "locked/p.safetensors")


def test_matrix_that_does_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("flatwing.cli.factorize")

    def too_large(*arguments: object, **named: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8796093022208 bytes.")

    monkeypatch.setattr(module, "factorize_matrix", too_large)
    result = CliRunner().invoke(app, ["factorize", "--example", "hadamard"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: out of memory" in result.stderr
