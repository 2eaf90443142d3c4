import importlib
import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch

from flatwing import Chain, kernels
from flatwing.kernels import wisdom
from flatwing.kernels.backend import BACKENDS, Gradients, Task
from flatwing.kernels.backends import compiled, numba_cpu
from flatwing.kernels.backends.numba_cpu import NumbaCPU
from flatwing.kernels.cpu import blocks, dyadic, simd
from flatwing.structure.factor import apply_factor

DYADIC, GENERAL = Chain.butterfly(64), Chain.monarch(64, 64, blocks=8)


def draw(chain: Chain, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor], list[int]]:
    factors = [torch.randn(p.blocks, p.b, p.c, dtype=dtype) / p.c**0.5 for p in chain]
    return torch.randn(rows, chain.shape[1], dtype=dtype), factors, [p.d for p in chain]


def reference(x: torch.Tensor, factors: list[torch.Tensor], depths: list[int]) -> torch.Tensor:
    y = x.mT
    for w, d in reversed(list(zip(factors, depths, strict=True))):
        y = apply_factor(w, y, d)
    return y.mT


def test_is_registered() -> None:
    assert isinstance(BACKENDS["numba"], NumbaCPU)


def test_import_does_not_load_numba() -> None:
    code = "import sys, flatwing.kernels.backends.numba_cpu; print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chain", [DYADIC, GENERAL], ids=str)
def test_values_and_gradients(chain: Chain, dtype: torch.dtype, last: bool) -> None:
    backend = NumbaCPU()
    layout = "batch-last" if last else "batch-first"
    assert backend.unsupported_because(Task(chain, 9, dtype, layout=layout, train=True)) is None
    x, factors, depths = draw(chain, 9, dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    leaves = [t.to(wide).requires_grad_() for t in (x, *factors)]
    y = reference(leaves[0], leaves[1:], depths)
    grad = torch.randn_like(x)
    wanted = torch.autograd.grad(y, leaves, grad.to(wide))
    given, turned = (t.mT.contiguous() if last else t for t in (x, grad))
    out = backend.forward(given, factors, depths, last)
    found = backend.backward(given, factors, depths, turned, last)
    assert found.x is not None
    assert found.factors is not None
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-5)
    pairs = [(out.mT if last else out, y.detach()), (found.x.mT if last else found.x, wanted[0])]
    for got, want in [*pairs, *zip(found.factors, wanted[1:], strict=True)]:
        assert got.dtype == dtype
        assert float((got.to(wide) - want).abs().max()) <= tolerance * float(want.abs().max())


def test_what_is_not_needed_is_not_computed() -> None:
    for chain in (DYADIC, GENERAL):
        for dtype in (torch.float32, torch.bfloat16):
            x, factors, depths = draw(chain, 5, dtype)
            one = NumbaCPU().backward(x, factors, depths, x, False, need_x=False)
            other = NumbaCPU().backward(x, factors, depths, x, False, need_factors=False)
            assert one.x is None
            assert other.factors is None
            assert one.factors is not None
            assert other.x is not None


