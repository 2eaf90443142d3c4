"""Wisdom: measured times of this machine, which plans prefer to predictions."""

from __future__ import annotations

from collections.abc import Mapping

from .backend import Task


def version() -> int:
    """A number that changes when what is known changes, so that cached plans are not older than it."""
    return 0


def lookup(task: Task) -> Mapping[str, float]:
    """Measured seconds per backend (and "F.linear") for a task; empty if it was never measured here."""
    return {}
