"""What tests of threads share."""

import pytest


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as a test asks for, however few cores the machine has."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
