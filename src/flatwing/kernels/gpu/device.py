"""Rates of a GPU: what it says of itself where it is there, those of an H100 where not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import torch

# multiply-adds per cycle and multiprocessor, dense: (bfloat16 with float32 sums, float32)
PER_CYCLE = {(7, 5): (512, 64), (8, 0): (1024, 64), (8, 6): (512, 128), (8, 9): (512, 128), (9, 0): (2048, 128)}
ACHIEVED = 0.8  # of the nominal rates, by large matrix products
ACHIEVED_MEMORY = 0.9


@final
@dataclass(frozen=True, slots=True)
class Device:
    """Rates that a well-written kernel reaches; bytes, operations and seconds. Default: H100 SXM."""

    capability: tuple[int, int] = (9, 0)
    processors: int = 132
    memory: float = 3.0e12
    """Bytes per second from and to memory."""
    cache: float = 5.5e12
    """Bytes per second from the last cache; assumed in proportion to processors and clock."""
    half: float = 790e12
    """16-bit operations per second on tensor cores."""
    single: float = 50e12
    """float32 operations per second outside of tensor cores."""
    shared: int = 227 * 1024
    """Bytes of shared memory that one program may use."""
    launch: float = 6e-6
    """Seconds from one kernel to the next."""


@cache
def device_of(index: int | None) -> Device:
    """The rates of a CUDA device; without an index, of the current one, or of an H100 if there is none.

    Source of the defaults: measured rates of an H100; see `PER_CYCLE` for the nominal ones.
    """
    if index is None:
        return device_of(torch.cuda.current_device()) if torch.cuda.is_available() else Device()
    properties = torch.cuda.get_device_properties(index)
    default = Device()
    capability = (properties.major, properties.minor)
    known = max((c for c in PER_CYCLE if c <= capability), default=min(PER_CYCLE))
    tensor, plain = PER_CYCLE[known]
    cycles = properties.multi_processor_count * 1e3 * (getattr(properties, "clock_rate", 0) or 1.7e6)  # kHz
    # two transfers per cycle of the memory clock (kHz)
    wires = 2e3 * getattr(properties, "memory_clock_rate", 0) * getattr(properties, "memory_bus_width", 0) / 8
    return Device(
        capability=capability,
        processors=properties.multi_processor_count,
        memory=ACHIEVED_MEMORY * wires or default.memory,
        cache=default.cache * cycles / (132 * 1.98e9),
        half=ACHIEVED * 2 * tensor * cycles,
        single=ACHIEVED * 2 * plain * cycles,
        shared=getattr(properties, "shared_memory_per_block_optin", default.shared),
    )
