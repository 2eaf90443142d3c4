"""What holds in every test: shapes are checked, one torch thread, one seed, the same examples each time."""

import logging
import os
import random

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
