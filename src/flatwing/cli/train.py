"""`flatwing train`: a recipe in, a trained model and a run folder out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .. import report
from ..core import replacing
from ..train import Metric
from ..train.distributed import launched
from ..train.parts import make_parts
from ..train.recipe import SUFFIX, Recipe, packaged, read_recipe, recipe_text, to_toml
from ..train.run import Outcome, run_recipe
from .output import Format, note, plainly, stdout, write_json

VERBS = ("ls", "show", "cp", "validate")


@plainly
def command(
    what: Annotated[
        str,
        typer.Argument(metavar="RECIPE|VERB", help="A .toml file, a name of a recipe, or ls, show, cp, validate."),
    ],
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values to set, such as optimizer.lr=1e-3; arguments of a verb."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder [default: flatwing-RECIPE].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where the folder has a run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With cp: replace the file if it exists.")] = False,
    format: Annotated[Format, typer.Option(help="quiet prints the run folder only.")] = Format.human,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Same as --format quiet, and no progress.")] = False,
) -> None:
    """Train what a recipe describes, and write a run folder: weights, metrics, report.

    flatwing train ls lists the recipes, flatwing train show NAME prints one, flatwing train cp NAME FILE.toml makes a
    copy of your own, flatwing train validate RECIPE [KEY=VALUE]... makes everything but does not train. Ctrl-C saves;
    the same command goes on. torchrun --nproc-per-node N -m flatwing train RECIPE shares each batch among N processes.
    """
    words = values or []
    format = Format.quiet if quiet else format
    if what == "ls":
        _expect(words, 0, "ls")
        return list_recipes(format)
    if what == "show":
        _expect(words, 1, "show NAME")
        return show_recipe(words[0], format)
    if what == "cp":
        _expect(words, 2, "cp NAME FILE.toml")
        return copy_recipe(words[0], Path(words[1]), force, format)
    if what == "validate":
        if not words:
            _expect(words, 1, "validate RECIPE [KEY=VALUE]...")
        return validate(read_recipe(words[0], words[1:]), format)
    recipe = read_recipe(what, words)
    name = Path(what).stem
    try:
        with watching(name, shown=not quiet) as progress:
            folder = out or Path(f"flatwing-{name}")
            outcome = run_recipe(recipe, folder, name=name, overwrite=overwrite, progress=progress, say=note)
    except FloatingPointError as error:  # training diverged
        note(f"error: {error}")
        raise typer.Exit(1) from None
    if os.environ.get("RANK", "0") == "0":
        finish(outcome, None if outcome.result is None else report.write(outcome.folder), format)
    if outcome.result is None:
        raise typer.Exit(130)


def _expect(words: list[str], count: int, usage: str) -> None:
    if len(words) != count:
        raise ValueError(f"got {len(words)} arguments. Rule: flatwing train {usage}.")


def list_recipes(format: Format) -> None:
    """Names of the packaged recipes and what they do."""
    recipes = packaged()
    if format is Format.json:
        return write_json({"recipes": recipes})
    if format is Format.quiet:
        return typer.echo("\n".join(recipes))
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("recipe")
    table.add_column("")
    for name, line in recipes.items():
        table.add_row(name, line)
    stdout().print(table)
    return note("Run one: flatwing train NAME. Make it yours: flatwing train cp NAME my.toml.")


def show_recipe(name: str, format: Format) -> None:
    """The text of a recipe, or what it says, complete."""
    if format is Format.json:
        return write_json({"name": name, "recipe": read_recipe(name).table()})
    return typer.echo(recipe_text(name), nl=False)


def copy_recipe(name: str, path: Path, force: bool, format: Format) -> None:
    """Write a recipe to a file of the user's own; an existing one is replaced with --force only."""
    text = recipe_text(name)
    if path.suffix != SUFFIX:
        raise ValueError(f"FILE is {str(path)!r}. Rule: its name ends in {SUFFIX}. Write {path.with_suffix(SUFFIX)}.")
    if path.exists() and not force:
        raise ValueError(f"{str(path)!r} exists. Rule: nothing is overwritten. Name another file, or give --force.")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(str(path))
    if format is Format.human:
        note(f"Edit it, then: flatwing train {path}")


def validate(recipe: Recipe, format: Format) -> None:
    """Make data, model and number of steps, and say what would be trained."""
    parts = make_parts(recipe)
    count = sum(p.numel() for p in parts.model.parameters())
    if format is Format.json:
        record = {"steps": parts.steps, "parameters": count, "samples": parts.data.sizes, "recipe": recipe.table()}
        record["notes"] = parts.notes
        return write_json(record)
    if format is Format.human:
        typer.echo(to_toml(recipe.table()), nl=False)
    for line in parts.notes:
        note(line)
    samples = parts.data.sizes["train"]
    note(f"{count:,} parameters, {parts.steps:,} steps, {samples:,} training samples: this would run.")
    return None


def finish(outcome: Outcome, page: Path | None, format: Format) -> None:
    """Say what became of the run."""
    if outcome.result is None:
        return note(f"stopped after step {outcome.step} of {outcome.steps}; the same command goes on")
    if format is Format.json:
        return write_json(outcome.result | {"folder": outcome.folder})
    if format is Format.quiet:
        return typer.echo(outcome.folder)
    for sentence in outcome.result["summary"]:
        typer.echo(sentence)
    typer.echo(f"run:    {outcome.folder}")
    typer.echo(f"report: {page}")
    return None


@contextmanager
def watching(name: str, *, shown: bool) -> Iterator[Callable[[Metric, int, int], None] | None]:
    """Step, loss, speed and the time left on stderr; nothing at all without a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not shown or not console.is_terminal or (launched() and os.environ.get("RANK", "0") != "0"):
        yield None
        return
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None, told="")
        score: list[float] = []

        def advance(metric: Metric, steps: int, per_step: int) -> None:
            progress.update(task, completed=metric["step"], total=steps)
            score[:] = [metric["score"]] if "score" in metric else score
            speed = progress.tasks[task].speed
            parts: list[Any] = [f"loss {metric['loss']:.4f}"] if "loss" in metric else []
            parts += [f"held-out {value:.4f}" for value in score]
            parts += [f"{speed * per_step:,.0f}/s"] if speed else []
            progress.update(task, told="  ".join(parts))

        yield advance
