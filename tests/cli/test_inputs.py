"""Every kind of file gives the same matrix."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from safetensors.torch import save_file

from flatwing.cli.inputs import read_matrix
from flatwing.cli.masks import read_pairs

MATRIX = np.arange(12.0).reshape(3, 4) + 0.5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", MATRIX)
    Path("A.NPY").write_bytes(Path("a.npy").read_bytes())
    np.save("fortran.npy", np.asfortranarray(MATRIX))
    np.save("big_endian.npy", MATRIX.astype(">f8"))
    np.savez("a.npz", w=MATRIX, bias=MATRIX[0])
    np.savez_compressed("b.npz", **{"layer:0/w": MATRIX, "other": MATRIX})
    np.savez("a:b.npz", w=MATRIX)
    save_file({"w": torch.from_numpy(MATRIX), "bias": torch.ones(3)}, "a.safetensors")
    scipy.io.mmwrite("dense.mtx", MATRIX)
    scipy.io.mmwrite("sparse.mtx", scipy.sparse.coo_array(MATRIX))
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        "a.npy", "A.NPY", "fortran.npy", "big_endian.npy", "a.npz", "a.npz:w", "b.npz:layer:0/w", "a:b.npz",
        "a:b.npz:w", "a.safetensors", "a.safetensors:w", "dense.mtx", "sparse.mtx",
    ],
)  # fmt: skip
def test_same_matrix(folder: Path, source: str) -> None:
    matrix = read_matrix(source)
    assert matrix.dtype == torch.float64
    np.testing.assert_array_equal(matrix.numpy(), MATRIX)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64, np.complex128])
def test_dtype_is_kept(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "a.npy"
    np.save(path, MATRIX.astype(dtype))
    matrix = read_matrix(str(path))
    assert str(matrix.dtype) == f"torch.{np.dtype(dtype).name}"
    np.testing.assert_array_equal(matrix.numpy(), MATRIX.astype(dtype))


def test_junk_is_not_called_a_pickle(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz"):
        path = tmp_path / name
        path.write_bytes(b"ab")
        with pytest.raises(ValueError, match=r"is not a readable numpy a[a-z]+(, it may|: it does not begin as \.npy)"):
            read_matrix(str(path))
    with pytest.raises(ValueError, match=r"a\.npz' is not a readable numpy archive: it does not begin as \.npy and"):
        read_pairs(path)
    path.write_bytes(pickle.dumps([True]))
    with pytest.raises(ValueError, match=r"a\.npz' holds Python objects \(a pickle\), which can run code"):
        read_pairs(path)


def test_npy_that_is_an_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", MATRIX)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"is an .npz archive by its content. Rename it"):
        read_matrix(str(tmp_path / "a.npy"))
