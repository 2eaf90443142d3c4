"""Calibrate: the user's data, or a built-in default, as batches to fit on, to choose on and to report on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from ..core import require_whole
from ..data import Splits, chunks, digit_images, python_sources
from .batch import Batch
from .batches import as_batch, from_labels, row_batches, row_parts, spread_over, text_batches, token_batches
from .evaluate import IGNORED
from .readers import read_arrays, read_texts
from .source import Source

SPLITS = ("train", "valid", "test")
LENGTH = 512  # longest text by default


@final
@dataclass(frozen=True)
class Data:
    """Batches to fit on, to choose on (`heldout`) and to report on (`test`), with the words for the report.

    `warnings` are sentences on how the data were understood.
    """

    fit: list[Batch]
    heldout: list[Batch]
    test: list[Batch]
    source: str
    warnings: tuple[str, ...] = ()

    @property
    def batches(self) -> list[Batch]:
        """What the layers are calibrated with: the fitted batches first."""
        return [*self.fit, *self.heldout]

    def describe(self, anchored: bool, warnings: list[str]) -> dict[str, Any]:
        """The entry `calibration` of result.json."""
        fitted = sum(batch.positions for batch in self.fit)
        return {
            "source": self.source,
            "samples": sum(len(batch.inputs) for batch in self.fit),
            "tokens": fitted,
            "heldout_tokens": sum(batch.positions for batch in self.heldout),
            "anchored": anchored,
            "warnings": [*self.warnings, *warnings],
        }


def _data(parts: Iterable[list[Batch]], source: str) -> Data:
    fit, heldout, test = parts
    return Data(fit, heldout, test, source)


def load_data(
    source: Source,
    given: Any = None,
    *,
    field: str | None = None,
    samples: int | None = None,
    length: int | None = None,
) -> Data:
    """Data for a network: `given` is a path (text, folder of texts, JSONL, .npy, .npz, saved data set), a tensor,
    batches, or None for the default (Python's own source files for language models, digits for vision).

    At most `samples` rows are fitted, by default 512 texts or 4096 other rows, of `length` tokens where they are
    texts. `field` names the entry of JSONL rows or of an .npz file. Raises `ValueError` for data that are empty, of the
    wrong field or shape, or that the network cannot take. Rows that are not text are mixed before they are split; a
    warning tells of targets that the network's task has no use for.
    """
    samples = (512 if source.task == "lm" else 4096) if samples is None else samples
    samples = require_whole("samples", samples, good=512)
    if length is not None:
        require_whole("length", length, 2, good=LENGTH, advice="It is the number of tokens of a text.")
    if given is None and source.trained is not None:
        return _of_splits(source.trained.data, source.task, samples, f"the data of the example {source.name}")
    if isinstance(given, (str, os.PathLike)):
        data = _of_path(source, Path(given), field, samples, length)
    elif given is not None:
        data = _of_python(source, given, samples)
    else:
        data = _default(source, samples, length)
    output = _try(source.model, data.fit[0], data.source)
    _try(source.model, data.test[0], data.source)
    if source.task == "other" and (targets := data.fit[0].targets) is not None:
        data = replace(data, warnings=(_unused(targets, output),))
    return data


def by_targets(source: Source, data: Data) -> tuple[Source, Data]:
    """A network whose task no one named, with the task that its targets tell, and the data with a word on that.

    One class index per row beside outputs (rows, classes) means classification. Cost: one forward pass.
    """
    targets = data.fit[0].targets
    if source.task != "other" or targets is None:
        return source, data
    with torch.no_grad():
        logits = data.fit[0].logits(source.model)
    if not _are_classes(targets, logits):
        return source, data
    word = "The targets are one class per row, so this network was taken for a classifier (task=classification)."
    return replace(source, task="classification"), replace(data, warnings=(word,))


def _unused(targets: torch.Tensor, logits: torch.Tensor) -> str:
    """The warning on targets beside a network of which no one knows what they are for."""
    hint = "classification" if _are_classes(targets, logits) else "classification or lm"
    return (
        f"The targets, {tuple(targets.shape)} beside outputs {tuple(logits.shape)}, were not used: nothing says what "
        f"they are. Name the task, {hint}, to have the quality measured on them."
    )


def _are_classes(targets: torch.Tensor, logits: torch.Tensor) -> bool:
    if targets.ndim != 1 or logits.ndim != 2 or len(targets) != len(logits):
        return False
    whole = not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool
    return whole and bool(((targets == IGNORED) | ((targets >= 0) & (targets < logits.shape[-1]))).all())


def _of_splits(splits: Splits[Any], task: str, samples: int, name: str) -> Data:
    """Chunks of tokens (n, length + 1) or pairs (x, y), split already."""
    parts = []
    for part, limit in ((splits.train, samples), (splits.valid, max(samples // 4, 64)), (splits.test, None)):
        if task == "lm":
            rows = part[spread_over(torch.arange(len(part)), limit or 256)]
            parts.append(text_batches(rows[:, :-1], targets=rows[:, 1:]))
        else:
            x, y = part
            parts.append(row_batches(x[:limit], y[:limit]))
    return _data(parts, name)


def _of_path(source: Source, path: Path, field: str | None, samples: int, length: int | None) -> Data:
    if not path.exists():
        raise ValueError(f"there are no calibration data at {str(path)!r}. Rule: a text, .jsonl, .npz or .npy file.")
    if path.suffix.lower() in (".npz", ".npy"):
        return _of_arrays(source, read_arrays(path), field, samples, str(path.name))
    texts = read_texts(path, field)
    return _of_rows(source, _tokens(source, texts), samples, length, path.name)


def _of_arrays(source: Source, arrays: Mapping[str, np.ndarray], field: str | None, samples: int, name: str) -> Data:
    inputs = field or next((key for key in ("input_ids", "tokens", "pixel_values", "x") if key in arrays), None)
    if inputs is None and len(arrays) == 1:
        inputs = next(iter(arrays))
    if inputs is None or inputs not in arrays:
        raise ValueError(
            f"{name} has no array {inputs or 'input_ids, pixel_values or x'!r}. It has {', '.join(arrays)}. "
            "Name one with --field."
        )
    x = torch.from_numpy(arrays[inputs])
    if x.ndim < 2 or len(x) < 3:
        raise ValueError(
            f"{name}[{inputs}] has shape {tuple(x.shape)}. Rule: (rows, ...) with at least 3 rows: some are fitted, "
            "some held out, some reported on."
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}[{inputs}] holds NaN or infinity. Rule: finite inputs.")
    label = next((key for key in ("labels", "targets", "y") if key in arrays), None)
    y = None if label is None else torch.from_numpy(arrays[label]).long()
    if y is not None and len(y) != len(x):
        raise ValueError(f"{name}[{label}] has {len(y)} rows, {inputs} has {len(x)}. Rule: one label per row.")
    key = inputs if inputs in ("input_ids", "pixel_values") else None
    if x.is_floating_point():
        x = x.to(next((p.dtype for p in source.model.parameters() if p.is_floating_point()), x.dtype))
        rows = row_parts(len(x), samples, mixed=True)
        return _data((row_batches(x[part], None if y is None else y[part], key) for part in rows), name)
    mask = torch.from_numpy(arrays["attention_mask"]).bool() if "attention_mask" in arrays else None
    if mask is not None and mask.shape != x.shape:
        raise ValueError(
            f"{name}[attention_mask] has shape {tuple(mask.shape)}, {inputs} has {tuple(x.shape)}. Rule: equal shapes."
        )
    x = x.long()
    _require_vocabulary(source, x, f"{name}[{inputs}]")
    if y is not None and label == "labels":
        y = from_labels(source, x, y)
    parts = []
    for part in row_parts(len(x), samples, mixed=y is not None and y.ndim == 1):  # one label per row: no running text
        parts.append(
            token_batches(source, x[part], None if mask is None else mask[part], None if y is None else y[part])
        )
    return _data(parts, name)


def _of_python(source: Source, given: Any, samples: int) -> Data:
    """Batches of the user's own: `Batch`es, tensors, tuples of arguments or dictionaries."""
    if isinstance(given, Data):
        return given
    if isinstance(given, torch.Tensor):
        if given.ndim < 2 or len(given) < 3:
            raise ValueError(f"calibration has shape {tuple(given.shape)}. Rule: (rows, ...), at least 3 rows.")
        mixed = given.is_floating_point()
        return _data((row_batches(given[part]) for part in row_parts(len(given), samples, mixed)), "a tensor")
    if not isinstance(given, Iterable):
        raise TypeError(
            f"calibration is a {type(given).__name__}. Rule: a path, a tensor of rows, or an iterable of batches."
        )
    batches = [as_batch(item, source) for item in given]
    if len(batches) < 3:
        raise ValueError(
            f"calibration has {len(batches)} batches. Rule: at least 3, to fit on, to choose on and to report on."
        )
    mixed = batches[0].inputs.is_floating_point()
    parts = [[batches[i] for i in part.tolist()] for part in row_parts(len(batches), len(batches), mixed)]
    return _data(parts, f"{len(batches)} batches from Python")


def _default(source: Source, samples: int, length: int | None) -> Data:
    config = getattr(source.model, "config", None)
    vocabulary, image = getattr(config, "vocab_size", None), getattr(config, "image_size", None)
    if source.architecture["kind"] == "flatwing" and source.task == "lm":
        length = length or int(getattr(source.model, "context", LENGTH))
        texts = Splits(*(chunks(python_sources(split), length) for split in SPLITS))
        return _of_splits(texts, "lm", samples, "Python's standard library (built-in default)")
    if source.architecture["kind"] == "flatwing":
        return _of_splits(Splits(*map(digit_images, SPLITS)), source.task, samples, "digits (built-in default)")
    if isinstance(vocabulary, int):
        text = python_sources("train", 8_000_000).numpy().tobytes().decode("utf-8", "replace")
        return _of_rows(
            source, _tokens(source, [text]), samples, length, "Python's standard library (built-in default)"
        )
    if isinstance(image, int):
        x = torch.cat([digit_images(split)[0] for split in SPLITS])  # without labels: they are not the network's
        channels = getattr(config, "num_channels", 3)
        x = nn.functional.interpolate(x.reshape(-1, 1, 8, 8), size=(image, image)).expand(-1, channels, -1, -1)
        parts = (row_batches(x[part], None, "pixel_values") for part in row_parts(len(x), samples, mixed=True))
        return _data(parts, "digits (built-in default)")
    raise ValueError(
        f"there are no default data for {source.name}. Rule: give --calibration FILE (.npz with its inputs), or in "
        "Python calibration=batches; what the network sees in use is best."
    )


def _tokens(source: Source, texts: Sequence[str]) -> torch.Tensor:
    """All texts as one row of tokens: the directory's tokenizer, or bytes where the vocabulary holds them."""
    joined = "\n\n".join(texts)
    folder = source.folder
    if folder is not None and any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise ValueError(
                f"the tokenizer in {str(folder)!r} cannot be used ({str(error).splitlines()[0]}). Rule: one of "
                "transformers' own (code in the directory is not run); or give token ids as --calibration ids.npz."
            ) from error
        ids = tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = torch.tensor(ids, dtype=torch.long)
    else:
        tokens = torch.frombuffer(bytearray(joined.encode()), dtype=torch.uint8).long()
    _require_vocabulary(source, tokens, "the text")
    return tokens


def _require_vocabulary(source: Source, tokens: torch.Tensor, what: str) -> None:
    size = getattr(getattr(source.model, "config", None), "vocab_size", None)
    if not isinstance(size, int):
        embedding = next((m for m in source.model.modules() if isinstance(m, nn.Embedding)), None)
        size = None if embedding is None else embedding.num_embeddings
    if tokens.numel() == 0:
        raise ValueError(f"{what} holds no tokens. Rule: some text to calibrate with.")
    if size is not None and (int(tokens.max()) >= size or int(tokens.min()) < 0):
        raise ValueError(
            f"{what} has tokens {int(tokens.min())} to {int(tokens.max())}, the network knows 0 to {size - 1}. "
            "Rule: tokens of the network's own tokenizer; put tokenizer.json into its directory, or give token ids "
            "as --calibration ids.npz."
        )


def _of_rows(source: Source, tokens: torch.Tensor, samples: int, length: int | None, name: str) -> Data:
    config = getattr(source.model, "config", None)
    context = getattr(source.model, "context", None) or getattr(config, "max_position_embeddings", None) or LENGTH
    length = min(length or LENGTH, int(context))
    if len(tokens) < 3 * (length + 1):
        length = max(1, len(tokens) // 3 - 1)
    if length < 2:
        raise ValueError(f"{name} has {len(tokens)} tokens. Rule: at least 9; some 10 per input of a layer are good.")
    count = (len(tokens) - 1) // length
    rows = torch.stack([tokens[i * length : i * length + length + 1] for i in range(count)])
    parts = (token_batches(source, rows[p][:, :-1], None, rows[p][:, 1:]) for p in row_parts(count, samples))
    return _data(parts, name)


def _try(model: nn.Module, batch: Batch, name: str) -> torch.Tensor:
    """Call the network once, so that data it cannot take are refused before any work; the outputs."""
    try:
        with torch.no_grad():
            output = batch.logits(model)
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"the network cannot take the calibration data of {name}: inputs {tuple(batch.inputs.shape)} "
            f"{batch.inputs.dtype}, {error}. Rule: rows as the network sees them in use."
        ) from error
    if not bool(torch.isfinite(output).all()):
        raise ValueError(f"the network's outputs on {name} are not finite. Rule: a network that works on its data.")
    return output
