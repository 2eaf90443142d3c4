"""`open_data`: one front door to data, by a short text such as "digits" or "text:book.txt"."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final, get_args, get_type_hints

import torch
from jaxtyping import Int, Integer

from ..core import Registry
from .arrays import as_rows, as_tokens, read_arrays
from .corpus import python_sources
from .digits import digit_images
from .hf import hf_rows, hf_tables, hf_text
from .samples import Batch, Pieces, Rows, Samples, Windows
from .splits import SPLITS, Splits, check_split, stratified
from .text import text_bytes

KINDS = {int: "a whole number", float: "a number", str: "text"}  # of options


@final
@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples in three splits, and the sizes that a model for them needs.

    * `task` "classification": inputs (batch, *shape) float32, targets (batch,) in 0 ... classes - 1.
    * `task` "lm": inputs and targets (batch, length) int64, targets one token further on; shape is (length,) and
      `classes` is the size of the vocabulary.

    The batch of a step is `take(indices(step, batch_size, seed))`, a pure function of step and seed: nothing is to be
    saved for resuming, and rank r of R ranks takes `take(indices(step, batch_size, seed)[r::R])`.
    """

    name: str
    task: str
    splits: Splits[Samples]
    shape: tuple[int, ...]
    classes: int
    notes: tuple[str, ...] = ()
    """What a user should know: files that were skipped, splits that were made in another way than asked."""

    def indices(self, step: int, batch_size: int, seed: int = 0) -> Int[torch.Tensor, " batch"]:
        """Numbers of the training samples of one global batch; see `Samples.indices`."""
        return self.splits.train.indices(step, batch_size, seed)

    def take(self, indices: Integer[torch.Tensor, " batch"]) -> Batch:
        """Inputs and targets of these training samples, on the CPU."""
        return self.splits.train.take(indices)

    def batches(self, batch_size: int, seed: int = 0) -> Callable[[int, torch.Generator], Batch]:
        """The function `batches(step, generator)` that `flatwing.train.fit` wants; the generator is not used.

        >>> inputs, targets = open_data("digits").batches(4)(0, torch.Generator())
        >>> inputs.shape, targets.shape
        (torch.Size([4, 64]), torch.Size([4]))
        """
        return lambda step, generator: self.take(self.indices(step, batch_size, seed))

    def evaluation(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """The samples of a split, each once and in order; with `limit` that many, spread evenly. See `Samples.each`.

        For "lm" they are windows side by side, so that each token but the first is predicted once; "train" gives its
        windows at every place, for which a limit makes sense. Raises `ValueError` for an unknown split.
        """
        check_split(split)
        return getattr(self.splits, split).each(batch_size, limit)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples in each split."""
        return {"train": len(self.splits.train), "valid": len(self.splits.valid), "test": len(self.splits.test)}


DATA: Registry[Callable[..., Dataset]] = Registry("data")
"""Functions of options, and of `path` where the text after the colon is needed."""


def open_data(spec: str, **options: Any) -> Dataset:
    """The data that a text names, with the options of its kind.

    >>> data = open_data("python", length=32)
    >>> data.task, data.shape, data.classes
    ('lm', (32,), 256)
    >>> data.take(data.indices(step=0, batch_size=4))[0].shape
    torch.Size([4, 32])
    """
    kind, _, path = spec.partition(":")
    if kind not in DATA and os.path.exists(spec):
        raise ValueError(f"{spec!r} is a path. Rule: a kind before it. Write 'text:{spec}' or 'array:{spec}'.")
    opener = DATA[kind]
    known: Registry[str] = Registry(f"option of data {kind!r}")
    for name in inspect.signature(opener).parameters:
        if name != "path":
            known.register(name)(name)
    hints = get_type_hints(opener)
    for name, value in options.items():
        known[name]  # raises, with the nearest name
        kinds = get_args(hints[name]) or (hints[name],)
        if not isinstance(value, kinds) or isinstance(value, bool):
            rule = " or ".join(word for kind, word in KINDS.items() if kind in kinds)
            raise ValueError(f"{name} is {value!r} for data {kind!r}. Rule: {rule}.")
    if "path" not in inspect.signature(opener).parameters:
        if path:
            raise ValueError(f"data {kind!r} takes nothing after the name, got {path!r}. Write {kind!r}.")
        return opener(**options)
    if not path:
        raise ValueError(f"data {spec!r} names nothing to open. Write '{kind}:' and what to open.")
    return opener(path=path, **options)


@DATA.register("digits")
def digits(seed: int = 0) -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels in [0, 1] as rows of 64; the splits are drawn by `seed`."""
    splits: Splits[Samples] = Splits(*(Rows(*digit_images(split, seed)) for split in SPLITS))
    return Dataset("digits", "classification", splits, (64,), 10)


@DATA.register("python")
def python(length: int = 128, vocab: int = 256) -> Dataset:
    """The source files of Python's standard library as bytes, split by file, in windows of `length`."""
    parts: Splits[Pieces] = Splits(*([python_sources(split).numpy()] for split in SPLITS))
    return _windows("python", parts, length, vocab)


@DATA.register("text")
def text(path: str, length: int = 128, vocab: int = 256) -> Dataset:
    """A text file, or a folder of them, as bytes in windows of `length`; see `text_bytes` for the splits."""
    parts, notes = text_bytes(path, length + 1)
    return _windows(f"text:{path}", parts, length, vocab, notes)


@DATA.register("array")
def array(
    path: str,
    length: int | None = None,
    vocab: int | None = None,
    seed: int | None = None,
    scale: float | int | None = None,
) -> Dataset:
    """A .npz file with x (n, ...) and y (n,), or tokens (k,) in a .npz or .npy file.

    Rows are split by `seed` (0), 70 % of each class for "train", 10 % "valid", 20 % "test", and x is divided by `scale`
    (1). Tokens are cut into ranges (88 %, 6 %, 6 %) and read in windows of `length` (128). An option that does not
    concern what the file holds is refused with `ValueError`; the checks are those of `as_rows` and `as_tokens`.
    """
    arrays = read_arrays(path)
    if "tokens" in arrays:
        _refuse("tokens", seed=seed, scale=scale)
        parts, vocab = as_tokens(arrays["tokens"], vocab)
        return _windows(f"array:{path}", parts, 128 if length is None else length, vocab)
    _refuse("rows x and y", length=length, vocab=vocab)
    x, y = as_rows(arrays["x"], arrays["y"], 1 if scale is None else scale)
    parts = stratified(y, seed or 0)
    return _rows(f"array:{path}", Splits(*((x[parts[split]], y[parts[split]]) for split in SPLITS)))


@DATA.register("hf")
def hf(
    path: str,
    column: str | None = None,
    x: str | None = None,
    y: str | None = None,
    config: str | None = None,
    length: int | None = None,
    vocab: int | None = None,
    seed: int | None = None,
    scale: float | int | None = None,
) -> Dataset:
    """A data set of Hugging Face, local or on the hub: its text `column` ("text") as bytes, or the columns `x` and `y`.

    `config` is the name of its configuration; `length` (128) and `vocab` (256) are for text, `seed` (0) and `scale` (1)
    for rows, see `hf_text` and `hf_rows`. Options that do not go together are refused with `ValueError`.
    """
    if (x is None) != (y is None):
        raise ValueError(f"x is {x!r} and y is {y!r}. Rule: both columns, or none for text. Name both.")
    name = f"hf:{path}"
    if x is None or y is None:
        _refuse("text", seed=seed, scale=scale)
        parts = hf_text(hf_tables(path, config), column or "text")
        return _windows(name, parts, 128 if length is None else length, 256 if vocab is None else vocab)
    _refuse("rows x and y", column=column, length=length, vocab=vocab)
    return _rows(name, hf_rows(hf_tables(path, config), x, y, 1 if scale is None else scale, seed or 0))


def _refuse(what: str, **options: Any) -> None:
    """Raise if one of the options was given: they do not concern this kind of data."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} is {value!r}, but these are {what}, which have no {name}. Leave it out.")


def _rows(name: str, parts: Splits[tuple[torch.Tensor, torch.Tensor]]) -> Dataset:
    for split in SPLITS:
        if not len(getattr(parts, split)[1]):
            raise ValueError(f"{name!r} has too few rows: none is left for {split!r}. Rule: about 10 rows per class.")
    splits: Splits[Samples] = Splits(*(Rows(*getattr(parts, split)) for split in SPLITS))
    labels = torch.cat([getattr(parts, split)[1] for split in SPLITS]).unique()
    classes, found = 1 + int(labels.max()), len(labels)
    if found < 2:
        raise ValueError(f"all labels of {name!r} are {classes - 1}. Rule: at least 2 classes. Give rows of another.")
    told = f"{name}: labels go up to {classes - 1:,}, but only {found:,} of these {classes:,} classes have rows. "
    notes = (told + "If that is not meant, write y = np.unique(y, return_inverse=True)[1].",) if found < classes else ()
    return Dataset(name, "classification", splits, tuple(parts.train[0].shape[1:]), classes, notes)


def _windows(name: str, parts: Splits[Pieces], length: int, vocab: int, notes: tuple[str, ...] = ()) -> Dataset:
    """Windows at every place to train on, windows side by side to measure on."""
    for split in SPLITS:
        if (count := sum(map(len, getattr(parts, split)))) <= length:
            raise ValueError(
                f"split {split!r} of {name!r} has {count} tokens, length is {length}. Rule: at least length + 1. "
                + (f"Give more text, or write length={count - 1}." if count > 1 else "Give more text.")
            )
    held_out = (Windows(part, length, length, vocab) for part in (parts.valid, parts.test))
    splits: Splits[Samples] = Splits(Windows(parts.train, length, 1, vocab), *held_out)
    return Dataset(name, "lm", splits, (length,), vocab, notes)
