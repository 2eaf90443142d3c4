"""Work: the folder in which a run keeps what is finished, so that it survives being killed at any moment."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..core import replacing
from ..nn import StructuredLayer, layer_from_config
from .layerwise import LayerResult
from .place import exists, files_in, is_temporary, require_free, require_parent
from .save import write_json

FORMAT = "flatwing.work"
STATE, REPLACED = "options.json", "replaced"  # of the work folder: whose it is; the output that stood there before
FOLDERS, SUFFIXES = ("layers", "out", REPLACED), (".json", ".safetensors")  # what a run makes in it
TRAINED = "example-"  # files of this prefix are made before a run begins, and serve any run


@final
class Work:
    """`OUT.partial` beside the output: results of stages as JSON, finished layers, and the output until it is renamed.

    Everything is written under a temporary name and renamed; a folder of another run (other options, other weights) is
    refused unless `overwrite`. Raises `ValueError` for an output that exists, unless `overwrite`.
    """

    def __init__(self, out: Path, options: Mapping[str, Any], overwrite: bool) -> None:
        check_output(out, overwrite)
        self.out, self.folder = out, partial(out)
        self.options = json.loads(json.dumps(options))
        left = _state(self.folder)
        self.finished = _finished(out) and left["options"] == self.options  # killed while cleaning up
        if self.finished:
            return
        if out.exists() and not overwrite:
            raise exists(out)
        if left and left["options"] != self.options:
            old = left["options"]
            if not overwrite:
                changed = [key for key in {**old, **self.options} if old.get(key) != self.options.get(key)]
                raise ValueError(
                    f"{str(self.folder)!r} holds an unfinished run with another {changed[0]}. Run it again with the "
                    "same options to finish it, or give --overwrite to start anew."
                )
            self.discard()
        (self.folder / "layers").mkdir(parents=True, exist_ok=True)
        for stale in (*self.folder.iterdir(), *(self.folder / "layers").iterdir()):
            if is_temporary(stale):  # of a run that was killed
                stale.unlink()
        self._write_state(finished=False)

    @property
    def target(self) -> Path:
        """Where the output is put together; anew in each run."""
        return self.folder / "out"

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _write_state(self, *, finished: bool) -> None:
        self.write(STATE, {"format": FORMAT, "options": self.options, "finished": finished})

    def write(self, name: str, data: Any) -> None:
        """Keep the result of a stage."""
        write_json(self.folder / name, data)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The kept result of a stage, or a new one, as JSON gives it back."""
        kept = self._read(f"{name}.json")
        if kept is None:
            self.write(f"{name}.json", compute())
            kept = self._read(f"{name}.json")
        return kept

    def layers(self, plan: Mapping[str, str]) -> Layers:
        """Where the layers of a plan (their structures by name) are kept when they are finished."""
        return Layers(self.folder / "layers", plan)

    @property
    def has_layers(self) -> bool:
        """Whether a layer is finished: the part of a run that takes longest."""
        return any((self.folder / "layers").iterdir())

    def begin_output(self) -> Path:
        """An empty folder for the output."""
        if self.target.exists():
            shutil.rmtree(self.target)
        self.target.mkdir()
        return self.target

    def finish(self) -> None:
        """Rename the output into place; what was there before is removed only afterwards."""
        if not self.finished:
            self._write_state(finished=True)
            if self.out.exists():
                os.replace(self.out, self.folder / REPLACED)
            os.replace(self.target, self.out)
        self.discard(trained=True)

    def discard(self, *, trained: bool = False) -> None:
        """Remove what a run has kept, nothing else; trained examples serve other runs, so they go only if `trained`."""
        for path in self.folder.iterdir():
            if path.name in FOLDERS:
                shutil.rmtree(path)
            elif path.is_dir() or path.suffix not in SUFFIXES or path.name == STATE:
                continue
            elif trained or not path.name.startswith(TRAINED):
                path.unlink()
        (self.folder / STATE).unlink(missing_ok=True)  # last, so that a folder half removed is known for what it is
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


