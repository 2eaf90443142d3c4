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
from .save import write_json

STATE, REPLACED = "options.json", "replaced"  # of the work folder: whose it is; the output that stood there before
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
            raise _exists(out)
        if left and left["options"] != self.options:
            old = left["options"]
            if not overwrite:
                changed = [key for key in {**old, **self.options} if old.get(key) != self.options.get(key)]
                raise ValueError(
                    f"{str(self.folder)!r} holds an unfinished run with another {changed[0]}. Run it again with the "
                    "same options to finish it, or give --overwrite to start anew."
                )
            self.discard()
        if self.folder.exists():
            for stale in self.folder.rglob(".*"):  # temporary files of a run that was killed
                if stale.is_file():
                    stale.unlink()
        (self.folder / "layers").mkdir(parents=True, exist_ok=True)
        self.write(STATE, {"options": self.options, "finished": False})

    @property
    def target(self) -> Path:
        """Where the output is put together; anew in each run."""
        return self.folder / "out"

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None

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

    def _layer(self, name: str) -> Path:
        return self.folder / "layers" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"

    def load(self, name: str, like: nn.Module) -> tuple[nn.Module, LayerResult] | None:
        """See `layerwise.Store`."""
        path = self._layer(name)
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
        with replacing(self._layer(name)) as temporary:
            metadata = {"config": json.dumps(config), "result": json.dumps(result.to_dict())}
            save_file(tensors, temporary, metadata=metadata)

    def begin_output(self) -> Path:
        """An empty folder for the output."""
        if self.target.exists():
            shutil.rmtree(self.target)
        self.target.mkdir()
        return self.target

    def finish(self) -> None:
        """Rename the output into place; what was there before is removed only afterwards."""
        if not self.finished:
            self.write(STATE, {"options": self.options, "finished": True})
            if self.out.exists():
                os.replace(self.out, self.folder / REPLACED)
            os.replace(self.target, self.out)
        self.discard(trained=True)

    def discard(self, *, trained: bool = False) -> None:
        """Remove what a run has kept; trained examples serve other runs, so they go only if `trained`."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != STATE and (trained or not path.name.startswith(TRAINED)):
                path.unlink()
        (self.folder / STATE).unlink(missing_ok=True)  # last, so that a folder half removed is known for what it is
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def partial(out: Path) -> Path:
    """The work folder beside an output."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse, before any work, an output that could not be written or would take the place of what is not ours.

    Raises `ValueError` if the folder around it is missing or read-only, if it exists (unless `overwrite`, and then it
    must be empty or hold a flatwing.json), or if the name of the work folder is taken by something else. An output that
    a killed run had set aside is put back.
    """
    if not out.parent.is_dir():
        raise ValueError(f"the folder {str(out.parent)!r} does not exist. Make it first, or choose another OUT.")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"the folder {str(out.parent)!r} cannot be written. Choose another OUT.")
    folder = partial(out)
    foreign = folder.exists() and not folder.is_dir()
    if folder.is_dir() and not _state(folder):
        files = [path.name for path in folder.rglob("*") if path.is_file()]
        foreign = any(not name.startswith((TRAINED, ".")) for name in files)
    if foreign:
        raise ValueError(
            f"{str(folder)!r} is in the way: it is no unfinished run of this kind. Rule: that name is free; move it "
            "away or choose another OUT."
        )
    if (folder / REPLACED).exists() and not out.exists():
        os.replace(folder / REPLACED, out)
    if not out.exists() or _finished(out):
        return
    if not overwrite:
        raise _exists(out)
    if not out.is_dir() or (any(out.iterdir()) and not (out / "flatwing.json").is_file()):
        raise ValueError(
            f"{str(out)!r} is not a directory that flatwing wrote, so it is not overwritten. Rule: --overwrite "
            "replaces directories with a flatwing.json; choose another OUT."
        )


def _exists(out: Path) -> ValueError:
    return ValueError(f"{str(out)!r} exists. Rule: nothing is overwritten without --overwrite.")


def _state(folder: Path) -> dict[str, Any]:
    """Options of the run in a work folder and whether it is finished; empty if it is not one."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def _finished(out: Path) -> bool:
    """Whether a run had renamed its output into place and was killed while it removed the rest."""
    return bool(_state(partial(out)).get("finished")) and out.exists() and not (partial(out) / "out").exists()


def fingerprint(value: torch.Tensor | bytes) -> str:
    """A short hash, for options that hold data."""
    data = value if isinstance(value, bytes) else value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]
