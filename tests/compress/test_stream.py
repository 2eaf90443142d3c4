"""Files written tensor by tensor: the bytes of the library, flat memory, all or nothing."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typing_extensions import override

from flatwing.compress.header import DTYPES
from flatwing.compress.stream import Entry, write_stream


def entries(tensors: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(name, t.dtype, tuple(t.shape), lambda t=t: t) for name, t in tensors.items()]


def every_kind() -> dict[str, torch.Tensor]:
    tensors = {}
    for place, (code, dtype) in enumerate(DTYPES.items()):
        values = torch.randint(0, 2 if dtype == torch.bool else 64, (3, 2 * dtype.itemsize), dtype=torch.uint8)
        for name, tensor in {
            "full": values.view(dtype),
            "empty": values[:0].view(dtype),
            "one": values.view(dtype)[0, 0],
        }.items():
            tensors[f"{name}.{(7 * place) % 19}.{code}"] = tensor.clone()
    return tensors


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = every_kind()
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    size = write_stream(tmp_path / "ours.safetensors", entries(tensors), {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert size == sum(t.nbytes for t in tensors.values())


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    tensors = every_kind()
    write_stream(tmp_path / "a.safetensors", entries(tensors))
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    complex_ = torch.randn(2, 2, dtype=torch.complex64)
    tensors = {
        "t": whole.mT,
        "column": whole[:, 1],
        "conjugate": complex_.conj(),
        "parameter": torch.nn.Parameter(whole),
    }
    write_stream(tmp_path / "a.safetensors", entries(tensors))
    read = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor.detach()) for name, tensor in tensors.items())


def test_nothing_is_a_file_too(tmp_path: Path) -> None:
    assert write_stream(tmp_path / "a.safetensors", [], {"why": "because"}) == 0
    assert load_file(tmp_path / "a.safetensors") == {}


def test_one_tensor_at_a_time_is_alive(tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []

    def produce() -> torch.Tensor:
        assert sum(ref() is not None for ref in alive) == 0
        tensor = torch.ones(100)
        alive.append(weakref.ref(tensor))
        return tensor

    write_stream(tmp_path / "a.safetensors", [Entry(str(i), torch.float32, (100,), produce) for i in range(5)])
    assert len(alive) == 5


@pytest.mark.parametrize("made", [torch.ones(2, 3), torch.ones(3, 2).double()])
def test_a_tensor_that_breaks_its_promise(tmp_path: Path, made: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"'a' is torch\.float\d+ of shape .*Rule: torch.float32 of shape \(3, 2\)"):
        write_stream(tmp_path / "a.safetensors", [Entry("a", torch.float32, (3, 2), lambda: made)])
    assert list(tmp_path.iterdir()) == []


def test_names_and_dtypes_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    def never() -> torch.Tensor:
        raise AssertionError("produced")

    one = Entry("a", torch.float32, (), never)
    with pytest.raises(ValueError, match=r"two tensors are called 'a'"):
        write_stream(tmp_path / "a.safetensors", [one, one])
    with pytest.raises(ValueError, match=r"'b' is torch\.complex128\. Rule: a dtype of safetensors"):
        write_stream(tmp_path / "a.safetensors", [Entry("b", torch.complex128, (), never)])
    with pytest.raises(ValueError, match=r"does not exist\. Make it first"):
        write_stream(tmp_path / "none" / "a.safetensors", [])


class FullDisk(io.BufferedWriter):
    """A file on a disk with room for a few bytes."""

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.room = room

    @override
    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("room", [0, 200])
def test_disk_full_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"before")
    opened = Path.open

    def full(self: Path, mode: str = "r", **given: Any) -> Any:
        return FullDisk(self, room) if mode == "wb" else opened(self, mode, **given)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        OSError, match=r"could not write '.*a\.safetensors' \(No space left.*nothing was changed"
    ) as error:
        write_stream(target, entries({"a": torch.ones(10), "b": torch.ones(100)}))
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert target.read_bytes() == b"before"
