"""`metrics.jsonl`: what a run wrote down while it ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

from .node import Node, parse


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One step of a training or of healing: its loss, the loss on held-out data and the learning rate, where known."""

    step: int
    loss: float | None
    heldout: float | None
    lr: float | None = None


def logged(text: str | None, notes: list[str]) -> Iterator[Node]:
    r"""The lines of `metrics.jsonl`, parsed; of a file that is not there, `None`, there are none.

    What is missing, the file or the end of its last line, is added to `notes`. Raises `ValueError` that names the first
    other line that is not a JSON object.

    >>> notes = []
    >>> [line.count("step") for line in logged('{"step": 1}\n{"st', notes)], notes
    ([1], ['metrics.jsonl ends in the middle of line 2, which is left out.'])
    """
    if text is None:
        notes.append("metrics.jsonl is not in the run folder.")
        return
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            node = parse(line, f"metrics.jsonl line {number}")
        except ValueError:
            if number < len(lines):
                raise
            notes.append(f"metrics.jsonl ends in the middle of line {number}, which is left out.")
            return
        yield node


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps by their numbers; one that was run again after a restart counts once, as it was the last time."""
    found = {step.step: step for step in steps}
    return tuple(found[number] for number in sorted(found))
