"""advise: will this structure be faster than a dense matrix, here, for these batches? An honest answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..core import require_number
from ..structure import Chain
from . import candidates, wisdom
from .advice import Advice, Alternative, Row
from .arguments import dtype_of, kind_of, whole
from .backend import Task
from .plan import Plan, plan_for
from .race import Timing, race
from .rates import ensure_rates

BATCHES = (1, 16, 256, 4096)
LAST = 1 << 16  # up to which the break-even batch is looked for

Progress = Callable[[str, int, int], object]


def advise(
    m: int | None = None,
    n: int | None = None,
    *,
    chain: Chain | str | None = None,
    budget: int | float | None = None,
    batches: int | Sequence[int] = BATCHES,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    train: bool = False,
    packed: bool = False,
    measure: bool = False,
    progress: Progress | None = None,
) -> Advice:
    """Whether a chain with m rows and n columns multiplies faster than the dense matrix, for each number of vectors.

    Args:
        m: rows, the outputs of a layer; may be left out with a chain, as n may.
        n: columns, the inputs of a layer.
        chain: a chain or the text of one; by default the one of the budget, or a Monarch chain.
        budget: take the chain that is predicted to be fastest among a few families with at most this share of the
            dense parameters, and at least half of it if there are such; the best of each family are the alternatives.
        batches: numbers of vectors, or one; times are those of the next power of two, for which plans are made.
        dtype: of the vectors and the factors: float32, float64, bfloat16, float16, complex64 or complex128.
        device: "cpu", "cuda".
        threads: of torch, on the CPU, at most as many as there are cores; by default as many as it uses now.
        train: count both gradients in.
        packed: for inference with `Packed`: weights that do not change were read, merged and packed once.
        measure: time it here and now, beside the dense layer, and store the times for later plans. Otherwise times
            are those stored, or predicted by a model, without allocating anything.
        progress: called as progress(what, done, total).

    What is predicted to differ by less than a factor of 1.3, or what was measured with intervals that meet, is about
    equal: the advice is not to change then.

    Raises `ValueError` or `TypeError` for what is not of these kinds, for a chain of another shape, and for measuring
    what does not fit in memory. Cost: milliseconds, after half a second for the first advice of a process; on a new
    machine a third of a second for its rates, and seconds (8 on one core of a Zen 4) for every type of numbers and of
    chain whose kernels are compiled, which are kept. To measure takes about two seconds per batch.

    >>> advice = advise(1024, 1024, chain="butterfly(1024)", batches=[256])
    >>> advice.chain.nnz, advice.rows[0].batch
    (20480, 256)
    """
    notes: list[str] = []
    batches, dtype, device, threads = _batches(batches), dtype_of(dtype), _device(device), _threads(threads, notes)
    if chain is not None and budget is not None:
        raise ValueError("a chain and a budget were given. Rule: at most one of them; the budget chooses a chain.")
    if train and packed:
        raise ValueError(
            "train and packed were both asked for. Rule: at most one of them; packed weights do not change, "
            "so that they have no gradients. Ask twice, for each of them."
        )
    given = Chain.parse(chain) if isinstance(chain, str) else chain
    m, n = _sizes(m, n, given)

    def task(chain: Chain, batch: int) -> Task:
        return Task(chain, batch, dtype, device, train=train, threads=threads, packed=packed)

    if measure:
        wisdom.require_place()
    with _noting(notes, "the rates of this machine"):
        ensure_rates(device)
    alternatives: tuple[Alternative, ...] = ()
    if given is not None:
        choice = "as given"
    elif budget is None:
        spec, why = candidates.sensible(m, n)
        given, choice = Chain.parse(spec), f"{spec}: {why}"
    else:
        alternatives = _alternatives(m, n, budget, batches, task)
        spec = alternatives[0].spec
        given, choice = Chain.parse(spec), f"{spec}: predicted to be the fastest within {budget:.3g} of the parameters"
    asked = {batch: wisdom.rounded(batch) for batch in batches}
    looked_at: dict[int, Row] = {}
    if measure:  # between what was measured nothing is claimed
        sizes = tuple(dict.fromkeys(asked.values()))
        for done, size in enumerate(sizes):
            if progress is not None:
                progress(f"batch {size}", done, len(sizes))
            timings = race(task(given, size))
            with _noting(notes, f"the times of batch {size}"):
                wisdom.store(task(given, size), {name: timing.seconds for name, timing in timings.items()})
            looked_at[size] = _timed(size, timings)
    else:
        last = max(LAST, *asked.values())
        looked_at = {size: _predicted(plan_for(task(given, size))) for size in _powers(last)}
    rows = tuple(replace(looked_at[size], batch=batch) for batch, size in asked.items())
    known = {row.measured for row in rows}
    source = "in part measured" if len(known) > 1 else "measured" if known == {True} else "predicted"
    outcomes = tuple((size, looked_at[size].outcome) for size in sorted(looked_at))
    return Advice(
        given, choice, dtype, device, threads, train, packed, rows, outcomes, source, alternatives, tuple(notes)
    )


@contextmanager
def _noting(notes: list[str], what: str) -> Iterator[None]:
    """Where the wisdom file cannot be written, an advice is worth as much; it says so."""
    try:
        yield
    except ValueError as error:
        notes.append(f"{what} could not be kept for later plans: {error}")


def _predicted(plan: Plan) -> Row:
    rows, measured = plan.task.rows, plan.measured and wisdom.DENSE in wisdom.lookup(plan.task)
    return Row(rows, rows, plan.backend, plan.seconds, plan.dense_seconds, measured, None, None, plan.times)


def _timed(rows: int, timings: dict[str, Timing]) -> Row:
    own, dense = {name: timing for name, timing in timings.items() if name != wisdom.DENSE}, timings[wisdom.DENSE]
    best = min(own, key=lambda name: own[name].seconds)
    interval, dense_interval = ((timing.low, timing.high) for timing in (own[best], dense))
    times = tuple(sorted(((name, t.seconds) for name, t in own.items()), key=lambda item: item[1]))
    return Row(rows, rows, best, own[best].seconds, dense.seconds, True, interval, dense_interval, times)


def _powers(last: int) -> list[int]:
    """The powers of two up to the last one.

    >>> _powers(8)
    [1, 2, 4, 8]
    """
    return [1 << i for i in range(last.bit_length())]


def _alternatives(
    m: int, n: int, budget: int | float, batches: Sequence[int], task: Callable[[Chain, int], Task]
) -> tuple[Alternative, ...]:
    """The fastest chain of each family within the budget, fastest first; last those that leave most of it unused."""
    require_number("budget", budget, above=0, most=1, good=0.25, advice="It is a share of the dense parameters.")
    found = []
    for specs in candidates.within(m, n, budget).values():
        members = []
        for spec in specs:
            chain = Chain.parse(spec)
            speedups = tuple((batch, plan_for(task(chain, batch)).speedup) for batch in batches)
            members.append(Alternative(spec, chain.nnz, speedups))
        found.append(max(members, key=lambda member: member.speedup))
    rich = candidates.USED * budget * m * n
    return tuple(sorted(found, key=lambda member: (member.parameters < rich, -member.speedup)))


def _sizes(m: int | None, n: int | None, chain: Chain | None) -> tuple[int, int]:
    if chain is not None:
        rows, columns = chain.shape
        if m not in (None, rows) or n not in (None, columns):
            wanted = f"{rows if m is None else m} x {columns if n is None else n}"
            raise ValueError(
                f"the chain has shape {rows} x {columns}, wanted is {wanted}. Rule: outputs x inputs, the shape of "
                f"the weight of a linear layer; leave the sizes out to take those of the chain."
            )
        return rows, columns
    if m is None or n is None:
        name = "m (outputs)" if m is None else "n (inputs)"
        raise ValueError(f"{name} is missing. Rule: both sizes of the matrix, or a chain, which has them.")
    return whole("m (outputs)", m), whole("n (inputs)", n)


def _batches(batches: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(batches, str):
        raise TypeError(f"batches is {batches!r}. Rule: a number of vectors or a list of such numbers, as in [1, 16].")
    found = tuple(whole("batch", batch) for batch in (batches if isinstance(batches, Sequence) else [batches]))
    if not found:
        raise ValueError("no batch was given. Rule: at least one number of vectors, such as 16.")
    return tuple(dict.fromkeys(found))


def _device(device: str | torch.device) -> str:
    """The kind of a device that is here; raises `ValueError` for one that is not."""
    kind = kind_of(device)
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch sees no CUDA device here. Rule: a device of this machine; take 'cpu'.")
    return kind


def _threads(threads: int | None, notes: list[str]) -> int:
    if threads is None:
        return torch.get_num_threads()
    threads = whole("threads", threads)
    cores = os.cpu_count() or 1
    if threads > cores:
        notes.append(f"threads={threads} are more than the {cores} cores of this machine; the advice is for {cores}")
    return min(threads, cores)