class Spy:
    """Stands for both modules of kernels and notes which was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        for module in (dyadic, blocks):
            name = module.__name__.rsplit(".", 1)[1]
            forward = module.forward

            def noted(*args: Any, name: str = name, forward: Any = forward) -> torch.Tensor:
                self.asked.append(name)
                return forward(*args)

            monkeypatch.setattr(module, "forward", noted)


def test_dyadic_kernels_run_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    for chain, dtype, last in [
        (DYADIC, torch.float32, False),
        (DYADIC, torch.bfloat16, False),
        (DYADIC, torch.float32, True),
        (DYADIC, torch.complex64, False),
        (GENERAL, torch.float32, False),
        (Chain.butterfly(4), torch.float32, False),
    ]:
        x, factors, depths = draw(chain, 5, dtype)
        NumbaCPU().forward(x.mT if last else x, factors, depths, last)
    assert spy.asked == ["dyadic", "dyadic", "blocks", "blocks", "blocks", "blocks"]


def test_uses_torch_s_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x, factors, depths = draw(DYADIC, 5, torch.float32)
    monkeypatch.setattr(dyadic, "forward", lambda *args: seen.append(args[-1]) or x)
    monkeypatch.setattr(dyadic, "backward", lambda *args: seen.append(args[-1]) or Gradients(x, factors))
    NumbaCPU().forward(x, factors, depths, False)
    NumbaCPU().backward(x, factors, depths, x, False)
    assert seen == [3, 3]


def test_other_devices_are_refused() -> None:
    reason = NumbaCPU().unsupported_because(Task(DYADIC, 4, device="cuda"))
    assert reason == "numba runs on the CPU, not on cuda"


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, find: Any = importlib.util.find_spec) -> Any:
        return None if name == "numba" else find(name)

    monkeypatch.setattr(compiled, "find_spec", find)
    reason = NumbaCPU().unsupported_because(Task(DYADIC, 4))
    assert reason == "numba is not installed. Try `pip install numba`."


def test_an_import_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise ImportError("no libLLVM\nand more")

    monkeypatch.setattr(numba_cpu, "_kernels", fail)
    reason = NumbaCPU().unsupported_because(Task(DYADIC, 4))
    assert reason is not None
    assert reason.startswith("numba does not work here: ImportError: no libLLVM. See")


def test_a_compilation_that_fails_is_a_reason_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, tries = NumbaCPU(), []

    def fail(*args: Any) -> torch.Tensor:
        tries.append(args)
        raise RuntimeError("LLVM says no")

    monkeypatch.setattr(dyadic, "forward", fail)
    assert backend.unsupported_because(Task(DYADIC, 4)) is None
    assert not tries, "nothing is compiled before it is chosen"
    for rows in (4, 8):
        reason = backend.fails_because(Task(DYADIC, rows))
        assert reason == "numba could not compile the kernels of dyadic for float32: RuntimeError: LLVM says no"
        assert backend.unsupported_because(Task(DYADIC, rows)) == reason
    assert len(tries) == 1
    assert backend.fails_because(Task(GENERAL, 4)) is None, "the other kernels still work"


def test_what_cannot_be_compiled_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.BACKENDS._entries, "numba", NumbaCPU())
    monkeypatch.setattr(dyadic, "forward", None)
    version = iter(range(-1000, 0))
    monkeypatch.setattr(wisdom, "version", lambda: next(version))
    plan = kernels.explain(DYADIC, 64)
    assert plan.backend != "numba"
    assert "could not compile" in dict(plan.skipped)["numba"]
    with pytest.raises(ValueError, match=r"backend 'numba' cannot multiply this: numba could not compile the kernels"):
        kernels.explain(DYADIC, 64, backend="numba")


def test_long_compilations_are_explained(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("flatwing.core.compile_time.WORTH_SAYING", -1.0)
    monkeypatch.setattr(simd, "folder", lambda: "somewhere")
    backend = NumbaCPU()
    for _ in range(2):
        assert backend.fails_because(Task(DYADIC, 4)) is None
    assert caplog.messages == ["kernels of dyadic for float32 compiled in 0 s, kept for later processes in somewhere"]


def test_gradients_are_tried_for_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = NumbaCPU()
    monkeypatch.setattr(dyadic, "backward", None)
    assert backend.fails_because(Task(DYADIC, 4)) is None
    assert backend.fails_because(Task(DYADIC, 4, train=True)) is not None


@pytest.mark.parametrize("chain", [DYADIC, GENERAL, Chain.butterfly(4)], ids=str)
def test_predictions(chain: Chain) -> None:
    backend = NumbaCPU()
    plain = backend.seconds(Task(chain, 64))
    assert 0 < plain < 1e-3
    assert plain < backend.seconds(Task(chain, 64, train=True))
    assert plain < backend.seconds(Task(chain, 6400))
    assert plain < backend.seconds(Task(chain, 64, torch.bfloat16)), "casts come on top"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["batch-first", "batch-last"])
@pytest.mark.parametrize("rows", [1, 5, 33, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("text", ["monarch(256, 256, blocks=16)", "butterfly(48)", "butterfly(256)"])
def test_what_is_tried_is_what_runs(text: str, dtype: torch.dtype, rows: int, layout: str, packed: bool) -> None:
    """No call compiles anything that was not compiled, and explained, when the plan was made."""
    if packed and layout == "batch-last":
        pytest.skip("packed are rows only")
    chain = Chain.parse(text)
    task = Task(chain, rows, dtype, layout=layout, train=not packed, packed=packed)  # type: ignore[arg-type]
    backend = NumbaCPU()
    assert backend.fails_because(task) is None
    functions = [f for name in ("blocks", "blocks_rows", "dyadic", "vectors") for f in compiled_in(f"{name}_kernels")]
    functions += compiled_in("blocks_backward")
    before = {f: len(f.signatures) for f in functions}
    x, factors, depths = draw(chain, rows, dtype)
    x = x.mT.contiguous() if layout == "batch-last" else x
    if packed:
        backend.prepared(factors, depths)(x, 1)
    else:
        backend.forward(x, factors, depths, layout == "batch-last")
        backend.backward(x, factors, depths, torch.ones_like(x), layout == "batch-last")
    assert {f: len(f.signatures) for f in functions} == before


def compiled_in(name: str) -> list[Any]:
    """Compiled functions that Python calls."""
    module = importlib.import_module(f"flatwing.kernels.cpu.{name}")
    return [f for f in vars(module).values() if hasattr(f, "signatures")]
