"""Which tile a launch uses: what was measured on this GPU, else the best few of the model are measured now.

What is found is kept in tiles.json beside the wisdom file (see `wisdom.path`), so that the same machine uses the same
tiles, and gives the same bits, the next time. With `FLATWING_TUNE=0` nothing is measured and the model decides; so it
does while a CUDA graph is captured. A file that is not as we write it is ignored with a warning.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from ...core import parse_json, replacing
from ...structure import Pattern
from .. import wisdom
from .model import Choice
from .tiles import Kind, Tile

FORMAT = 1
MEASURED = 4  # of the tiles that the model likes best
REPEATS, CALLS = 5, 4  # medians would do less well: neighbours only ever make a run slower

_picked: dict[tuple[Any, ...], Tile] = {}
_known: dict[str, dict[str, list[Any]]] | None = None  # machine -> launch -> tile; None: not read yet


def tile_for(
    kind: Kind,
    patterns: tuple[Pattern, ...],
    rows: int,
    x: torch.Tensor,
    last: bool,
    choices: tuple[Choice, ...],
    start: Callable[[Tile], None],
) -> Tile:
    """The tile for a launch on the device of x; `start` launches with a tile, and does no harm if done twice.

    Raises what the compiler or the driver raises if no tile works at all.
    """
    if not x.is_cuda:
        return choices[0].tile
    key = (kind, patterns, rows, x.dtype, last, x.device.index, choices[0].tile)
    tile = _picked.get(key)
    if tile is None:
        if torch.cuda.is_current_stream_capturing():
            return choices[0].tile
        tile = _picked[key] = _remembered(label(kind, patterns, rows, x.dtype, last), choices, x.device, start)
    return tile


def label(kind: Kind, patterns: tuple[Pattern, ...], rows: int, dtype: torch.dtype, last: bool) -> str:
    """Name of a launch in the file; sizes are rounded up to powers of two.

    >>> label("factor", (Pattern(1, 48, 64, 3),), 4096, torch.float16, False)
    'factor (1,64,64,4) rows=4096 float16 ieee batch-first'
    """
    sizes = "".join(str(Pattern(*map(wisdom.rounded, p))) for p in patterns)
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.get_float32_matmul_precision() != "highest"
    precision = "tf32" if allowed and dtype == torch.float32 else "ieee"
    layout = "batch-last" if last else "batch-first"
    return f"{kind} {sizes} rows={rows} {str(dtype).removeprefix('torch.')} {precision} {layout}"


def _remembered(name: str, choices: tuple[Choice, ...], device: torch.device, start: Callable[[Tile], None]) -> Tile:
    own = _read().get(wisdom.machine("cuda"), {})
    for choice in choices:  # only tiles that suit the launch can come out of a file
        if list(astuple(choice.tile)) == own.get(name):
            return choice.tile
    if os.environ.get("FLATWING_TUNE", "1") == "0":
        return choices[0].tile
    tile = fastest([choice.tile for choice in choices[:MEASURED]], start, lambda run: _seconds(run, device))
    _store(name, tile)
    return tile


def fastest(tiles: list[Tile], start: Callable[[Tile], None], seconds: Callable[[Callable[[], None]], float]) -> Tile:
    """The tile with the shortest time; those that do not compile or launch are left out."""
    times: dict[Tile, float] = {}
    error: Exception | None = None
    for tile in tiles:
        try:
            times[tile] = seconds(lambda tile=tile: start(tile))
        except Exception as found:  # a table cannot know each driver: another tile will do
            error = found
    if not times:
        assert error is not None
        raise error
    return min(times, key=lambda tile: times[tile])


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    with torch.cuda.device(device):
        run()
        times = []
        for _ in range(REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return min(times)


def path() -> Path | None:
    """Where the file is, whether it exists or not; None if nothing is to be kept."""
    place = wisdom.path()
    return None if place is None else place.with_name("tiles.json")


def forget() -> None:
    """Read the file again before the next choice."""
    global _known
    _known = None
    _picked.clear()


def _read() -> dict[str, dict[str, list[Any]]]:
    global _known
    if _known is None:
        place = path()
        _known = {}
        if place is not None and place.exists():
            try:
                content = parse_json(place.read_text(encoding="utf-8"))
                if content["format"] != FORMAT:
                    raise ValueError(f"format {content['format']!r}, not {FORMAT}")
                _known = {str(m): {str(k): list(v) for k, v in own.items()} for m, own in content["machines"].items()}
            except Exception as error:  # whatever is wrong with a cache, it is not worth a failure
                text = f"the file of tiles {str(place)!r} is ignored ({type(error).__name__}: {error}). Remove it."
                with suppress(RuntimeWarning):
                    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return _known


def _store(name: str, tile: Tile) -> None:
    known = _read()
    known.setdefault(wisdom.machine("cuda"), {})[name] = list(astuple(tile))
    place = path()
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "machines": known}, indent=1), encoding="utf-8")
    except (OSError, ValueError) as error:  # no room to remember: the next process measures again
        with suppress(RuntimeWarning):
            warnings.warn(f"tiles are not kept in {str(place)!r}: {error}", RuntimeWarning, stacklevel=2)
