"""Save: a directory that plain PyTorch can read, `flatwing.load` builds again, and a person understands."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import replacing
from ..core.machine import __version__
from ..nn import LinearInfo, StructuredLayer, densify_
from . import plain
from .load import FORMAT, VERSION
from .quantize import quantizable, quantized_state
from .source import Source
from .stream import Entry, write_stream

SHARD = 5 << 30  # bytes per file, as the Hub does
# of the source's directory: what belongs to the model but not to its weights
KEPT = ("config.json", "generation_config.json", "merges.txt", "preprocessor_config.json", "processor_config.json",
        "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "vocab.json", "vocab.txt", "chat_template.jinja", "added_tokens.json", "LICENSE")  # fmt: skip


def save_model(
    folder: Path,
    model: nn.Module,
    source: Source,
    layers: Mapping[str, LinearInfo],
    certificates: Mapping[str, Mapping[str, Any]],
    *,
    quantize: str | None = None,
    densify: bool = False,
    shard: int = SHARD,
) -> dict[str, Any]:
    """Write weights, flatwing.json and what the source's directory has beside its weights; returns the description.

    `certificates` has structure and errors per layer. With `densify` the layers are multiplied out and the result is an
    ordinary checkpoint; with `quantize` = "int8" the matrices and factors of the compressed layers are kept as int8.
    """
    structured = {name: m for name, m in model.named_modules() if isinstance(m, StructuredLayer)}
    entries: dict[str, Any] = {}
    for name, layer in structured.items():
        entries[name] = {
            "config": layer.config(),
            "structure": str(certificates.get(name, {}).get("structure", "")),
            "aliases": list(layers[name].aliases) if name in layers else [],
            "transposed": name in layers and layers[name].transposed,
            "certificate": {k: v for k, v in certificates.get(name, {}).items() if k != "structure"},
        }
    if densify:
        model = copy.deepcopy(model)
        densify_(model)
    state = tensors_of(model)
    if densify:
        for name, entry in entries.items():
            if entry["transposed"]:
                state[f"{name}.weight"] = state[f"{name}.weight"].mT.contiguous()
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "flatwing": __version__,
        "architecture": source.architecture,
        "layers": {} if densify else entries,
        "quantized": quantize,
    }
    if quantize == "int8":
        keys = [key for key in quantizable(model, layers) if key in state]
        state, description["tensors"] = quantized_state(state, keys)
    _write_weights(folder, state, shard)
    if source.folder is not None:
        for name in KEPT:
            if (file := source.folder / name).is_file():
                shutil.copyfile(file, folder / name)
    elif (config := getattr(model, "config", None)) is not None and hasattr(config, "save_pretrained"):
        config = copy.deepcopy(config)
        config.architectures = [type(model).__name__]  # a network that was never saved does not name it
        config.save_pretrained(str(folder))
    write_json(folder / "flatwing.json", description)
    return description


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model, each storage once under its first name (tied weights), contiguous, on the CPU."""
    state: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        key = tensor.data_ptr(), tuple(tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        state[name] = tensor.detach().cpu().contiguous()
    return state


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinity are refused, because JSON has none."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_weights(folder: Path, state: Mapping[str, torch.Tensor], shard: int) -> None:
    files: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if files[-1] and size + tensor.nbytes > shard:
            files.append({})
            size = 0
        files[-1][name] = tensor
        size += tensor.nbytes
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
        index = {name: file for file, part in zip(names, files, strict=True) for name in part}
        total = sum(tensor.nbytes for tensor in state.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    for name, part in zip(names, files, strict=True):
        write_stream(
            folder / name,
            [Entry(key, value.dtype, tuple(value.shape), partial(_same, value)) for key, value in part.items()],
            {"format": "pt"},
        )


def card(name: str, summary: Sequence[str], description: Mapping[str, Any], table: str) -> str:
    """The README of the directory: what it is, what was measured, how to load it with and without flatwing."""
    lines = [f"# {name}, compressed", "", *summary, "", table, ""]
    if description["layers"] or description["quantized"]:
        lines += [
            "## Load it", "", "With flatwing:", "",
            "```python", "import flatwing", 'model = flatwing.load(".")', "```", "",
            "With torch and safetensors alone: this gives the state dict of the original network with dense matrices.",
            "", "```python", inspect.getsource(plain).split('"""', 2)[2].strip(), "```", "",
        ]  # fmt: skip
    else:
        lines += ["An ordinary checkpoint: its layers are multiplied out, so it is as large as the original."]
    return "\n".join(lines) + "\n"


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
