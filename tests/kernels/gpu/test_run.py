"""Chains forward and backward with the shipped tiles: in the interpreter, and on a GPU if there is one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from flatwing.structure import Chain
from kernels.gpu.kit import TOLERANCE, Modules, error, gradients, product, values, vectors

CHAINS = [
    Chain.parse("(1,16,16,16)(16,16,16,1)"),  # fused
    Chain.butterfly(12),  # tiny blocks
    Chain.parse("(2,5,6,7)(6,14,3,1)").T,  # odd sizes, rank 2, the dual flavour
]
WITH_PAIR = Chain.parse("(1,2,2,256)(2,16,16,16)(32,16,16,1)")  # the right two are fused
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def data(chain: Chain, rows: int, dtype: torch.dtype, last: bool) -> tuple[torch.Tensor, list[torch.Tensor], Any, Any]:
    x, grad = (vectors(rows, n, dtype, last) for n in chain.shape[::-1])
    return x, [values(p, dtype) for p in chain], tuple(p.d for p in chain), grad


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_forward_and_both_gradients(interpreted: Modules, chain: Chain, last: bool) -> None:
    x, w, d, grad = data(chain, 19, torch.float32, last)
    y = interpreted.run.forward(x, w, d, last)
    assert error(y, product(x, w, d)) < TOLERANCE[x.dtype]
    wanted = gradients(x, w, d, grad)
    gx, gw = interpreted.run.backward(x, w, d, grad, last)
    for found, right in zip((gx, *gw), wanted, strict=True):
        assert error(found, right) < TOLERANCE[x.dtype]
    assert error(interpreted.run.input_gradient(w, d, grad, last), wanted[0]) < TOLERANCE[x.dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(interpreted: Modules, dtype: torch.dtype) -> None:
    chain = CHAINS[0]
    x, w, d, grad = data(chain, 19, dtype, False)
    gx, gw = interpreted.run.backward(x, w, d, grad, False)
    for found, right in zip((gx, *gw), gradients(x, w, d, grad), strict=True):
        assert found.dtype == dtype
        assert error(found, right) < TOLERANCE[dtype]


def test_parts_of_a_gradient_are_added_in_float32(interpreted: Modules) -> None:
    chain, rows = Chain.parse("(2,4,3,1)"), 300
    x, w, d, grad = data(chain, rows, torch.bfloat16, False)
    _, (found,) = interpreted.run.backward(x, w, d, grad, False)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous()
    right = gradients(x, w, d, grad)[1]
    assert error(found, right) < 4e-3, "rounded once, to the nearest: torch adds the parts"


def test_no_rows(interpreted: Modules) -> None:
    chain = CHAINS[0]
    x, w, d, grad = data(chain, 0, torch.float32, False)
    assert interpreted.run.forward(x, w, d, False).shape == (0, chain.shape[0])
    gx, gw = interpreted.run.backward(x, w, d, grad, False)
    assert gx.shape == x.shape
    assert all((g == 0).all() and g.shape == v.shape for g, v in zip(gw, w, strict=True))


def test_one_row(interpreted: Modules) -> None:
    chain = CHAINS[0]
    x, w, d, _ = data(chain, 1, torch.float32, False)
    assert error(interpreted.run.forward(x, w, d, False), product(x, w, d)) < TOLERANCE[x.dtype]


def test_parts_of_the_gradients_of_a_pair_are_added(interpreted: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    summed = []
    monkeypatch.setattr(interpreted.run, "_sum", lambda parts, dtype: summed.append(parts) or parts.sum(0).to(dtype))
    x, w, d, grad = data(CHAINS[0], 300, torch.bfloat16, False)
    _, gw = interpreted.run.backward(x, w, d, grad, False)
    for found, right in zip(gw, gradients(x, w, d, grad)[1:], strict=True):
        assert found.dtype == torch.bfloat16
        assert error(found, right) < TOLERANCE[torch.bfloat16]
    assert [parts.dtype for parts in summed] == [torch.float32] * 2
    assert all(len(parts) > 1 for parts in summed)


def test_gradients_of_a_pair_beside_another_factor(interpreted: Modules) -> None:
    x, w, d, grad = data(WITH_PAIR, 3, torch.float32, False)
    gx, gw = interpreted.run.backward(x, w, d, grad, False)
    for found, right in zip((gx, *gw), gradients(x, w, d, grad), strict=True):
        assert error(found, right) < TOLERANCE[x.dtype]


@pytest.fixture
def kernels(interpreted: Modules, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that would run, in their order; none does."""
    found: list[str] = []
    monkeypatch.setattr(interpreted.launch.Launch, "run", lambda self: found.append(self.kernel.__name__))
    return found


def test_the_gradient_of_x_alone_is_fused(interpreted: Modules, kernels: list[str]) -> None:
    _, w, d, grad = data(CHAINS[0], 19, torch.float32, False)
    interpreted.run.input_gradient(w, d, grad, False)
    assert kernels == ["pair"]


@pytest.mark.parametrize("need_x", [False, True])
def test_all_gradients_of_a_pair_are_two_launches(interpreted: Modules, kernels: list[str], need_x: bool) -> None:
    x, w, d, grad = data(CHAINS[0], 19, torch.float32, False)
    interpreted.run.backward(x, w, d, grad, False, need_x)
    assert kernels == ["pair_weights", *["pair"] * need_x]


