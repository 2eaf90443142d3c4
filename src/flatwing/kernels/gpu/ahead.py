"""What a launch would use on a GPU that is not there: compiled ahead of time, without a driver."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .launch import Launch

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may use, per compute capability."""
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Compiled(NamedTuple):
    """Resources of a compiled kernel."""

    tensor_core: str | None
    """Which instruction multiplies: "wgmma", "mma.sync", or None for ordinary arithmetic."""
    stack: int
    """Bytes per thread, which is what registers were spilled to."""
    shared: int
    """Bytes per program."""
    registers: int
    """Per thread."""
    wide: int
    """Number of instructions that load 128 bits from memory."""


def compile_for(capability: int, launch: Launch) -> Compiled:
    """Compile as the launcher would: arguments equal to 1 become constants, multiples of 16 are known to be such.

    So a launch on a device of that capability finds the result in Triton's cache on disk. `capability` is 80 for sm_80,
    and so on. Tensors may be on the meta device. Cost: half a second.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants = {}, {}
    names = launch.kernel.arg_names
    attributes: dict[tuple[int], list[Any]] = {(at,): [] for at in range(len(names))}
    for at, (name, arg) in enumerate(zip(names, launch.args, strict=False)):
        if isinstance(arg, int) and arg == 1:
            signature[name], constants[(at,)] = "constexpr", 1
            continue
        signature[name] = TYPES[arg.dtype] if isinstance(arg, torch.Tensor) else "i32" if arg < 2**31 else "i64"
        if isinstance(arg, torch.Tensor) or arg % 16 == 0:
            attributes[(at,)] = [["tt.divisibility", 16]]
    for at, name in enumerate(names[len(launch.args) :], start=len(launch.args)):
        signature[name], constants[(at,)] = "constexpr", launch.options[name]
    source: Any = ASTSource(launch.kernel, signature, constants, attributes)
    options = {name: launch.options[name] for name in OPTIONS}
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = done.asm["ptx"]
    core = "wgmma" if "wgmma.mma_async" in ptx else "mma.sync" if "mma.sync" in ptx else None
    used = _resources(done.asm["cubin"])
    wide = len(
        re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\.c[ga]\S* \[[^]]*\], \[[^]]*\], 0x10", ptx)
    )
    return Compiled(core, used["STACK"], done.metadata.shared, used["REG"], wide)


def _resources(cubin: bytes) -> dict[str, int]:
    """What the assembler says that a kernel needs."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", text)}