@final
class Layers:
    """Finished layers in a folder, a `layerwise.Store`; those of another plan are not found.

    Each layer is fitted behind those before it, so that one of another plan would not fit, whatever its structure.
    """

    def __init__(self, folder: Path, plan: Mapping[str, str]) -> None:
        self.folder, self.plan = folder, json.dumps(list(plan.items()))

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256((self.plan + name).encode()).hexdigest()[:24]}.safetensors"

    def load(self, name: str, like: nn.Module) -> tuple[nn.Module, LayerResult] | None:
        """See `layerwise.Store`."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError:
            path.unlink()  # not one of ours: the renaming is atomic
            return None
        config = json.loads(metadata["config"])
        if config["kind"] == "dense":
            layer = copy.deepcopy(like)
        else:
            layer = layer_from_config(config, dtype=next(iter(tensors.values())).dtype)
        layer.load_state_dict(tensors)
        return layer, LayerResult(**json.loads(metadata["result"]))

    def save(self, name: str, layer: nn.Module, result: LayerResult) -> None:
        """See `layerwise.Store`."""
        config = layer.config() if isinstance(layer, StructuredLayer) else {"kind": "dense"}
        tensors = {key: value.detach().cpu().contiguous() for key, value in layer.state_dict().items()}
        with replacing(self._path(name)) as temporary:
            metadata = {"config": json.dumps(config), "result": json.dumps(result.to_dict())}
            save_file(tensors, temporary, metadata=metadata)


def partial(out: Path) -> Path:
    """The work folder beside an output."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse, before any work, an output that could not be written or would take the place of what is not ours.

    Raises `ValueError` if the folder around it is missing or read-only, if it exists (unless `overwrite`, and then it
    must be a directory, no link, that is empty or holds a flatwing.json), or if the name of the work folder is taken by
    something else. An output that a killed run had set aside is put back.
    """
    require_parent(out)
    folder = partial(out)
    if folder.is_symlink() or (folder.exists() and not _is_ours(folder)):
        raise ValueError(
            f"{str(folder)!r} is in the way: it is no unfinished run of this kind. Rule: that name is free; move it "
            "away or choose another OUT."
        )
    if (folder / REPLACED).exists() and not os.path.lexists(out):
        os.replace(folder / REPLACED, out)
    if not _finished(out):
        require_free(out, overwrite=overwrite)


def _is_ours(folder: Path) -> bool:
    """Whether a folder says that it is a work folder, or was made for one that was killed before it could say so."""
    if not folder.is_dir():
        return False

    def early(path: Path) -> bool:  # what may be there before the state is
        known = path.name.startswith(TRAINED) and path.suffix == ".safetensors"
        return path.parent == folder and (known or is_temporary(path, "options", TRAINED))

    return bool(_state(folder)) or all(early(path) for path in files_in(folder))


def _state(folder: Path) -> dict[str, Any]:
    """Options of the run in a work folder and whether it is finished; empty if it is not one."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(state, dict) and state.get("format") == FORMAT and isinstance(state.get("options"), dict)
    return state if ours else {}


def _finished(out: Path) -> bool:
    """Whether a run had renamed its output into place and was killed while it removed the rest."""
    folder = partial(out)
    whole = out.is_dir() and not out.is_symlink() and not (folder / "out").exists()
    return whole and bool(_state(folder).get("finished"))


def fingerprint(*values: Any) -> str:
    """A short hash of tensors and plain data, for options that hold data; of other objects only the kind counts.

    >>> fingerprint(torch.ones(2)) == fingerprint(torch.ones(2, 1)), fingerprint({"a": 1}) == fingerprint({"a": 1})
    (False, True)
    """
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(type(value).__name__.encode() + b"\0")
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous()
            digest.update(f"{data.dtype} {tuple(data.shape)}".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            add([part for item in value.items() for part in item])
        elif isinstance(value, (list, tuple)):
            for part in (len(value), *value):
                add(part)
        elif isinstance(value, (str, bytes, int, float, bool, type(None))):
            digest.update(repr(value).encode() + b"\0")

    add(values)
    return digest.hexdigest()[:16]
