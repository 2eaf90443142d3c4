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


TRAINED = "example-"  # files of this prefix are made before a run begins, and serve any run


@final
class Work:
    """`OUT.partial` beside the output: results of stages as JSON, finished layers, and the output until it is renamed.

    Everything is written under a temporary name and renamed; a folder of another run (other options, other weights) is
    refused unless `overwrite`. Raises `ValueError` for an output that exists, unless `overwrite`.
    """

    def __init__(self, out: Path, options: Mapping[str, Any], overwrite: bool) -> None:
        self.out, self.overwrite = out, overwrite
        self.folder = out.with_name(out.name + ".partial")
        self.options = json.loads(json.dumps(options))
        self.finished = False
        if not out.parent.is_dir():
            raise ValueError(f"the folder {str(out.parent)!r} does not exist. Make it first, or choose another OUT.")
        left = self._read("options.json") if self.folder.is_dir() else None
        if out.exists() and left == self.options and not overwrite and (out / "result.json").is_file():
            self.finished = True  # killed between the last rename and cleaning up
            return
        if out.exists() and not overwrite:
            raise ValueError(f"{str(out)!r} exists. Rule: nothing is overwritten without --overwrite.")
        if self.folder.exists() and left != self.options:
            if not overwrite and left is not None:
                changed = [key for key in {**left, **self.options} if left.get(key) != self.options.get(key)]
                raise ValueError(
                    f"{str(self.folder)!r} holds an unfinished run with another {changed[0]}. Run it again with the "
                    "same options to finish it, or give --overwrite to start anew."
                )
            _clear(self.folder)
        if self.folder.exists():
            for stale in self.folder.rglob(".*"):  # temporary files of a run that was killed
                if stale.is_file():
                    stale.unlink()
        (self.folder / "layers").mkdir(parents=True, exist_ok=True)
        self.write("options.json", self.options)

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
            old = self.folder / "replaced"
            if self.out.exists():
                if old.exists():
                    shutil.rmtree(old)
                os.replace(self.out, old)
            os.replace(self.target, self.out)
        shutil.rmtree(self.folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(TRAINED):
            path.unlink()


def fingerprint(value: torch.Tensor | bytes) -> str:
    """A short hash, for options that hold data."""
    data = value if isinstance(value, bytes) else value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]
