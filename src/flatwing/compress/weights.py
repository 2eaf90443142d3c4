"""Weights only: compress the matrices of a checkpoint without its network and without data, in flat memory.

Each matrix is a task. Processes that torchrun started draw tasks from one counter, largest first, and leave a part file
per task; the first process puts the parts together. The bytes do not depend on how many processes there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch

from ..core import require_number, using_threads
from ..core.machine import __version__
from ..nn.base import StructuredLayer
from .candidates import STRUCTURES, Candidate, candidate, make_layer
from .checkpoint import Checkpoint
from .selection import Matrix, kept, select
from .stream import Entry, write_stream
from .team import Team
from .unweighted import Unweighted
from .weights_folder import assemble
from .workfolder import WorkFolder

WORTH = 0.95  # share of its parameters above which a matrix stays as it is
SPECTRUM = 128  # singular values that are kept for the report

Progress = Callable[[str, int, int], None]


def compress_weights(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    budget: float,
    structures: Sequence[str] = ("low_rank", "blast_8"),
    where: str | Sequence[str] = "*",
    skip_heads: bool = True,
    overwrite: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the directory `out`: `source` with its matrices replaced by structured ones of a share `budget` each.

    Every two-dimensional floating-point tensor `*.weight` that is no embedding, norm, router or head (by its name) and
    matches one of the globs `where` gets that of the `structures` which is nearest in the Frobenius norm; computed in
    float64, stored in its own dtype. Without data nothing says which errors matter: on trained networks the result
    loses far more than `compress` with calibration. `source` is a Hugging Face style directory or a safetensors file.

    Memory: one matrix and its fit per process, whatever the size of the model. Killed at any moment, the same call
    resumes; the same source and options give the same bytes for any number of processes and threads. `progress` gets
    the stage and the numbers of finished and of all matrices. The result is what `result.json` in `out` says.

    Raises `ValueError` before any work for a source that cannot be read (see `Checkpoint.open`) or is compressed
    already, a budget outside (0, 1], unknown structures, globs that match nothing, an `out` that exists (with
    `overwrite`: that flatwing did not write) or overlaps with `source`; and for weights that are NaN or Inf, by name.
    `OSError` if the disk is full; then `out` is as before.

    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "net.safetensors"
    ...     save_file({"fc.weight": torch.ones(32, 64), "fc.bias": torch.zeros(32)}, file)
    ...     result = compress_weights(file, Path(folder) / "small", budget=0.25)
    ...     print(result["layers"][0]["structure"], Checkpoint.open(Path(folder) / "small").names)
    low_rank(rank=5) ('fc.bias', 'fc.factors.0', 'fc.factors.1')
    """
    advice = "It is the share of its parameters that each matrix keeps."
    share = require_number("budget", budget, above=0, most=1, good=0.5, advice=advice)
    if not structures:
        raise ValueError(f"structures is empty. Rule: at least one of {', '.join(STRUCTURES)}.")
    for name in structures:
        candidate(name, 1, 1)  # raises for an unknown one
    checkpoint = Checkpoint.open(source)
    _require_apart(checkpoint, Path(out))
    matrices = [_planned(matrix, share, structures) for matrix in select(checkpoint, where, skip_heads=skip_heads)]
    tasks = sorted((m for m in matrices if m.reason is None), key=lambda m: (-checkpoint.info(m.key).nbytes, m.name))
    job = {
        "format": "flatwing.weights",
        "flatwing": __version__,
        "source": checkpoint.fingerprint,
        "budget": share,
        "structures": list(structures),
        "where": [where] if isinstance(where, str) else list(where),
        "skip_heads": skip_heads,
        "seed": seed,
    }
    work, team = WorkFolder(out), Team.from_environment()
    todo: list[bool] = []

    def fit_all() -> None:
        checkpoint.require_finite(names=checkpoint.names[team.rank :: team.size])
        for index in team.share(len(tasks)):
            part = work.parts / f"{index:05d}.safetensors"
            if not _is_whole(part):
                _fit(checkpoint, tasks[index], share, structures, seed, part)
            done = team.tally()
            if progress is not None:
                progress("factorize", done, len(tasks))

    def finish() -> None:
        if todo[0]:
            parts = {task.name: work.parts / f"{index:05d}.safetensors" for index, task in enumerate(tasks)}
            assemble(checkpoint, matrices, parts, job, work.product)
            work.commit()

    team.together("prepared", lambda: todo.append(work.prepare(job, overwrite=overwrite)), first_only=True)
    if team.agree("todo", *todo):
        team.together("fitted", fit_all)
    team.together("finished", finish, first_only=True)
    team.leave()
    return json.loads((work.out / "result.json").read_text(encoding="utf-8"))


