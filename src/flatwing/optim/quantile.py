"""The exact k-th smallest of all entries of many tensors, also when their parts are on many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Int32, Int64
from torch.distributed import ProcessGroup

from .sharded import SUM, local, over_shards, shard_groups

CHUNK = 1 << 17
"""Entries that are looked at together: what is computed of them stays in the cache of a CPU."""

ELSEWHERE = 1 << 24
"""As many on an accelerator, where each piece costs launches and a wait."""

DIGITS = ((20, 12), (10, 10), (0, 10))  # shift and width of each digit of a float's 32 bits; sign and exponent first

Bits = Int32[torch.Tensor, " n"]
Chunks = Callable[[], Iterable[Bits]]


def kth_smallest(tensors: Iterable[torch.Tensor], k: int) -> Float[torch.Tensor, ""]:
    """The k-th smallest (k = 1 is the least) of all entries of all tensors: float32, exact, the same on every rank.

    Entries count once each: all shards of a DTensor, on whatever number of ranks, and one of equal copies. Other
    dtypes are rounded to float32 first. Every rank must call this with the same tensors in the same order.

    Raises `ValueError` unless 1 <= k <= the number of entries, for a NaN or infinite entry, and `TypeError` for
    tensors that are not real floating-point. Cost: three passes over memory, of which the last two write nothing but
    counts unless few entries remain, and three all-reduces of up to 4096 whole numbers per set of process groups.
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
    chunks: list[Chunks] = [lambda group=group: _bits(group) for group in parts.values()]
    pattern, rest, count, above = 0, k, total, 32
    for shift, width in DIGITS:
        top = above == 32
        if not top:  # those with the leading bits found so far; kept if they are few, else found anew in each pass
            keep = count * 16 <= total
            chunks = [_narrowed(chunk, pattern >> above, above, keep=keep) for chunk in chunks]
        tables = (_histogram(chunk, leader, shift, width) for chunk, leader in zip(chunks, leaders, strict=True))
        table = over_shards(leaders, tables, SUM).cpu()
        if top:
            _refuse_what_is_not_finite(table)
        order = _ascending(width, top=top, negative=pattern < 0)
        reached = table[order].cumsum(0)
        place = int(torch.searchsorted(reached, rest))
        digit = int(order[place])
        rest -= int(reached[place - 1]) if place else 0
        count, above = int(table[digit]), shift
        pattern |= (digit - (1 << (width - 1)) if top else digit) << shift
    return torch.tensor(pattern, dtype=torch.int32).view(torch.float32).to(local(owners[0]).device)


def _bits(tensors: list[torch.Tensor]) -> Iterator[Bits]:
    """The bit patterns of all entries here, small tensors together and large ones in pieces."""
    waiting: list[torch.Tensor] = []
    size = 0
    for tensor in map(local, tensors):
        limit = CHUNK if tensor.device.type == "cpu" else ELSEWHERE
        for piece in tensor.detach().reshape(-1).split(limit):
            waiting.append(piece.float())
            size += piece.numel()
            if size >= limit:
                yield (torch.cat(waiting) if len(waiting) > 1 else waiting[0]).view(torch.int32)
                waiting, size = [], 0
    if size:
        yield torch.cat(waiting).view(torch.int32)


def _histogram(chunks: Chunks, leader: torch.Tensor, shift: int, width: int) -> Int64[torch.Tensor, " bins"]:
    """How often each digit occurs; the first digit, which has the sign, is counted from its least value on."""
    bins = 1 << width
    table = torch.zeros(bins, dtype=torch.int64, device=local(leader).device)
    for bits in chunks():
        digits = bits >> shift
        digits = digits.add_(bins >> 1) if shift + width == 32 else digits.bitwise_and_(bins - 1)
        table += torch.bincount(digits, minlength=bins)
    return table


def _narrowed(chunks: Chunks, prefix: int, shift: int, *, keep: bool) -> Chunks:
    """Those entries whose leading bits are `prefix`."""

    def found() -> Iterator[Bits]:
        return (bits[(bits >> shift) == prefix] for bits in chunks())

    if not keep:
        return found
    kept = list(found())
    return lambda: kept


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
