"""The backend `triton`: when it refuses and why, what it predicts, and its contract in the interpreter."""

import subprocess
import sys

import pytest
import torch

from flatwing.kernels.backend import Task
from flatwing.kernels.backends.triton_gpu import TritonGPU
from flatwing.structure import Chain
from kernels.gpu.kit import TOLERANCE, Modules, error, gradients, product, values, vectors
from kernels.gpu.kit import interpreted as interpreted

MONARCH = Chain.parse("(1,32,32,32)(32,32,32,1)")
BACKEND = TritonGPU()


def task(**changes: object) -> Task:
    return Task(**{"chain": MONARCH, "rows": 4096, "device": "cuda", "dtype": torch.bfloat16, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "cpu"}, "only for CUDA devices, not cpu"),
        ({"dtype": torch.float64}, "only for float32, bfloat16, float16"),
        ({"dtype": torch.complex64}, "only for float32, bfloat16, float16"),
    ],
)
def test_says_why_not(changes: dict[str, object], why: str) -> None:
    assert BACKEND.unsupported_because(task(**changes)) == why


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_supports_the_rest(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    assert BACKEND.unsupported_because(task(dtype=dtype)) is None


def test_without_triton_it_says_so() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from flatwing.kernels.backend import Task\n"
        "from flatwing.kernels.backends.triton_gpu import TritonGPU\n"
        "from flatwing.kernels.gpu import factor, launch, run\n"  # can still be read
        "from flatwing.structure import Chain\n"
        "print(TritonGPU().unsupported_because(Task(Chain.butterfly(8), 4, device='cuda')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("triton is not installed")


def test_importing_it_imports_no_triton() -> None:
    code = "import sys; import flatwing.kernels.backends.triton_gpu; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_prediction_follows_the_roofline() -> None:
    rows, n = 65536, 1024
    seconds = BACKEND.seconds(task(rows=rows))
    floor = rows * n * 4 / 3e12  # each number is read once and written once
    assert floor < seconds < 2.5 * floor
    assert BACKEND.seconds(task(rows=rows, dtype=torch.float32)) > 1.5 * seconds
    assert 3 * seconds < BACKEND.seconds(task(rows=rows, train=True)) < 12 * seconds
    assert BACKEND.seconds(task(rows=0)) > 0


@pytest.mark.parametrize("last", [False, True])
def test_contract_in_the_interpreter(interpreted: Modules, last: bool) -> None:
    chain = Chain.parse("(1,4,3,6)(3,6,5,1)")
    w, d = [values(p, torch.float32) for p in chain], [p.d for p in chain]
    x, grad = (vectors(17, n, torch.float32, last) for n in chain.shape[::-1])

    def user(t: torch.Tensor) -> torch.Tensor:  # what the interface calls x: (rows, n), or (n, rows)
        return t.T if last else t

    y = BACKEND.forward(user(x), w, d, last)
    assert y.is_contiguous()
    assert error(user(y), product(x, w, d)) < TOLERANCE[x.dtype]
    right_x, *right_w = gradients(x, w, d, grad)
    gx, gw = BACKEND.backward(user(x), w, d, user(grad), last)
    assert gx is not None
    assert gw is not None
    assert error(user(gx), right_x) < TOLERANCE[x.dtype]
    assert all(error(g, r) < TOLERANCE[x.dtype] for g, r in zip(gw, right_w, strict=True))
    only_x = BACKEND.backward(user(x), w, d, user(grad), last, need_factors=False)
    assert only_x.factors is None
    assert only_x.x is not None
    assert error(user(only_x.x), right_x) < TOLERANCE[x.dtype]
    only_factors = BACKEND.backward(user(x), w, d, user(grad), last, need_x=False)
    assert only_factors.x is None
    assert BACKEND.backward(user(x), w, d, user(grad), last, False, False) == (None, None)
