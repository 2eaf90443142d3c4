"""What numbers were computed with and on: versions, processor, threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__version__ = "0.1.0"


def processor() -> str:
    """The name of the processor as its maker calls it, where the system tells."""
    with suppress(OSError, ValueError, StopIteration):  # Linux tells the name in a file only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{platform.system()} {platform.machine()} {platform.processor()}".strip()


def environment() -> dict[str, Any]:
    """What a run was computed with and on, as plain data for JSON."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "flatwing": __version__}
    with suppress(importlib.metadata.PackageNotFoundError):
        found["transformers"] = importlib.metadata.version("transformers")
    return found | {
        "platform": platform.platform(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": datetime.now(UTC).date().isoformat(),
    }
