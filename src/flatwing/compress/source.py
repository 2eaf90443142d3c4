"""Load: the network to compress, from a directory, from Python, or trained on the spot as an example."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import nn

from ..train import Model, Trained, architecture_of, build_model
from .checkpoint import Checkpoint

# last part of the class name -> task
TASKS_OF = {
    "ForCausalLM": "lm",
    "LMHeadModel": "lm",
    "ForMaskedLM": "lm",
    "ForSequenceClassification": "classification",
    "ForImageClassification": "classification",
}


@final
@dataclass(frozen=True)
class Source:
    """A network in evaluation mode, what it is for, and how `flatwing.load` will build it again.

    `architecture` is the entry of flatwing.json; `folder` the directory it came from, `trained` the example's data.
    """

    name: str
    model: nn.Module
    task: str
    architecture: dict[str, Any]
    folder: Path | None = None
    trained: Trained | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of all weights: a run resumes only for the same network."""
        digest = hashlib.sha256(repr(sorted(self.architecture.items())).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def from_module(model: nn.Module, task: str | None = None, name: str | None = None) -> Source:
    """A network from Python; built-in models are known by name, all others need `flatwing.load(dir, model=...)`.

    Raises `ValueError` for weights that are not finite, naming the first one.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"the weight {key!r} holds NaN or infinity. Rule: finite weights; load a checkpoint from before that."
            )
    known = architecture_of(model)
    architecture: dict[str, Any] = {"kind": "module", "class": type(model).__name__}
    if known is not None:
        architecture = {"kind": "flatwing", "name": known, "config": cast(Model, model).config()}
        task = task or cast(Model, model).task
    elif getattr(model, "config", None) is not None and _of_transformers(type(model)):
        architecture = {"kind": "transformers", "class": type(model).__name__}
    return Source(name or known or type(model).__name__, model, task or task_of(type(model).__name__), architecture)


def _of_transformers(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "transformers"


def from_example(trained: Trained) -> Source:
    """A built-in example with its data."""
    source = from_module(trained.model, trained.task, trained.name)
    return Source(source.name, source.model, source.task, source.architecture, None, trained)


def from_directory(path: str | os.PathLike[str], task: str | None = None) -> Source:
    """The network of a Hugging Face directory (config.json and safetensors), or of one that flatwing wrote.

    All files are checked before anything is loaded. Raises `ValueError` for missing, truncated, hostile or pickled
    files, weights that are not finite (named), and architectures that the installed transformers does not know.
    """
    checkpoint = Checkpoint.open(path)
    checkpoint.require_finite()
    folder = Path(path)
    if (folder / "flatwing.json").is_file():
        from .load import load  # which builds on this module

        model = load(folder)
        source = from_module(model, task, folder.resolve().name)
        return Source(source.name, model, source.task, source.architecture, folder)
    model = load_transformers(folder, checkpoint.config or {})
    kind = type(model).__name__
    architecture = {"kind": "transformers", "class": kind}
    return Source(folder.resolve().name, model, task or task_of(kind), architecture, folder)


def task_of(class_name: str) -> str:
    """The task that the name of a class promises.

    >>> task_of("LlamaForCausalLM"), task_of("BertModel")
    ('lm', 'other')
    """
    return next((task for ending, task in TASKS_OF.items() if class_name.endswith(ending)), "other")


def load_transformers(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The model of a directory through transformers, in the dtype of its files; only safetensors are read."""
    cls = transformers_class(config, folder)
    from transformers.utils import logging  # type: ignore[import-not-found]

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the commands show their own
    try:
        return cls.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, dtype="auto").eval()
    finally:
        if bars:
            logging.enable_progress_bar()


def skeleton(folder: Path, architecture: dict[str, Any], config: dict[str, Any]) -> nn.Module:
    """The untrained dense network that an entry of flatwing.json names; raises `ValueError` if it cannot be built."""
    if architecture.get("kind") == "flatwing":
        name, sizes = architecture.get("name"), architecture.get("config")
        if not isinstance(name, str) or not isinstance(sizes, dict):
            raise ValueError("flatwing.json names no built-in architecture and its sizes. Write it again.")
        return build_model(name, sizes)
    if architecture.get("kind") == "transformers":
        cls = transformers_class(config, folder)
        return cls(cls.config_class.from_pretrained(str(folder), local_files_only=True))
    what = architecture.get("class", "weights without an architecture")
    raise ValueError(
        f"{str(folder)!r} holds {what}, which flatwing cannot build. Rule: give the dense network with the same names, "
        "flatwing.load(dir, model=Net())."
    )


def transformers_class(config: dict[str, Any], folder: Path) -> Any:
    """The model class that config.json names."""
    names = config.get("architectures") or []
    if not names or not isinstance(names[0], str):
        raise ValueError(
            f'config.json in {str(folder)!r} names no architecture. Rule: "architectures": ["...ForCausalLM"]; '
            "or load the network in Python and call flatwing.compress.compress(model)."
        )
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f"{names[0]} needs the package transformers, which is not installed. Install flatwing[hf], or compress the "
            "bare .safetensors file without calibration."
        )
    import transformers

    found = getattr(transformers, names[0], None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        near = difflib.get_close_matches(
            names[0], [n for n in dir(transformers) if "For" in n or n.endswith("Model")], 1
        )
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"transformers {transformers.__version__} has no architecture {names[0]!r}{hint} Rule: a class of "
            "transformers (code in the directory is not run); or load the network in Python and call "
            "flatwing.compress.compress(model)."
        )
    return found
