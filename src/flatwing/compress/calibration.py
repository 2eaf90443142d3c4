"""Calibrate: the user's data, or a built-in default, as batches to fit on, to choose on and to report on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from ..data import digit_images, python_sources
from .batch import Batch
from .readers import read_arrays, read_texts
from .source import Source

ROWS = 8192  # positions per batch
SPLIT = (0.7, 0.15, 0.15)  # of the user's rows: fitted, held out to choose by, reported on
LENGTH = 512  # longest text by default


@final
@dataclass(frozen=True)
class Data:
    """Batches to fit on, to choose on (`heldout`) and to report on (`test`), with the words for the report."""

    fit: list[Batch]
    heldout: list[Batch]
    test: list[Batch]
    source: str

    @property
    def batches(self) -> list[Batch]:
        """What the layers are calibrated with: the fitted batches first."""
        return [*self.fit, *self.heldout]

    def describe(self, widest: int, anchored: bool) -> dict[str, Any]:
        """The entry `calibration` of result.json; warns if there are few positions for layers of `widest` inputs."""
        fitted = sum(batch.positions for batch in self.fit)
        warnings = []
        if fitted < 10 * widest:
            warnings.append(
                f"{fitted} positions for layers of {widest} inputs: fewer than 10 per input. "
                f"Give at least {10 * widest}, or expect held-out errors above the fitted ones."
            )
        return {
            "source": self.source,
            "samples": sum(len(batch.inputs) for batch in self.fit),
            "tokens": fitted,
            "heldout_tokens": sum(batch.positions for batch in self.heldout),
            "anchored": anchored,
            "warnings": warnings,
        }


def load_data(
    source: Source, given: Any = None, *, field: str | None = None, samples: int = 512, length: int | None = None
) -> Data:
    """Data for a network: `given` is a path (text, folder of texts, JSONL, .npy, .npz, saved data set), a tensor,
    batches, or None for the default (Python's own source files for language models, digits for vision).

    At most `samples` rows are fitted. `field` names the entry of JSONL rows or of an .npz file. Raises `ValueError` for
    data that are empty, of the wrong field or shape, or that the network cannot take.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}. Rule: at least 1 row to fit on; 512 is a good start.")
    if given is None and source.trained is not None:
        return _of_example(source, samples)
    if isinstance(given, (str, os.PathLike)):
        data = _of_path(source, Path(given), field, samples, length)
    elif given is not None:
        data = _of_python(given, samples)
    else:
        data = _default(source, samples, length)
    for batch in (data.fit[0], data.test[0]):
        _try(source.model, batch, data.source)
    return data


