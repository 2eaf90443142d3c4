import os
import subprocess
import sys
from pathlib import Path
from typing import no_type_check

import numpy as np
import pytest

from distributed import run_python
from flatwing.kernels.cpu.simd import compiled, emitted, vector_bytes

KINDS = [np.float32, np.float64]


def aligned(count: int, kind: type) -> np.ndarray:
    """Zeros at an address that is a multiple of 64."""
    size = np.dtype(kind).itemsize
    room = np.zeros(count + 64 // size, kind)
    skip = -room.ctypes.data % 64 // size
    return room[skip : skip + count]


def lanes(kind: type) -> int:
    return vector_bytes() // np.dtype(kind).itemsize


@emitted
def _transpose(e, source, target):
    rows = [e.load(e.at(source, i * e.lanes)) for i in range(e.lanes)]
    for i, row in enumerate(e.transpose(rows)):
        e.store(row, e.at(target, i * e.lanes))


@emitted
def _dot(e, x, y, count, out):
    with e.loop(0, count, e.lanes, carry=[e.constant(0.0)]) as loop:
        e.prefetch(e.at(x, loop.index))
        loop.carried = [e.fma(e.load(e.at(x, loop.index)), e.load(e.at(y, loop.index)), loop.carried[0])]
    e.store(loop.carried[0], out)


@emitted
def _arithmetic(e, x, out, distance, row, threshold):
    vector, first = e.load(x), e.broadcast(x)
    e.store(e.swap(vector, distance), out)
    e.store(e.plus(e.times(vector, first), e.constant(0.5)), e.at(out, e.lanes), stream=True)
    with e.when(row, ">", threshold):
        e.store(e.shuffle(vector, first, [2 * lane for lane in range(e.lanes)]), e.at(out, e.lanes, e.lanes))
    e.fence()


@compiled
@no_type_check
def transpose(kind, source, target):
    _transpose(kind, source, target)


@compiled
@no_type_check
def dot(kind, x, y, count, out):
    _dot(kind, x, y, count, out)


@compiled
@no_type_check
def arithmetic(kind, x, out, row):
    _arithmetic(kind, x, out, 2, row, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_transpose(kind: type) -> None:
    n = lanes(kind)
    a = np.random.rand(n, n).astype(kind)
    b = np.zeros_like(a)
    transpose(kind(0), a.ctypes.data, b.ctypes.data)
    assert (b == a.T).all()


@pytest.mark.parametrize("kind", KINDS)
def test_loops_carry_values(kind: type) -> None:
    n = lanes(kind)
    x, y = np.random.rand(2, 5 * n).astype(kind)
    out = np.zeros(n, kind)
    dot(kind(0), x.ctypes.data, y.ctypes.data, 5 * n, out.ctypes.data)
    assert np.allclose(out, (x * y).reshape(5, n).sum(0), rtol=4 * np.finfo(kind).eps)
    dot(kind(0), x.ctypes.data, y.ctypes.data, 0, out.ctypes.data)
    assert (out == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [7, 8])
def test_vectors(kind: type, row: int) -> None:
    n = lanes(kind)
    x, out = np.random.rand(n).astype(kind), aligned(3 * n, kind)
    arithmetic(kind(0), x.ctypes.data, out.ctypes.data, row)
    swapped, scaled, mixed = out.reshape(3, n)
    assert (swapped == x[np.arange(n) ^ 2]).all()
    assert (scaled == x * x[0] + kind(0.5)).all()
    evens = np.concatenate([x, np.full(n, x[0])])[::2]
    assert (mixed == (evens if row > 7 else 0)).all()


@pytest.mark.parametrize(
    ("features", "width"), [("+sse2,+sse4.2", 16), ("+sse2,+avx,+avx2,+fma", 32), ("+avx2,+avx,+avx512f", 64)]
)
def test_width_follows_the_machine(features: str, width: int) -> None:
    code = "from flatwing.kernels.cpu.simd import vector_bytes; print(vector_bytes())"
    done = run_python(code, environment={"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features})
    assert done.stdout.split() == [str(width)]


SCRIPT = """
from typing import no_type_check
import numpy as np
from flatwing.kernels.cpu.simd import compiled, emitted

@emitted
def _add(e, address):
    e.store(e.plus(e.load(address), e.constant(1.0)), address)

@compiled
@no_type_check
def add(kind, address):
    _add(kind, address)

x = np.zeros(16, np.float32)
add(np.float32(0), x.ctypes.data)
print(x[0], sum(add.stats.cache_hits.values()))
"""


def test_machine_code_is_kept_on_disk(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    runs = [subprocess.run([sys.executable, script], capture_output=True, text=True, check=True) for _ in range(2)]
    assert [run.stdout.split() for run in runs] == [["1.0", "0"], ["1.0", "1"]]


def test_a_change_of_an_imported_file_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    script = SCRIPT.replace("1.0)", "STEP)").replace("import numpy", "from .step import STEP\nimport numpy")
    (package / "script.py").write_text(script)
    seen = []
    for step in ("1.0", "2.0", "1.0"):
        (package / "step.py").write_text(f"STEP = {step}")
        call = [sys.executable, "-B", "-m", "package.script"]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
        seen.append(done.stdout.split())
    assert seen == [["1.0", "0"], ["2.0", "0"], ["1.0", "1"]]


def test_works_where_nothing_can_be_written(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # a locator that finds no place stands for folders without permission, which a privileged user has everywhere
    told = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator"}
    done = subprocess.run([sys.executable, script], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "0"]
