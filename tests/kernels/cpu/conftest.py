"""What tests of compiled kernels share: threads however few cores there are, and machines with shorter vectors."""

import os
from collections.abc import Callable

import pytest

from distributed import run_python
from flatwing.kernels.cpu.simd import vector_bytes


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as a test asks for, however few cores the machine has."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.fixture(
    params=[("+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2", 16), ("+sse4.2,+avx,+avx2,+fma", 32)], ids=["SSE", "AVX2"]
)
def on_narrower(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Calls `judge_all` of a test module in this folder, in a process that compiles for shorter vectors."""
    features, width = request.param
    if vector_bytes() <= width:
        pytest.skip("this machine is one, and all other tests tell")

    def run(module: str) -> None:
        told = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
        code = f"""
            import sys
            sys.path[:0] = sys.argv[1:]
            import {module}
            from flatwing.kernels.cpu.simd import vector_bytes
            {module}.judge_all()
            print(vector_bytes())
        """
        done = run_python(code, os.path.dirname(__file__), environment=told)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(width)]

    return run
