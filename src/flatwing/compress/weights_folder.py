"""The directory that weights-only compression leaves: tensors shard by shard, and what is known about each layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from .checkpoint import INDEX, OURS, PICKLES, SINGLE, Checkpoint, lies_within
from .selection import Matrix
from .stream import Entry, write_stream

# of the source these stay behind: weights in other formats, and what this directory has of its own
NOT_COPIED = (".safetensors", ".index.json", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", *PICKLES)
OWN = (OURS, "README.md", "result.json", "report.html")


def assemble(
    checkpoint: Checkpoint, matrices: Sequence[Matrix], parts: Mapping[str, Path], job: Mapping[str, Any], folder: Path
) -> None:
    """Fill the empty `folder` from the source and the part files of replaced layers; memory: one tensor."""
    opened = {name: Checkpoint.open(part) for name, part in parts.items()}
    about = {name: json.loads(part.metadata["layer"]) for name, part in opened.items()}
    replaced = {f"{name}.weight": part for name, part in opened.items() if "config" in about[name]}
    placed: dict[str, str] = {}
    sizes = [0, 0]
    for file in checkpoint.files:
        own = [checkpoint.info(name) for name in checkpoint.names if checkpoint.info(name).file == file]
        entries = []
        for info in own:
            home = replaced.get(info.name)
            names = [info.name] if home is None else home.names
            entries += [_entry(home or checkpoint, name) for name in names]
        target = SINGLE if len(checkpoint.files) == 1 else file.name
        metadata = {"format": "pt"} | checkpoint.metadata
        sizes[0] += write_stream(folder / target, entries, metadata)
        sizes[1] += sum(prod(entry.shape) for entry in entries)
        placed |= {entry.name: target for entry in entries}
    if len(checkpoint.files) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sizes[0]}, "weight_map": dict(sorted(placed.items()))})
    if checkpoint.path.is_dir():
        _copy_others(checkpoint.path, folder)
    layers = [_layer(matrix, about.get(matrix.name)) for matrix in matrices]
    _write_json(folder / OURS, _description(checkpoint, matrices, layers, about, job))
    result = _result(checkpoint, layers, job, parameters=sizes[1], nbytes=sizes[0])
    _write_json(folder / "result.json", result)
    (folder / "README.md").write_text(_card(result), encoding="utf-8")


def _entry(home: Checkpoint, name: str) -> Entry:
    info = home.info(name)
    return Entry(name, info.dtype, info.shape, lambda: home.tensor(name))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _copy_others(source: Path, folder: Path) -> None:
    """Configuration, tokenizer, licence: all plain files of the top level that are no weights."""
    for path in sorted(source.iterdir()):
        stays = path.name.startswith(".") or path.name.endswith(NOT_COPIED) or path.name in OWN
        if path.is_file() and not stays and lies_within(path, source):
            shutil.copyfile(path, folder / path.name)


def _layer(matrix: Matrix, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of `result.json`."""
    entry = {
        "name": matrix.name,
        "shape": list(matrix.shape),
        "action": matrix.action or "replaced",
        "reason": matrix.reason,
        "structure": "dense",
        "kind": "dense",
        "parameters": matrix.parameters,
        "dense_parameters": matrix.parameters,
    }
    if about is None:
        return entry
    if "config" not in about:
        return {**entry, "action": "kept", "reason": about["reason"]}
    known = {key: value for key, value in about.items() if key != "config"}
    return {**entry, **known, "unweighted_error": about["error"], "heldout_error": None}


def _description(
    checkpoint: Checkpoint,
    matrices: Sequence[Matrix],
    layers: Sequence[Mapping[str, Any]],
    about: Mapping[str, Mapping[str, Any]],
    job: Mapping[str, Any],
) -> dict[str, Any]:
    """flatwing.json, from which `flatwing.load` rebuilds the layers."""
    architecture: dict[str, Any] = {"kind": "weights"}
    if checkpoint.config is not None:
        names = checkpoint.config.get("architectures")
        architecture = {"kind": "transformers", "class": names[0] if isinstance(names, list) and names else None}
    entries = {}
    for matrix, layer in zip(matrices, layers, strict=True):
        if layer["action"] == "replaced":
            errors = ("error", "heldout_error", "lower_bound", "unweighted_error")
            entries[matrix.name] = {
                "config": about[matrix.name]["config"],
                "structure": layer["structure"],
                "aliases": [],
                "transposed": matrix.transposed,
                "certificate": {key: layer[key] for key in errors},
            }
    return {
        "format": "flatwing.model",
        "version": 1,
        "flatwing": job["flatwing"],
        "architecture": architecture,
        "layers": entries,
        "quantized": None,
        "tensors": {},
    }


def _result(
    checkpoint: Checkpoint, layers: Sequence[Mapping[str, Any]], job: Mapping[str, Any], parameters: int, nbytes: int
) -> dict[str, Any]:
    """result.json of a run folder; without timings, so that the same run gives the same bytes."""
    before = sum(prod(checkpoint.info(name).shape) for name in checkpoint.names)
    open_ = [layer for layer in layers if layer["action"] != "skipped"]
    dense, left = (sum(layer[key] for layer in open_) for key in ("dense_parameters", "parameters"))
    metrics = {
        "before": {"parameters": before, "linear_parameters": dense, "bytes": checkpoint.total_bytes},
        "compressed": {"parameters": parameters, "linear_parameters": left, "bytes": nbytes},
    }
    return {
        "format": "flatwing.run",
        "version": 1,
        "command": "compress",
        "flatwing": job["flatwing"],
        "name": checkpoint.path.resolve().name,
        "task": "other",
        "seed": job["seed"],
        "summary": _summary(layers, metrics),
        "budget": {"unit": "parameters", "share": job["budget"], "dense": dense, "kept": left},
        "metrics": metrics,
        "layers": list(layers),
        "files": {"model": SINGLE} if len(checkpoint.files) == 1 else {},
    }


def _summary(layers: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> list[str]:
    """What was done and what it means, in sentences."""
    replaced = [layer for layer in layers if layer["action"] == "replaced"]
    before, after = metrics["before"], metrics["compressed"]
    lines = [
        f"flatwing replaced {len(replaced)} of {len(layers)} matrices; the weights take {after['bytes'] / 1e6:.1f} MB "
        f"instead of {before['bytes'] / 1e6:.1f} MB."
    ]
    if replaced:
        worst = max(replaced, key=lambda layer: layer["error"])
        lines.append(
            f"The largest relative error of a matrix is {worst['error']:.3f}, of {worst['name']}. It is measured in "
            "the Frobenius norm: without data nothing says which errors the network minds."
        )
    return [
        *lines,
        "No network was run, so the loss is not known. At the same size, fits to the data of a trained network lose "
        "far less than these: give the model's directory and text of its kind, flatwing compress MODEL OUT "
        "--calibration TEXT, and --heal to repair the rest.",
        "If only the size of the files matters, int8 quantization of the weights loses less than any structure.",
    ]


def _card(result: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| {layer['name']} | {layer['structure']} | {layer['parameters']} | {layer['dense_parameters']} | "
        f"{layer['error']:.4f} |\n"
        for layer in result["layers"]
        if layer["action"] == "replaced"
    )
    return (
        f"# {result['name']}, compressed\n\n"
        + "\n".join(result["summary"])
        + "\n\nflatwing.json says which structure each layer has; `flatwing.load` gives the network back.\n\n"
        "| layer | structure | parameters | before | relative error of the matrix |\n|---|---|---|---|---|\n" + rows
    )
