"""Checkpoint: the tensors of a model on disk, one at a time; nothing but safetensors and JSON is ever read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final

import torch
from jaxtyping import Shaped

from ..core import parse_json
from .header import TensorInfo, read_header

SINGLE, INDEX, CONFIG, OURS = "model.safetensors", "model.safetensors.index.json", "config.json", "flatwing.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SLAB = 1 << 24  # bytes that are looked at in one go


@final
class Checkpoint:
    """Named tensors in a Hugging Face style directory or in one safetensors file.

    `names` stand in the order of the files and of the values in them; `files` are the safetensors files, `metadata`
    theirs (merged), `config` and `flatwing` the parsed `config.json` and `flatwing.json` (None where there is none).
    """

    def __init__(self, path: Path, files: dict[Path, tuple[dict[str, TensorInfo], dict[str, str]]]) -> None:
        self.path = path
        self.files = tuple(files)
        self.metadata = {key: value for _, metadata in files.values() for key, value in metadata.items()}
        self._tensors: dict[str, TensorInfo] = {}
        for tensors, _ in files.values():
            for name, info in tensors.items():
                if name in self._tensors:
                    raise ValueError(
                        f"{name!r} is in {self._tensors[name].file.name!r} and in {info.file.name!r}. "
                        "Rule: each tensor in one shard only. Remove the shard that does not belong."
                    )
                self._tensors[name] = info
        folder = path if path.is_dir() else None
        self.config = _object(folder / CONFIG) if folder and (folder / CONFIG).exists() else None
        self.flatwing = _object(folder / OURS) if folder and (folder / OURS).exists() else None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read the headers of a directory (`model.safetensors` or an index of shards) or of one `.safetensors` file.

        Raises `ValueError` if there is nothing to read or it is a pickle, for a directory without `config.json` (unless
        its `flatwing.json` needs none), a file outside of the directory, a truncated or unreadable file, and shards
        that do not hold what their index says. Cost: the headers only.

        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a.safetensors"
        ...     save_file({"fc.weight": torch.ones(2, 3)}, file)
        ...     checkpoint = Checkpoint.open(file)
        ...     print(checkpoint.names, checkpoint.total_bytes, checkpoint.tensor("fc.weight").sum())
        ('fc.weight',) 24 tensor(6.)
        """
        path = Path(path)
        if path.is_file():
            if path.suffix in PICKLES:
                raise _pickles(path.name)
            if path.suffix != ".safetensors":
                raise ValueError(f"{str(path)!r} is not a checkpoint. Rule: a .safetensors file or a model directory.")
            return cls(path, {path: read_header(path)})
        if not path.is_dir():
            raise ValueError(
                f"there is no {str(path)!r}. Rule: a model directory or a .safetensors file; check the path."
            )
        shards = _shards(path)
        checkpoint = cls(path, {file: read_header(file) for file in shards})
        for file, names in shards.items():
            held = {info.name for info in checkpoint._tensors.values() if info.file == file}
            if names is not None and (missing := sorted(names - held)):
                raise _index(f"says that {missing[0]!r} is in {file.name!r}, which does not hold it")
            if names is not None and (extra := sorted(held - names)):
                raise _index(f"does not say that {extra[0]!r} is in {file.name!r}, which holds it")
        ours = (checkpoint.flatwing or {}).get("architecture")
        if checkpoint.config is None and not (isinstance(ours, dict) and ours.get("kind") != "transformers"):
            raise ValueError(
                f"missing config.json in {str(path)!r}: the architecture is unknown. Rule: a model directory has one. "
                f"Copy it from where the model comes from, or name the weights alone: {str(checkpoint.files[0])!r}."
            )
        return checkpoint

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(self._tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all values."""
        return sum(info.nbytes for info in self._tensors.values())

    @property
    def fingerprint(self) -> str:
        """Changes when a file is written again: whether interrupted work still fits. Values are not read."""
        stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in self.files]
        table = [(t.name, str(t.dtype), t.shape, t.file.name, t.offset) for t in self._tensors.values()]
        return hashlib.sha256(json.dumps([stats, table]).encode()).hexdigest()

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape, bytes and place of a tensor; raises `ValueError` for an unknown name."""
        if name not in self._tensors:
            raise ValueError(f"there is no tensor {name!r} in {str(self.path)!r}. Rule: one of its .names.")
        return self._tensors[name]

    def tensor(self, name: str) -> Shaped[torch.Tensor, ...]:
        """Read one tensor, as stored. Memory: that tensor."""
        info = self.info(name)
        return _read(info, 0, info.nbytes).view(info.dtype).reshape(info.shape)

    def slabs(self, name: str) -> Iterator[Shaped[torch.Tensor, " part"]]:
        """The values of a tensor in order, a few megabytes at a time."""
        info = self.info(name)
        for start in range(0, info.nbytes, SLAB):  # a multiple of every itemsize
            yield _read(info, start, min(SLAB, info.nbytes - start)).view(info.dtype)

    def require_finite(
        self, progress: Callable[[int, int], None] | None = None, names: Sequence[str] | None = None
    ) -> None:
        """Raise `ValueError` naming the first tensor (of all, or of `names`) with NaN or Inf.

        Memory: a few megabytes; time: one pass.
        """
        names = self.names if names is None else names
        for done, name in enumerate(names, start=1):
            info = self.info(name)
            if info.dtype.is_floating_point or info.dtype.is_complex:
                bad = sum(_not_finite(slab) for slab in self.slabs(name))
                if bad:
                    raise ValueError(
                        f"{name!r} in {info.file.name!r} has {bad} values that are NaN or Inf. Rule: all weights are "
                        "finite. The training diverged or the file is damaged; take an earlier checkpoint."
                    )
            if progress is not None:
                progress(done, len(names))


def _read(info: TensorInfo, start: int, count: int) -> torch.Tensor:
    data = torch.empty(count, dtype=torch.uint8)
    with info.file.open("rb") as file:
        file.seek(info.offset + start)
        view = memoryview(data.numpy().data)
        while view:  # one call reads at most 2 GiB
            got = file.readinto(view)
            if not got:
                raise ValueError(f"{str(info.file)!r} became shorter while it was read. Start again when it is whole.")
            view = view[got:]
    return data


def _not_finite(values: torch.Tensor) -> int:
    if values.dtype.is_complex:
        values = torch.view_as_real(values)
    if values.dtype.itemsize == 1:  # torch has no isfinite for 8-bit floats
        values = values.float()
    return values.numel() - int(torch.isfinite(values).sum())


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a directory, and the names that the index expects in each (None: there is no index)."""
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return {_inside(folder, SINGLE): None}
    if not (folder / INDEX).exists():
        raise _nothing(folder)
    named = _object(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise _index('has no "weight_map" from names of tensors to names of files')
    shards: dict[Path, set[str] | None] = {}
    for file in sorted(set(named.values())):
        shards[_inside(folder, file)] = {name for name, own in named.items() if own == file}
    return shards


def _inside(folder: Path, name: str) -> Path:
    """The file of this name; it must lie in the folder, or where the Hugging Face cache links it to."""
    path = folder / name
    plain = not PurePosixPath(name).is_absolute() and not PureWindowsPath(name).drive and name and "\0" not in name
    if not plain or not lies_within(path, folder):
        raise ValueError(
            f"{name!r} lies outside of {str(folder)!r}. Rule: all files of a checkpoint lie in its directory. "
            "Copy the file there, or do not trust this checkpoint."
        )
    if not path.is_file():
        raise ValueError(f"{INDEX} names {name!r}, which is missing in {str(folder)!r}. Download that shard again.")
    if path.suffix != ".safetensors":
        raise _pickles(name) if path.suffix in PICKLES else _index(f"names {name!r}, which is no safetensors file")
    return path


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a file, links followed, lies in the folder, or where the Hugging Face cache keeps the folder's files."""
    home = folder.resolve()
    real = path.resolve()
    cached = home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"
    return real.is_relative_to(home) or (cached and path.parent.resolve() == home)


def _nothing(folder: Path) -> ValueError:
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    if pickles := [name for name in files if Path(name).suffix in PICKLES]:
        return _pickles(pickles[0])
    others = [name for name in files if name.endswith(".safetensors")]
    step = f"Name one file: {str(folder / others[0])!r}." if others else "Check the path."
    return ValueError(f"{str(folder)!r} holds neither {SINGLE} nor {INDEX}. Rule: one of them. {step}")


def _pickles(name: str) -> ValueError:
    return ValueError(
        f"{name!r} is a pickle, which can run code when it is read. Rule: safetensors only. Convert it where you trust "
        "it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors'), or "
        "model.save_pretrained(DIR) of transformers."
    )


def _index(why: str) -> ValueError:
    return ValueError(f"{INDEX} {why}. Rule: the index names each tensor of its shards. Download the model again.")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not readable JSON: {error}. Rule: a JSON object. Write it again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} holds a {type(value).__name__}. Rule: a JSON object. Write it again.")
    return value
