"""Compiling for a GPU that is not there."""

import os
from pathlib import Path

import pytest
import torch

from flatwing.kernels.gpu.ahead import compile_for
from flatwing.kernels.gpu.tiles import Tile


class Pretender:
    """A driver of one sm_90, as far as the launcher asks before it launches."""

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def test_a_launch_finds_what_was_compiled_ahead(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    from flatwing.kernels.gpu.launch import apply_launches

    def files() -> set[str]:
        return {str(file) for file in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*")}

    # sizes that are one, a multiple of 16, and neither
    x, w, y = (torch.empty(*shape, dtype=torch.float16, device="meta") for shape in ((64, 21), (1, 16, 21), (64, 16)))
    (launch,) = apply_launches(x, w, 1, y, Tile("flat", 16, 16, 16))
    compile_for(90, launch)
    before = files()
    monkeypatch.setattr(driver, "_active", Pretender())
    launch.kernel.device_caches.clear()  # what other tests had compiled in this process
    launch.kernel.warmup(*launch.args, grid=(1,), **launch.options)
    assert files() == before, "nothing was compiled again"
    launch.kernel.warmup(*launch.args, grid=(1,), **{**launch.options, "num_stages": 1})
    assert files() > before
    launch.kernel.device_caches.clear()


def test_an_unknown_dtype_is_refused_by_name(compiled: None) -> None:
    from flatwing.kernels.gpu.launch import apply_launches

    x, w, y = (torch.empty(*shape, dtype=torch.float64, device="meta") for shape in ((4, 4), (1, 4, 4), (4, 4)))
    (launch,) = apply_launches(x, w, 1, y, Tile("flat", 16, 16, 16))
    with pytest.raises(KeyError, match="float64"):
        compile_for(90, launch)
