"""What holds in every test: shapes are checked, one torch thread, one seed, the same examples each time."""

import logging
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Must come before the first import of flatwing: each annotated call is then checked, in tests only.
install_import_hook("flatwing", "beartype.beartype")

logging.getLogger("flatwing").addHandler(logging.NullHandler())  # no test is the one that meets what is said once
os.environ["FLATWING_WISDOM"] = os.devnull  # in subprocesses, too: nothing measured on this machine is read or written
torch.set_num_threads(1)
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed of the global generators at the start of each test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Workers wait for machine code that another one is making, and read it: else each makes it, at the same time."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None or os.name != "posix":
        return
    import fcntl

    from flatwing.kernels.backends.compiled import Compiled

    folder = Path(tempfile.gettempdir()) / f"flatwing-{run}"
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    make = Compiled._try

    def make_in_turn(self: Compiled, code: Any) -> None:
        place = folder / f"{type(self).__name__}-{code.dtype}"
        folder.mkdir(exist_ok=True)  # the worker that ends first removes it
        with place.open("w") as turn:
            latest = time.monotonic() + 120.0  # seconds; who takes longer is not waited for
            while time.monotonic() < latest:
                try:
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
            try:
                make(self, code)
            finally:
                fcntl.flock(turn, fcntl.LOCK_UN)  # a process forked meanwhile has the file open, too

    Compiled._try = make_in_turn
