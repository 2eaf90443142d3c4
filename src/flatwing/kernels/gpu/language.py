"""Triton if it is installed. Without it the modules of kernels can still be imported."""

from __future__ import annotations

from typing import Any

try:
    import triton as _triton
    import triton.language as _language
except ImportError:  # an optional dependency; `TritonGPU.unsupported_because` tells the user
    _triton = _language = None

tl: Any = _language


def jit(function: Any) -> Any:
    """A kernel, or the function itself where nothing can run it."""
    return function if _triton is None else _triton.jit(function)


def interpreted(kernel: Any) -> bool:
    """Whether a kernel runs in Triton's interpreter, where bfloat16 operands of a dot would be read as integers."""
    return type(kernel).__name__ == "InterpretedFunction"
