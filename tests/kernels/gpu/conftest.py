"""Compiled kernels are kept in a folder of the test, not in the user's."""

from pathlib import Path

import pytest

from kernels.gpu.kit import interpreted as interpreted


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
