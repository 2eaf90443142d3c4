"""`flatwing advise`: whether structure would be faster than dense, here."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from ..kernels.advice import Advice, Row, percent, round_to_two
from ..kernels.advise import advise
from .output import Format, note, plainly, stdout, working, write_json

FASTER = {"structure": "chain", "dense": "dense", "equal": "about equal"}


@plainly
def command(
    columns: Annotated[int | None, typer.Option("--in", metavar="N", help="Inputs: columns of the matrix.")] = None,
    rows: Annotated[int | None, typer.Option("--out", metavar="M", help="Outputs: rows of the matrix.")] = None,
    chain: Annotated[
        str | None, typer.Option(help="'monarch(1024,1024,blocks=32)' or patterns '(1,8,8,8)(8,8,8,1)'.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Instead: the fastest chain within this share of the dense parameters: 0.25.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Numbers of vectors at once, separated by commas.")] = "1,16,256,4096",
    dtype: Annotated[
        str, typer.Option(help="float32, float64, bfloat16, float16, complex64 or complex128.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU, by default those of torch.")] = None,
    train: Annotated[bool, typer.Option("--train", help="A training step: with both gradients.")] = False,
    packed: Annotated[
        bool,
        typer.Option("--packed", help="Inference with weights that are prepared once, as by Packed."),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time it here, beside dense, and let later plans know.")
    ] = False,
    format: Annotated[
        Format, typer.Option(help="quiet is one line: verdict (structure, dense, equal, depends) and chain, by a tab.")
    ] = Format.human,
) -> None:
    """Tell whether a chain of sparse factors multiplies faster than the dense matrix, and from which batch on.

    Without --chain and --budget a Monarch chain is looked at. Times are predicted by a model, from a few rates of this
    machine that are measured once; with --measure they are taken here and now, in turns with dense. Both are kept in a
    small file that later multiplications follow, in the cache folder or where FLATWING_WISDOM says. A batch counts as
    the next power of two, as in plans; predictions that differ by less than 1.3 are about equal. How well a chain
    approximates a matrix is for flatwing factorize to tell. The answer is about the batches of --batch; what holds for
    other powers of two is told after it.
    """
    if train and packed:
        raise ValueError(
            "--train and --packed were both given. Rule: at most one of them; packed weights do not change, so that "
            "they have no gradients. Ask twice, for each of them."
        )
    with working("measuring") as progress, warnings.catch_warnings():
        warnings.showwarning = _tell
        advice = advise(
            rows,
            columns,
            chain=chain,
            budget=budget,
            batches=_batches(batch),
            dtype=dtype,
            device=device,
            threads=threads,
            train=train,
            packed=packed,
            measure=measure,
            progress=progress,
        )
    for text in advice.notes:
        note(f"note: {text}")
    if format is Format.json:
        write_json(advice.as_dict())
    elif format is Format.quiet:
        typer.echo(f"{advice.verdict}\t{advice.chain}")
    else:
        _print(advice)


def _tell(message: Warning | str, *_: object) -> None:
    """Say what is warned of in a sentence, without the line of code that a program would be told."""
    note(f"warning: {message}")


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or not int(part)]
    if wrong:
        raise ValueError(f"--batch {text}: {wrong[0]!r} is no batch. Rule: whole numbers from 1 on, as in 1,16,256.")
    return [int(part) for part in parts]


def _print(advice: Advice) -> None:
    """Print the advice for a person: what was looked at, a table of the batches, the answer."""
    (m, n), chain = advice.chain.shape, advice.chain
    where = f"{advice.threads} thread{'s' * (advice.threads > 1)}" if advice.device == "cpu" else advice.device
    lines = {
        "chain": f"{chain} ({len(chain)} factor{'s' * (len(chain) > 1)})",
        "choice": None if advice.choice == "as given" else advice.choice,
        "parameters": f"{chain.nnz:,} = {percent(chain.density)} of the {m * n:,} dense ones",
        "flops": f"{chain.flops:,} per vector instead of {2 * m * n:,}",
        "task": f"{_what(advice)}, {advice.as_dict()['dtype']}, {where}",
    }
    for name, text in lines.items():
        if text is not None:
            typer.echo(f"{name:<12}{text}")
    stdout().print(_table(advice.rows))
    if len(advice.alternatives) > 1:
        stdout().print(_others(advice))
    typer.echo(f"{'break-even':<12}{'none' if advice.break_even is None else f'batch {advice.break_even:,}'}")
    typer.echo(advice.sentence)


def _what(advice: Advice) -> str:
    return "training step" if advice.train else "forward with packed weights" if advice.packed else "forward"


def _table(rows: tuple[Row, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in ("batch", "backend", "time", "dense", "speed-up", "faster", "times are"):
        table.add_column(column, justify="left" if column in ("backend", "faster", "times are") else "right")
    for row in rows:
        table.add_row(
            f"{row.batch:,}" + (f" as {row.rows:,}" if row.rows != row.batch else ""),
            row.backend,
            _time(row.seconds, row.interval),
            _time(row.dense_seconds, row.dense_interval),
            f"{round_to_two(row.speedup)}x",
            FASTER[row.outcome],
            "measured" if row.measured else "predicted",
        )
    return table


def _others(advice: Advice) -> Table:
    table = Table(title="Within the budget, predicted", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("chain")
    for column in ("parameters", *(f"x at {row.batch:,}" for row in advice.rows)):
        table.add_column(column, justify="right")
    for other in advice.alternatives:
        table.add_row(other.spec, f"{other.parameters:,}", *(round_to_two(value) for _, value in other.speedups))
    return table


def _time(seconds: float, interval: tuple[float, float] | None) -> str:
    """A time for people, with its quartiles.

    >>> _time(0.0012, (0.001, 0.002))
    '1.2 ms (1 - 2)'
    """
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e3, "ms")) if seconds * s >= 1), (1e6, "us"))

    def told(value: int | float) -> str:
        return f"{value * scale:,.0f}" if value * scale >= 1000 else f"{value * scale:.3g}"

    return f"{told(seconds)} {unit}" + ("" if interval is None else f" ({told(interval[0])} - {told(interval[1])})")
