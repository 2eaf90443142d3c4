"""compress: a trained network in, a smaller one out, with what was lost."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from ..core.machine import __version__
from ..nn import densify_
from ..report import write as write_report
from ..train import EXAMPLES
from .calibration import Data, by_targets, load_data
from .load import load
from .options import Options, check_task
from .pipeline import Pipeline
from .place import require_apart
from .record import make_record, write_output
from .source import Source, from_directory, from_example, from_module
from .trace import evaluating
from .weights import compress_weights
from .work import TRAINED, Work, check_output, fingerprint, partial

WEIGHTS_ONLY = ("low_rank", "blast_8")  # structures that are tried where no data say which errors matter


@final
@dataclass(frozen=True)
class Compression:
    """What became of a network: the new one in evaluation mode, and everything that was measured.

    `metrics` has "before", "compressed", "healed" and "quantized" (None where there was no such stage), `layers` a row
    per linear layer, `summary` the sentences of the report's first paragraph; `run` and `report` are paths if an
    output directory was given. After a dry run `model` is None.
    """

    model: nn.Module | None
    result: dict[str, Any]
    run: Path | None = None
    report: Path | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """Quality and sizes by stage."""
        return self.result["metrics"]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Structure, errors and bound of every layer."""
        return self.result["layers"]

    @property
    def summary(self) -> list[str]:
        """What was done, gained and lost, in words."""
        return self.result["summary"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the record of the run with its paths."""
        paths = {"run": self.run, "report": self.report}
        return {**{key: None if path is None else str(path) for key, path in paths.items()}, **self.result}


def compress(
    model: nn.Module | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    budget: float | None = None,
    calibration: Any = None,
    field: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    example: str | None = None,
    task: str | None = None,
    where: str | Iterable[str] = "*",
    skip: str | Iterable[str] = (),
    structures: Iterable[str] | None = None,
    weights_only: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Compression:
    """Compress a trained network to a share of its linear layers' cost, losing as little as possible on its data.

    Args:
        model: a directory (config.json and safetensors), a bare .safetensors file (weights only, no data), or an
            `nn.Module`, which is not changed. `example` trains a built-in one instead: "digits" or "bytelm".
        out: directory for the result; None keeps it in memory. An interrupted run goes on when called again.
        budget: share of the dense cost of the compressed layers, 0.5 by default; `unit` says of what: "parameters",
            "bytes", "flops" or measured "latency". Or `max_loss`: the smallest budget whose held-out loss grows by at
            most that share (for classifiers: lost points of accuracy as a fraction).
        calibration: path, tensor or batches of what the network sees in use; see `load_data`, also for `field`,
            `samples` and `length`. A built-in default otherwise.
        where, skip: globs over the names of layers. structures: names in `STRUCTURES`.
        heal: steps of distillation afterwards, with `heal_lr` (by default the best of four in short trials),
            `optimizer`, `match`, `precision` and `gradient_checkpointing`; see `heal`.
        anchored: fit every layer on the inputs that it gets from the compressed layers before it.
        quantize: "int8" keeps matrices and factors as int8. densify: write an ordinary dense checkpoint.
        landmarks, curve: compare with other methods at the same share; quality at half and twice the share.
        weights_only: compress a directory without building the network, as a bare .safetensors file: no data, no
            healing, memory for one matrix per process; under torchrun the processes share the matrices out.
        dry_run: only plan. overwrite: replace an `out` that exists. seed: of everything random.

    Raises `ValueError` for bad options, data and files before any work; nothing that existed is lost.

    >>> from flatwing.train import DigitsMLP
    >>> data = torch.rand(300, 64, generator=torch.Generator().manual_seed(0))
    >>> done = compress(DigitsMLP(width=16), budget=0.5, calibration=data, landmarks=False, curve=False, timing=0.01)
    >>> done.metrics["compressed"]["linear_parameters"] <= 0.5 * done.metrics["before"]["linear_parameters"]
    True
    """
    asked = Options(
        budget=0.5 if budget is None and options.get("max_loss") is None else budget,
        where=_names(where),
        skip=_names(skip),
        seed=seed,
        **({} if structures is None else {"structures": _names(structures)}),
        **options,
    )
    check_task(task)
    if (model is None) == (example is None):
        raise ValueError("give a model or an example, not both and not neither. Examples: " + ", ".join(EXAMPLES) + ".")
    target = None if out is None else Path(out)
    path = isinstance(model, (str, os.PathLike))
    if path and (weights_only or Path(model).suffix == ".safetensors"):
        return _weights_only(Path(model), target, asked, overwrite, dry_run, calibration, progress)
    if weights_only:
        raise ValueError("weights_only reads files. Rule: model is a directory or a .safetensors file.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "several processes cannot share a calibrated run: each layer waits for those before it. "
            "Rule: start it without torchrun, or give --weights-only, whose matrices are shared out."
        )
    if target is not None and not dry_run:
        for given, what in ((model, "the model"), (calibration, "the calibration data")):
            if isinstance(given, (str, os.PathLike)):
                require_apart(target, given, what)
                require_apart(partial(target), given, what)
        check_output(target, overwrite)
    with torch.random.fork_rng([]), evaluating(*([model] if isinstance(model, nn.Module) else [])):
        torch.manual_seed(seed)
        source = _source(model, example, task, seed, None if dry_run else target, progress)
        data = load_data(source, calibration, field=field, samples=samples, length=length)
        if task is None:
            source, data = by_targets(source, data)
        record = asked.to_dict() | {"samples": samples, "length": length, "field": field} | _facts(source, data)
        pipeline = Pipeline(source, data, asked, None, progress)  # which refuses bad globs before anything is written
        if dry_run:
            return _dry_run(pipeline)
        if target is not None:
            pipeline.work = Work(target, record, overwrite)
            if pipeline.work.finished:
                pipeline.work.finish()
                return _finished(target, source)
        return _run(pipeline, record)


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _facts(source: Source, data: Data) -> dict[str, Any]:
    """What the result depends on besides options: an interrupted run goes on only if it is the same."""
    parts = (data.fit, data.heldout, data.test)
    hashes = [[fingerprint(vars(batch)) for batch in part] for part in parts]
    return {
        "task": source.task,
        "source": source.fingerprint,
        "calibration": f"{data.source} {fingerprint(hashes)}",
        "flatwing": __version__,
    }


def _source(
    model: Any, example: str | None, task: str | None, seed: int, out: Path | None, progress: Callable[..., None] | None
) -> Source:
    if example is not None:
        make = EXAMPLES[example]
        cache = None
        if out is not None:  # training is a stage, too
            partial(out).mkdir(exist_ok=True)
            cache = partial(out) / f"{TRAINED}{example}-{seed}.safetensors"
        say = None if progress is None else lambda m: progress(f"training the example {example}", int(m["step"]), 0)
        return from_example(make(seed, cache=cache, progress=say))
    if isinstance(model, nn.Module):
        return from_module(model, task)
    if isinstance(model, (str, os.PathLike)):
        return from_directory(model, task)
    raise TypeError(f"model is a {type(model).__name__}. Rule: an nn.Module, a directory or a .safetensors file.")


def _dry_run(pipeline: Pipeline) -> Compression:
    share = pipeline.options.budget
    if share is None:
        share, _ = pipeline.searched()
    plans = pipeline.plan(share)
    return Compression(None, make_record(pipeline, share, plans, None, {}, 0.0))


def _run(pipeline: Pipeline, record: dict[str, Any]) -> Compression:
    options, work, source = pipeline.options, pipeline.work, pipeline.source
    share = options.budget if options.budget is not None else pipeline.searched()[0]
    metrics: dict[str, Any] = {"before": pipeline.measured("before", source.model)}
    try:
        plans = pipeline.plan(share)
    except ValueError:  # no structure is that small: nothing to resume, and another budget is not in the way
        if work is not None and not work.has_layers:
            work.discard()
        raise
    model, results = pipeline.factorized(plans)
    metrics["compressed"] = pipeline.measured("compressed", model)
    steps: list[dict[str, Any]] = []
    rate = 0.0
    metrics["healed"] = metrics["quantized"] = None
    if options.heal and any(plan.candidate for plan in plans):
        steps, rate = pipeline.healed(model)
        metrics["healed"] = pipeline.measured("healed", model)
    if share < 1 or options.quantize:  # int8 loses something even where every layer is kept
        metrics["quantized"] = pipeline.measured("quantized", pipeline.quantized(model))
    times, speeds = pipeline.timed(model), pipeline.speeds(model)
    metrics["before"]["latency"] = times["before"]
    for name in ("compressed", "healed"):
        if metrics[name] is not None:
            metrics[name]["latency"] = times["compressed"]
    result = make_record(pipeline, share, plans, results, metrics, rate)
    for row in result["layers"]:
        row["speed"] = speeds.get(row["name"])
    if work is not None:
        write_output(pipeline, model, result, steps, record)
    if options.quantize == "int8":
        model = pipeline.quantized(model)
    if options.densify:
        densify_(model)
    model.eval()
    if work is None:
        return Compression(model, result)
    work.finish()
    return Compression(model, result, work.out, work.out / "report.html")


def _finished(out: Path, source: Source) -> Compression:
    """The result of a run that had ended already."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    known = source.architecture["kind"] != "module"
    model = load(out, None if known else copy.deepcopy(source.model))
    return Compression(model, result, out, out / "report.html")


def _weights_only(
    path: Path,
    out: Path | None,
    options: Options,
    overwrite: bool,
    dry_run: bool,
    calibration: Any,
    progress: Callable[[str, int, int], None] | None,
) -> Compression:
    """A bare .safetensors file: no network, so no data and no measuring of what it does."""
    if calibration is not None:
        raise ValueError(
            f"weights alone ({path.name!r}) are no network, so calibration data cannot be used. Rule: a directory "
            "with config.json, without --weights-only; or load the network in Python and give it as the model."
        )
    if out is None or dry_run:
        what = "an OUT directory" if out is None else "no dry run"
        raise ValueError(f"weights alone are compressed from file to file. Rule: {what}.")
    plain = Options(budget=options.budget or 0.5)
    for name in ("max_loss", "unit", "skip", "heal", "quantize", "densify"):
        if getattr(options, name) != getattr(plain, name):
            raise ValueError(
                f"{name}={getattr(options, name)!r} needs the network, and {path.name!r} holds weights alone. Rule: a "
                f"directory with config.json, or no {name}."
            )
    result = compress_weights(
        path,
        out,
        budget=options.budget or 0.5,
        structures=WEIGHTS_ONLY if options.structures == plain.structures else options.structures,
        where=options.where,
        overwrite=overwrite,
        seed=options.seed,
        progress=progress,
    )
    report = None
    if os.environ.get("RANK", "0") == "0":
        report = write_report(out)
    return Compression(None, result, out, report)