def _require_apart(checkpoint: Checkpoint, out: Path) -> None:
    if checkpoint.flatwing is not None:
        raise ValueError(
            f"{str(checkpoint.path)!r} is compressed already: it has a flatwing.json. Rule: a dense source; take the "
            "original, or make this one dense first."
        )
    here, there = checkpoint.path.resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(f"out {str(out)!r} and the source {str(checkpoint.path)!r} overlap. Rule: separate places.")


def _planned(matrix: Matrix, share: float, structures: Sequence[str]) -> Matrix:
    """The matrix, kept if that is known from its size."""
    if matrix.reason is None and share >= WORTH:
        return kept(matrix, f"a share of {share:g} saves nothing worth an error")
    if matrix.reason is None and not _candidates(matrix, share, structures):
        return kept(matrix, f"a share of {share:g} is too small for rank 1")
    return matrix


def _candidates(matrix: Matrix, share: float, structures: Sequence[str]) -> list[Candidate]:
    found = (candidate(name, *matrix.shape).within(share * matrix.parameters) for name in structures)
    return [wide for wide in found if wide is not None]


def _fit(
    checkpoint: Checkpoint, matrix: Matrix, share: float, structures: Sequence[str], seed: int, part: Path
) -> None:
    """Write the part file of one matrix: what replaces it as tensors, what is known about it as metadata."""
    bias = checkpoint.tensor(f"{matrix.name}.bias") if matrix.bias else None
    with using_threads(1), torch.no_grad():  # sums in one order: bytes that do not depend on the number of threads
        W = checkpoint.tensor(matrix.key).double()
        target = Unweighted(W.mT.contiguous() if matrix.transposed else W)
        del W
        best: tuple[float, Candidate, StructuredLayer, float] | None = None
        for wide in _candidates(matrix, share, structures) if target.energy > 0 else []:
            fit = target.fit(wide, seed)
            layer = make_layer(fit, bias, matrix.dtype)
            assert isinstance(layer, StructuredLayer)
            error = target.error(deepcopy(layer).double().dense())  # what rounding to the dtype adds counts
            if isfinite(error) and error < (best[0] if best else inf):
                best = error, wide, layer, min(fit.lower_bound, error)
        spectrum = target.spectrum(SPECTRUM) if target.energy > 0 else []
    if best is None:
        reason = f"no factors of it are finite in {matrix.dtype}" if target.energy > 0 else "it is zero"
        write_stream(part, [], {"layer": json.dumps({"reason": reason})})
        return
    error, wide, layer, bound = best
    config = layer.config()
    chain = None if wide.chain is None else [[p.a, p.b, p.c, p.d] for p in wide.chain]
    about = {
        "structure": str(wide),
        "kind": config["kind"],
        "chain": chain,
        "blocks": list(wide.blocks) if wide.family == "blast" else None,
        "rank": wide.rank,
        "parameters": wide.parameters,
        "error": error,
        "lower_bound": bound,
        "spectrum": spectrum,
        "config": config,
    }
    state = {key: value for key, value in layer.state_dict().items() if key != "bias"}  # the source has it
    entries = [
        Entry(f"{matrix.name}.{key}", value.dtype, tuple(value.shape), lambda value=value: value)
        for key, value in state.items()
    ]
    write_stream(part, entries, {"layer": json.dumps(about)})


def _is_whole(part: Path) -> bool:
    if not part.exists():
        return False
    try:
        return "layer" in Checkpoint.open(part).metadata
    except ValueError:
        return False
