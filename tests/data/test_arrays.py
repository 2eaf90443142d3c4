"""Arrays of a user: read without unpickling, refused by name where they are no data."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatwing.data import arrays as module
from flatwing.data.arrays import as_rows, as_tokens, read_arrays


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_npz_and_npy_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=np.arange(3), z=np.arange(9))
    np.savez_compressed(tmp_path / "b.npz", tokens=np.arange(5))
    np.save(tmp_path / "c.npy", np.arange(6, dtype=np.uint16))
    assert {k: v.shape for k, v in read_arrays(tmp_path / "a.npz").items()} == {"x": (3, 3), "y": (3,)}
    assert read_arrays(tmp_path / "b.npz")["tokens"].tolist() == list(range(5))
    tokens = read_arrays(tmp_path / "c.npy")["tokens"]
    assert tokens.tolist() == list(range(6))
    assert not tokens.flags.writeable  # mapped: the file cannot be changed


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = np.array([Bomb()], dtype=object)
    np.save("a.npy", bomb, allow_pickle=True)
    np.savez("b.npz", x=bomb, y=np.arange(1))
    Path("c.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.npz", "c.npy"):
        with pytest.raises(ValueError, match="pickled objects are not read") as refusal:
            read_arrays(name)
        assert "allow_pickle" not in str(refusal.value)  # nor is it told how to
        assert {"a.npy": "Python objects", "b.npz": "it holds objects", "c.npy": "it does not begin as one"}[
            name
        ] in str(refusal.value)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_damaged_files_are_refused(tmp_path: Path, ending: str, share: float) -> None:
    file = tmp_path / f"a.{ending}"
    if ending == "npy":
        np.save(file, np.arange(1000))
    else:
        np.savez_compressed(file, tokens=np.random.default_rng(0).integers(99, size=1000))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"is not readable .*Rule: a whole .npy or .npz file"):
        read_arrays(file)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", tokens=np.random.default_rng(0).integers(99, size=1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="is not readable"):
        read_arrays(tmp_path / "a.npz")


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("tokens.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (1 << 45,)})
    with pytest.raises(ValueError, match="is not readable"):
        read_arrays(tmp_path / "a.npz")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_arrays(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", images=np.eye(2), y=np.arange(2))
    with pytest.raises(ValueError, match=r"holds images, y. Rule: arrays x and y, or tokens"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", ">f8", "float64"])
def test_rows_become_float32(dtype: str) -> None:
    x, y = as_rows(np.arange(12).reshape(3, 2, 2).astype(dtype), np.array([2, 0, 1], dtype=np.uint8), scale=2)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(x, torch.arange(12.0).reshape(3, 2, 2) / 2)
    assert y.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(3), np.arange(3), r"x has shape \(3,\), y has \(3,\). Rule: x \(n, ...\)"),
        (np.zeros((3, 2)), np.arange(2), r"x has shape \(3, 2\), y has \(2,\)"),
        (np.zeros((3, 2)), np.zeros((3, 1), dtype=int), r"y has \(3, 1\)"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), r"x has shape \(0, 2\)"),
        (np.array([[0.0, np.nan], [np.inf, 0.0]]), np.arange(2), r"2 entries.*the first is nan at \(0, 1\)"),
        (np.array([[1e300]]), np.zeros(1, dtype=int), r"not finite in float32, the first is 1e\+300 at \(0, 0\)"),
        (np.zeros((2, 1)), np.array([-1, 1]), "labels from -1 to 1"),
        (np.zeros((2, 1)), np.array([0, 1 << 20]), "labels from 0 to 1048576.*np.unique"),
    ],
)
def test_rows_that_are_none_are_refused(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rows(x, y)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_scale_is_a_positive_number(scale: float) -> None:
    with pytest.raises(ValueError, match="scale is"):
        as_rows(np.zeros((2, 1)), np.arange(2), scale)


def test_dtypes_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"x has dtype complex128. Rule: real numbers"):
        as_rows(np.zeros((2, 1), dtype=complex), np.arange(2))
    with pytest.raises(TypeError, match=r"y has dtype float64. Rule: whole numbers"):
        as_rows(np.zeros((2, 1)), np.zeros(2))
    labels = r"np\.unique\(y, return_inverse=True\)\[1\]\.$"
    for y, hint in (
        ([1.0, 2.0], r"y\.astype\('int64'\)\.$"),
        ([0.5, 1.0], labels),
        ([np.inf, 1.0], labels),
        (["a", "b"], labels),
    ):
        with pytest.raises(TypeError, match=f"Write {hint}"):
            as_rows(np.zeros((2, 1)), np.array(y))
    with pytest.raises(TypeError, match="tokens have dtype float64"):
        as_tokens(np.zeros(9))
    with pytest.raises(TypeError, match="tokens have dtype <U1"):
        as_tokens(np.array(list("text")))


def test_tokens_are_looked_at_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BITE", 7)
    tokens = np.arange(100) % 10
    assert as_tokens(tokens)[1] == 10
    assert as_tokens(tokens, vocab=64)[1] == 64
    tokens[50] = 11
    with pytest.raises(ValueError, match=r"tokens go from 0 to 11. Rule: 0 ... vocab - 1, vocab is at most 11"):
        as_tokens(tokens, vocab=11)
    tokens[-1] = -3
    with pytest.raises(ValueError, match="tokens go from -3 to 11"):
        as_tokens(tokens)


def test_tokens_are_one_row() -> None:
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 2\). Rule: one row"):
        as_tokens(np.zeros((2, 2), dtype=int))
    with pytest.raises(ValueError, match=r"tokens have shape \(0,\)"):
        as_tokens(np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="tokens go from 0 to 18446744073709551615"):
        as_tokens(np.array([0, 2**64 - 1], dtype=np.uint64))
