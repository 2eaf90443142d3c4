"""The exact k-th smallest of all entries of many tensors, also when their parts are on many machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int32, Int64
from torch.distributed import ProcessGroup

from .memory import compiled
from .sharded import SUM, local, over_shards, shard_groups

CHUNK = 1 << 17
"""Entries that are looked at together: what is computed of them stays in the cache of a CPU."""

ELSEWHERE = 1 << 24
"""As many on an accelerator, where each piece costs launches and a wait."""

DIGITS = ((20, 12), (10, 10), (0, 10))  # shift and width of each digit of a float's 32 bits; sign and exponent first

Bits = Int32[torch.Tensor, " n"]


def kth_smallest(tensors: Iterable[torch.Tensor], k: int) -> Float[torch.Tensor, ""]:
    """The k-th smallest (k = 1 is the least) of all entries of all tensors: float32, exact, the same on every rank.

    Entries count once each: all shards of a DTensor, on whatever number of ranks, and one of equal copies. Other
    dtypes are rounded to float32 first. Every rank must call this with the same tensors in the same order.

    Raises `ValueError` unless 1 <= k <= the number of entries, for a NaN or infinite entry, and `TypeError` for
    tensors that are not real floating-point. Cost: three passes over memory that write nothing but counts (compiled,
    for large tensors on a CPU), and three all-reduces of up to 4096 whole numbers per set of process groups.
    Memory: that of a small part of the entries.

    Radix select: bit patterns of floats are ordered like whole numbers, up to the sign, so the leading digit of the
    answer is where the histogram of leading digits reaches k, and so on within it. Sums of whole numbers do not
    depend on their order, hence neither does the answer.

    >>> kth_smallest([torch.tensor([3.0, 1.0]), torch.tensor([[2.0, 1.0]])], 3)
    tensor(2.)
    """
    owners = list(tensors)
    for tensor in owners:
        if not tensor.is_floating_point():
            raise TypeError(
                f"a tensor is {str(tensor.dtype).removeprefix('torch.')}. Rule: a real floating-point dtype. "
                "Write .float(), or .abs() if it is complex."
            )
    total = sum(tensor.numel() for tensor in owners)
    if not 1 <= k <= total:
        near = f"Nearest good value: {min(max(k, 1), total)}." if total else "Pass tensors that have entries."
        raise ValueError(f"k is {k}. Rule: 1 <= k <= number of entries, here {total}. {near}")
    parts: dict[tuple[ProcessGroup, ...], list[torch.Tensor]] = {}
    for tensor in owners:
        parts.setdefault(shard_groups(tensor), []).append(tensor)
    leaders = [group[0] for group in parts.values()]
    pattern, rest, above = 0, k, 32
    for shift, width in DIGITS:
        top = above == 32
        tables = (_histogram(group, pattern >> above, above, shift, width) for group in parts.values())
        table = over_shards(leaders, tables, SUM).cpu()
        if top:
            _refuse_what_is_not_finite(table)
        order = _ascending(width, top=top, negative=pattern < 0)
        reached = table[order].cumsum(0)
        place = int(torch.searchsorted(reached, rest))
        digit = int(order[place])
        rest -= int(reached[place - 1]) if place else 0
        above = shift
        pattern |= (digit - (1 << (width - 1)) if top else digit) << shift
    return torch.tensor(pattern, dtype=torch.int32).view(torch.float32).to(local(owners[0]).device)


def _bits(tensors: list[torch.Tensor]) -> Iterator[Bits]:
    """The bit patterns of all entries here, small tensors together and large ones in pieces."""
    waiting: list[torch.Tensor] = []
    size = 0
    for tensor in map(local, tensors):
        flat = tensor.detach().reshape(-1)
        if compiled(flat):  # needs no chunks
            yield flat.view(torch.int32)
            continue
        limit = CHUNK if tensor.device.type == "cpu" else ELSEWHERE
        for piece in flat.split(limit):
            waiting.append(piece.float())
            size += piece.numel()
            if size >= limit:
                yield (torch.cat(waiting) if len(waiting) > 1 else waiting[0]).view(torch.int32)
                waiting, size = [], 0
    if size:
        yield torch.cat(waiting).view(torch.int32)


def _histogram(
    tensors: list[torch.Tensor], prefix: int, above: int, shift: int, width: int
) -> Int64[torch.Tensor, " bins"]:
    table = torch.zeros(1 << width, dtype=torch.int64, device=local(tensors[0]).device)
    for bits in _bits(tensors):
        table += _counted(bits, prefix, above, shift, width)
    return table


def _counted(bits: Bits, prefix: int, above: int, shift: int, width: int) -> Int64[torch.Tensor, " bins"]:
    """How often each digit occurs in entries whose bits from `above` on are `prefix`.

    The first digit, which has the sign and nothing above, is counted from its least value on.
    """
    if fast := compiled(bits):
        return fast.counted(bits, prefix, above, shift, width)
    bins = 1 << width
    if above == 32:
        return torch.bincount((bits >> shift).add_(bins >> 1), minlength=bins)
    among = bits[(bits >> above) == prefix]
    return torch.bincount((among >> shift).bitwise_and_(bins - 1), minlength=bins)


def _ascending(width: int, *, top: bool, negative: bool) -> Int64[torch.Tensor, " bins"]:
    """The digits in the order of the floats: of negative ones, larger patterns are smaller."""
    bins = torch.arange(1 << width)
    half = 1 << (width - 1)
    if top:
        return torch.cat([bins[:half].flip(0), bins[half:]])
    return bins.flip(0) if negative else bins


def _refuse_what_is_not_finite(table: Int64[torch.Tensor, " bins"]) -> None:
    per_sign = table.reshape(2, -1)
    bad = int(per_sign[:, per_sign.shape[1] * 255 // 256 :].sum())  # all bits of the exponent set
    if bad:
        raise ValueError(
            f"{bad} entries are NaN or infinite in float32. Rule: finite. Skip this step, or mend the data."
        )