def test_what_stands_before_a_pair_is_computed_fused(interpreted: Modules, kernels: list[str]) -> None:
    x, w, d, grad = data(WITH_PAIR, 19, torch.float32, False)
    interpreted.run.backward(x, w, d, grad, False)
    assert kernels == ["pair", "tiny", "tiny", "pair_weights", "pair"]


def test_no_gradient_of_x_is_computed_that_nobody_wants(interpreted: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = CHAINS[2]
    x, w, d, grad = data(chain, 19, torch.float32, False)
    applied = []
    apply = interpreted.run.apply
    monkeypatch.setattr(interpreted.run, "apply", lambda *args: applied.append(1) or apply(*args))
    gx, gw = interpreted.run.backward(x, w, d, grad, False, need_x=False)
    assert gx is None
    assert len(applied) == 2, "the input of the left factor, and the gradient that reaches the right one"
    assert error(gw[1], gradients(x, w, d, grad)[2]) < TOLERANCE[x.dtype]


ON_GPU = [
    *CHAINS,
    WITH_PAIR,
    Chain.parse("(1,32,32,32)(32,32,32,1)"),
    Chain.parse("(1,67,53,5)(1,265,37,1)"),
    Chain.butterfly(256),
    Chain.parse("(1,192,48,2)(2,48,192,1)"),
]


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from flatwing.kernels.gpu import tune

    monkeypatch.setenv("FLATWING_WISDOM", "/dev/null")
    tune.forget()
    yield
    tune.forget()


@needs_gpu
@pytest.mark.parametrize("rows", [1, 33, 5000])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chain", ON_GPU, ids=str)
def test_on_a_gpu(no_files: None, chain: Chain, dtype: torch.dtype, last: bool, rows: int) -> None:
    from flatwing.kernels.gpu import run

    x, w, d, grad = data(chain, rows, dtype, last)
    wanted = [product(x, w, d), *gradients(x, w, d, grad)]
    x, grad, *w = (t.cuda() for t in (x, grad, *w))

    def all_of_it() -> list[torch.Tensor]:
        gx, gw = run.backward(x, w, d, grad, last)
        return [run.forward(x, w, d, last), gx, *gw]

    first = all_of_it()
    for found, right in zip(first, wanted, strict=True):
        # a product of L factors in 16 bits is rounded L times
        assert error(found.cpu(), right) < len(chain) * TOLERANCE[dtype]
    for _ in range(5):  # an error that moves is a race
        assert all(torch.equal(a, b) for a, b in zip(first, all_of_it(), strict=True))


@needs_gpu
def test_tiles_that_are_measured_compute_the_same(no_files: None) -> None:
    from flatwing.kernels.gpu import run
    from flatwing.kernels.gpu.launch import apply_launches
    from flatwing.kernels.gpu.tiles import table

    pattern = ON_GPU[4][0]
    x, w = vectors(1000, pattern.shape[1], torch.float16, False).cuda(), values(pattern, torch.float16).cuda()
    wanted = product(x.cpu(), [w.cpu()], [pattern.d])
    for tile in table("factor", "half"):
        y = torch.full_like(run.apply(x, w, pattern, False), torch.nan)
        for launch in apply_launches(x, w, pattern.d, y, tile):
            launch.run()
        assert error(y.cpu(), wanted) < TOLERANCE[torch.float16]


@needs_gpu
@pytest.mark.parametrize("numbers", ["half", "single"])
def test_all_tiles_of_pairs_compute_the_same(no_files: None, numbers: str) -> None:
    from flatwing.kernels.gpu.device import device_of
    from flatwing.kernels.gpu.geometry import geometry
    from flatwing.kernels.gpu.launch import pair_launches, pair_weights_launch
    from flatwing.kernels.gpu.tiles import table

    dtype = torch.float16 if numbers == "half" else torch.float32
    room = device_of(0).shared
    for middle in (16, 32, 64, 128):
        chain = Chain.parse(f"(1,32,{middle},48)({middle},48,32,1)")
        x, w, d, grad = data(chain, 1000, dtype, False)
        wanted = [product(x, w, d), *gradients(x, w, d, grad)[1:]]
        x, grad, *w = (t.cuda() for t in (x, grad, *w))
        shape = geometry(*chain)
        assert shape is not None
        for tile in table("pair", numbers):  # type: ignore[arg-type]
            if tile.middle == middle and tile.shared <= room:
                y = torch.full_like(grad, torch.nan)
                for launch in pair_launches(x, w[1], w[0], y, shape, tile):
                    launch.run()
                assert error(y.cpu(), wanted[0]) < 2 * TOLERANCE[dtype], tile
        for tile in table("pair_weights", numbers):  # type: ignore[arg-type]
            if tile.middle == middle and tile.shared <= room:
                parts = [torch.full((3, *v.shape), torch.nan, device="cuda") for v in w]
                pair_weights_launch(x, grad, w[1], w[0], (parts[1], parts[0]), shape, tile).run()
                for part, right in zip(parts, wanted[1:], strict=True):
                    assert error(part.sum(0).cpu(), right) < 2 * TOLERANCE[dtype], tile
