"""`flatwing compress`: a trained model in, a smaller one and a report out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..compress import STRUCTURES, Compression, compress
from ..train import EXAMPLES
from .output import Format, note, plainly, stdout, working, write_json

STAGES = ("before", "compressed", "healed", "quantized")
ROWS = (
    ("loss", "{:.4f}"),
    ("perplexity", "{:.3f}"),
    ("accuracy", "{:.2%}"),
    ("parameters", "{:,}"),
    ("linear_parameters", "{:,}"),
    ("bytes", "{:,}"),
    ("flops", "{:,}"),
)


@plainly
def command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Directory with config.json and safetensors, or a .safetensors file."),
    ] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="Directory to write; must not exist.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share to keep of the linear layers [default: 0.5].")] = None,
    unit: Annotated[str, typer.Option(help="Of what: parameters, bytes, flops or latency.")] = "parameters",
    max_loss: Annotated[
        float | None, typer.Option(help="Instead of --budget: 0.03 allows 3 % more loss, or 3 points less accuracy.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Text, folder, .jsonl, .npz or .npy that the model sees in use."),
    ] = None,
    field: Annotated[str | None, typer.Option(help="Field of a .jsonl or array of an .npz.")] = None,
    samples: Annotated[int | None, typer.Option(help="Rows to fit on [default: 512 texts or 4096 other rows].")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per row of text.")] = None,
    task: Annotated[str | None, typer.Option(help="lm, classification or other; by default from the class.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only layers of this glob: '*.mlp.*'; repeat.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not the layers of this glob; repeat.")] = None,
    structure: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(STRUCTURES)}; repeat.")] = None,
    heal: Annotated[int, typer.Option(metavar="STEPS", help="Steps of distillation afterwards.")] = 0,
    heal_lr: Annotated[float | None, typer.Option(help="Learning rate of healing [default: tries some].")] = None,
    optimizer: Annotated[str, typer.Option(help="Optimizer of healing, by its name in torch.optim.")] = "AdamW",
    match: Annotated[str, typer.Option(help="What healing matches: outputs, or layers too.")] = "outputs",
    precision: Annotated[str, typer.Option(help="Precision of healing: fp32 or bf16.")] = "fp32",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory in healing, more time.")] = False,
    quantize: Annotated[str | None, typer.Option(help="int8: matrices and factors are kept as int8.")] = None,
    densify: Annotated[bool, typer.Option("--densify", help="Write an ordinary checkpoint, multiplied out.")] = False,
    anchored: Annotated[bool, typer.Option(help="Fit layers on the inputs they get from compressed ones.")] = True,
    landmarks: Annotated[bool, typer.Option(help="Compare with SVD, sparsity and quantization.")] = True,
    curve: Annotated[bool, typer.Option(help="Also show half and twice the budget.")] = True,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="No data, flat memory; torchrun shares the matrices out.")
    ] = False,
    example: Annotated[str | None, typer.Option(help=f"Instead of MODEL: train {' or '.join(EXAMPLES)}.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    format: Annotated[Format, typer.Option(help="quiet prints the path of the report only.")] = Format.human,
) -> None:
    """Compress a trained model to a budget, prove how good each layer is, heal it, measure it, and write a report.

    With --example and no OUT the result goes to flatwing-EXAMPLE. A run that was interrupted goes on when it is started
    again with the same options. Weights without a network (.safetensors, or --weights-only) are compressed without
    data, which costs much quality; torchrun --nproc-per-node N -m flatwing compress ... then shares the layers out.
    """
    if example is not None:
        EXAMPLES[example]  # an unknown name is refused, naming the nearest
        if model is not None and out is None:
            model, out = None, Path(model)  # flatwing compress --example digits OUT
        out = out or Path(f"flatwing-{example}")
    if out is None and not dry_run:
        raise ValueError("OUT is missing. Rule: flatwing compress MODEL OUT, or --dry-run to see the plan only.")
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one rank speaks
    with working("compressing") as progress:
        done = compress(
            model,
            out,
            budget=budget,
            unit=unit,
            max_loss=max_loss,
            calibration=calibration,
            field=field,
            samples=samples,
            length=length,
            example=example,
            task=task,
            where=where or "*",
            skip=skip or (),
            structures=structure,
            heal=heal,
            heal_lr=heal_lr,
            optimizer=optimizer,
            match=match,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            quantize=quantize,
            densify=densify,
            anchored=anchored,
            landmarks=landmarks,
            curve=curve,
            weights_only=weights_only,
            dry_run=dry_run,
            overwrite=overwrite,
            seed=seed,
            progress=progress if first else None,
        )
    if not first:
        return
    if format is Format.json:
        write_json(done.to_dict())
    elif format is Format.quiet:
        typer.echo(str(done.report or done.run or ""))
    else:
        show(done)


def show(done: Compression) -> None:
    """The tables and sentences that a person reads in the terminal."""
    if done.result.get("dry_run"):
        stdout().print(plan_table(done.layers))
        kept = done.result["budget"]
        note(f"{kept['share']:.1%} of the {kept['unit']} of these layers would be kept; nothing was written.")
        if any(row["action"] == "replaced" and row["lower_bound"] is None for row in done.layers):
            note(
                "Where the bound is -, what was left of the budget raised the rank: "
                "the predicted error is that of a lower rank."
            )
        return
    measured = (done.metrics.get("before") or {}).get("flops") is not None  # weights alone cannot be run
    stdout().print(metrics_table(done.metrics) if measured else plan_table(done.layers))
    for sentence in done.summary:
        typer.echo(sentence)
    if done.run is not None:
        typer.echo(f"model:  {done.run}")
    if done.report is not None:
        typer.echo(f"report: {done.report}")


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Before, compressed, healed, side by side."""
    stages = [stage for stage in STAGES if metrics.get(stage)]
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("")
    for stage in stages:
        table.add_column("with int8" if stage == "quantized" else stage, justify="right")
    for name, form in ROWS:
        values = [metrics[stage].get(name) for stage in stages]
        if values[0] is None:
            continue
        cells = []
        for value in values:
            if isinstance(value, dict):
                error = value.get("stderr")
                cells.append(form.format(value["value"]) + (f" ± {form.format(error)}" if error is not None else ""))
            else:
                cells.append("-" if value is None else form.format(value))
        table.add_row(name.replace("_", " "), *cells)
    kl = [((metrics[stage].get("agreement") or {}).get("kl") or {}).get("value") for stage in stages]
    table.add_row("KL to the original", *("-" if value is None else f"{value:.4f}" for value in kl))
    for i, row in enumerate(metrics["before"]["latency"]):
        times = [metrics[stage]["latency"] for stage in stages]
        cells = [f"{own[i]['ms']:.2f}" if len(own) > i else "-" for own in times]
        table.add_row(f"ms at batch {row['batch']}", *cells)
    return table


def plan_table(layers: list[dict[str, Any]]) -> Table:
    """One row per layer: structure, parameters, predicted error and bound, "-" where one is not known."""

    def told(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in ("layer", "size", "structure", "parameters", "share", "predicted error", "bound"):
        table.add_column(column, justify="left" if column in ("layer", "size", "structure") else "right")
    for row in layers:
        if row["action"] == "skipped":
            table.add_row(row["name"], "", f"skipped: {row['reason']}", "", "", "", "")
            continue
        m, n = row["shape"]
        share = row["parameters"] / row["dense_parameters"]
        error, bound = told(row["error"]), told(row["lower_bound"])
        table.add_row(row["name"], f"{m}x{n}", row["structure"], f"{row['parameters']:,}", f"{share:.1%}", error, bound)
    return table