def _of_example(source: Source, samples: int) -> Data:
    assert source.trained is not None
    splits, task = source.trained.data, source.task
    parts = []
    for part, limit in ((splits.train, samples), (splits.valid, max(samples // 4, 64)), (splits.test, None)):
        if task == "lm":
            rows = _spread_over(part, limit or 256)
            parts.append(text_batches(rows[:, :-1], targets=rows[:, 1:]))
        else:
            x, y = part
            parts.append(row_batches(x[:limit], y[:limit]))
    return Data(*parts, f"the data of the example {source.name}")


def _spread_over(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows at equal distances: the first ones would be of one file."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


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
        return Data(
            *(row_batches(x[part], None if y is None else y[part], key) for part in _parts(len(x), samples)), name
        )
    mask = torch.from_numpy(arrays["attention_mask"]).bool() if "attention_mask" in arrays else None
    x = x.long()
    _require_vocabulary(source, x, f"{name}[{inputs}]")
    parts = []
    for part in _parts(len(x), samples):
        parts.append(
            token_batches(source, x[part], None if mask is None else mask[part], None if y is None else y[part])
        )
    return Data(*parts, name)


def _of_python(given: Any, samples: int) -> Data:
    """Batches of the user's own: `Batch`es, tensors, tuples of arguments or dictionaries."""
    if isinstance(given, Data):
        return given
    if isinstance(given, torch.Tensor):
        if given.ndim < 2 or len(given) < 3:
            raise ValueError(f"calibration has shape {tuple(given.shape)}. Rule: (rows, ...), at least 3 rows.")
        return Data(*(row_batches(given[part]) for part in _parts(len(given), samples)), "a tensor")
    if not isinstance(given, Iterable):
        raise TypeError(
            f"calibration is a {type(given).__name__}. Rule: a path, a tensor of rows, or an iterable of batches."
        )
    batches = [as_batch(item) for item in given]
    if len(batches) < 3:
        raise ValueError(
            f"calibration has {len(batches)} batches. Rule: at least 3, to fit on, to choose on and to report on."
        )
    fit, heldout, test = (batches[part] for part in _parts(len(batches), len(batches)))
    return Data(fit, heldout, test, f"{len(batches)} batches from Python")


def as_batch(item: Any) -> Batch:
    """A `Batch` from a tensor, (inputs, targets), or a dictionary of arguments (with "labels" as targets)."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, torch.Tensor):
        return Batch((item,))
    if isinstance(item, Mapping):
        kwargs = {key: value for key, value in item.items() if key != "labels"}
        mask = kwargs.get("attention_mask")
        return Batch((), kwargs, item.get("labels"), None if mask is None or mask.ndim != 2 else mask.bool())
    if isinstance(item, Sequence) and len(item) == 2 and all(isinstance(x, torch.Tensor) for x in item):
        return Batch((item[0],), {}, item[1])
    raise TypeError(f"a batch is a {type(item).__name__}. Rule: a tensor, (inputs, targets), or a dictionary.")


def _default(source: Source, samples: int, length: int | None) -> Data:
    config = getattr(source.model, "config", None)
    vocabulary, image = getattr(config, "vocab_size", None), getattr(config, "image_size", None)
    if source.architecture["kind"] == "flatwing":
        from ..data import Splits, chunks
        from ..train import Trained

        if source.task == "lm":
            rows = Splits(*(chunks(python_sources(s), source.model.context) for s in ("train", "valid", "test")))  # type: ignore[arg-type]
        else:
            rows = Splits(*(digit_images(s) for s in ("train", "valid", "test")))
        example = Source(
            source.name,
            source.model,
            source.task,
            source.architecture,
            None,
            Trained(source.model, source.name, source.task, rows),
        )  # type: ignore[arg-type]
        return _of_example(example, samples)
    if isinstance(vocabulary, int):
        text = python_sources("train", 8_000_000).numpy().tobytes().decode("utf-8", "replace")
        return _of_rows(
            source, _tokens(source, [text]), samples, length, "Python's standard library (built-in default)"
        )
    if isinstance(image, int):
        x, y = (torch.cat(pair) for pair in zip(*(digit_images(s) for s in ("train", "valid", "test")), strict=True))
        channels = getattr(config, "num_channels", 3)
        x = nn.functional.interpolate(x.reshape(-1, 1, 8, 8), size=(image, image)).expand(-1, channels, -1, -1)
        del y  # digits are not the classes of the user's network
        return Data(
            *(row_batches(x[p], None, "pixel_values") for p in _parts(len(x), samples)), "digits (built-in default)"
        )
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

        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
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
    return Data(
        *(token_batches(source, rows[part][:, :-1], None, rows[part][:, 1:]) for part in _parts(count, samples)), name
    )


def _parts(count: int, samples: int) -> list[torch.Tensor]:
    """Row numbers of three contiguous parts, for neighbours are alike; at most `samples` of the first."""
    first = max(1, min(int(count * SPLIT[0]), count - 2))
    second = max(1, (count - first) // 2)
    rest = max(64, samples // 2)
    ends = ((0, first, samples), (first, first + second, max(64, samples // 4)), (first + second, count, rest))
    return [_spread_over(torch.arange(lo, hi), limit) for lo, hi, limit in ends]


def token_batches(
    source: Source, ids: torch.Tensor, mask: torch.Tensor | None, targets: torch.Tensor | None
) -> list[Batch]:
    """Batches of texts; networks of transformers get keywords, and never a cache of keys and values."""
    if source.architecture["kind"] != "transformers":
        return text_batches(ids, mask, targets)
    if source.task == "lm" and not type(source.model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        targets = None  # a masked language model predicts no next token
    if source.task == "other":
        targets = None
    extra = {"use_cache": False} if hasattr(getattr(source.model, "config", None), "use_cache") else {}
    batches = []
    for rows in _chunks(len(ids), max(1, ROWS // ids.shape[1])):
        kwargs: dict[str, Any] = {"input_ids": ids[rows], **extra}
        own = None if mask is None else mask[rows]
        if own is not None:
            kwargs["attention_mask"] = own.long()
        batches.append(Batch((), kwargs, None if targets is None else targets[rows], own))
    return batches


def text_batches(
    ids: torch.Tensor, mask: torch.Tensor | None = None, targets: torch.Tensor | None = None
) -> list[Batch]:
    """Batches of texts for networks that are called with tokens alone."""
    return [
        Batch((ids[rows],), {}, None if targets is None else targets[rows], None if mask is None else mask[rows])
        for rows in _chunks(len(ids), max(1, ROWS // ids.shape[1]))
    ]


def row_batches(x: torch.Tensor, y: torch.Tensor | None = None, key: str | None = None) -> list[Batch]:
    """Batches of rows of any shape."""
    batches = []
    for rows in _chunks(len(x), 256):
        own = None if y is None else y[rows]
        batches.append(Batch((x[rows],), {}, own) if key is None else Batch((), {key: x[rows]}, own))
    return batches


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _try(model: nn.Module, batch: Batch, name: str) -> None:
    """Call the network once, so that data it cannot take are refused before any work."""
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
