"""What `cpu_multiply.py` prints and draws: tables of ratios, the targets with what was reached, a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

OURS, PACKED = "flatwing auto", "flatwing packed"
COLUMNS = {  # column -> rows of which the fastest counts
    "dense": ("F.linear",),
    "bmm first": ("bmm batch-first",),
    "bmm last": ("bmm batch-last",),
    "compiled": ("compiled bmm",),
    "lazylinop": ("lazylinop",),
    "pyfaust": ("pyfaust",),
    "rfft": ("rfft",),
    "hadamard": ("hadamard",),
}
PEERS = ("F.linear", "bmm", "compiled bmm", "lazylinop", "pyfaust")
GROUPED = ("bmm", "compiled bmm")
Row = dict[str, Any]


def fastest(row: Row, names: Iterable[str]) -> tuple[str, float] | None:
    """The fastest contestant whose name begins with one of these, and its seconds."""
    found = {m: e["seconds"] for m, e in row["methods"].items() if "seconds" in e and m.startswith(tuple(names))}
    best = min(found, key=lambda m: found[m], default=None)
    return None if best is None else (best, found[best])


def ratio(row: Row, names: Iterable[str], ours_is: str = OURS) -> float | None:
    """Time of the fastest of these peers over ours: above 1 we are faster."""
    peer, ours = fastest(row, names), row["methods"].get(ours_is, {}).get("seconds")
    return None if peer is None or ours is None else peer[1] / ours


HEAD = " ".join(
    (
        f"{'':<21}{'n x rows':>14} {'ours, us':>11} ",
        *(f"{c:>9}" for c in (*COLUMNS, "packed", "memcpy")),
        " best peer, backend",
    )
)


def line(row: Row) -> str:
    """One case in one line: our time in microseconds, then the ratios; / memcpy is our time over that of a copy."""
    ours = row["methods"].get(OURS, {})
    label = f"{row['kind']:<8}{row['mode']:<8}{row['threads']} thr {row['n']:>6} x {row['rows']:<5}"
    if "seconds" not in ours:
        return f"{label} {ours or 'no result of ours'}"
    values = [_short(ratio(row, names)) for names in COLUMNS.values()]
    packed = ratio(row, (PACKED,))
    values.append(_short(1 / packed if packed else None))
    copy = ratio(row, ("memcpy",))
    values.append(_short(1 / copy if copy else None))
    peer = fastest(row, PEERS)
    verdict = "" if peer is None else f"{peer[1] / ours['seconds']:6.2f}x {peer[0]}"
    lost = "" if peer is None or peer[1] >= ours["seconds"] else "  LOST"
    trouble = "".join(f"  {m}: {e}" for m, e in row["methods"].items() if "wrong" in e or "failed" in e)
    numbers = " ".join(f"{v:>9}" for v in values)
    return f"{label} {1e6 * ours['seconds']:10.1f}  {numbers}  {verdict}, {ours.get('variant', '')}{lost}{trouble}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def tables(rows: list[Row]) -> str:
    """All cases, a table for each kind, mode and number of threads."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["threads"], row["mode"], row["kind"]), []).append(row)
    text = ["", "microseconds of ours; ratios: time of the peer / ours; packed: our gain with weights packed once"]
    text += ["last column: ours / memcpy of the activations"]
    for key in sorted(groups):
        text += ["", HEAD, *(line(row) for row in groups[key])]
    return "\n".join(text)


def targets(rows: list[Row], calling: dict[str, float]) -> list[Row]:
    """Every target, the worst measured value and where it was, and whether it is met in all cases."""
    one = [r for r in rows if r["threads"] == 1]
    dyadic = [r for r in one if r["kind"] == "dyadic"]
    forward = [r for r in dyadic if r["mode"] == "forward"]
    train = [r for r in dyadic if r["mode"] == "train"]
    monarch = [r for r in one if r["kind"] == "monarch" and r["mode"] == "forward"]
    found: list[Row] = []

    def least(text: str, needed: float, among: list[Row], where: Callable[[Row], bool], names: Iterable[str]) -> None:
        names = tuple(names)
        for ours, words in ((OURS, text), (PACKED, f"the same, packed: {text}")):
            pairs = [(q, r) for r in among if where(r) and (q := ratio(r, names, ours)) is not None]
            _add(found, words, needed, pairs, above=True)

    def most(text: str, needed: float, where: Callable[[Row], bool]) -> None:
        for ours, words in ((OURS, text), (PACKED, f"the same, packed: {text}")):
            pairs = [(1 / q, r) for r in forward if where(r) and (q := ratio(r, ("memcpy",), ours)) is not None]
            _add(found, words, needed, pairs, above=False)

    lazy, faust = ("lazylinop",), ("pyfaust",)
    large = lambda r: r["n"] >= 1024 and r["rows"] >= 16  # noqa: E731
    least("dyadic forward over the best lazylinop, n >= 1024, batch >= 16", 4, forward, large, lazy)
    least("dyadic forward over the best lazylinop, n = 256, batch >= 16", 3, forward, _at(256, 16), lazy)
    least("dyadic forward over the best lazylinop, batch 1", 2, forward, lambda r: r["rows"] == 1, lazy)
    plain = [{**r, "methods": {m: e for m, e in r["methods"].items() if m != "pyfaust opt_butterfly"}} for r in forward]
    least("dyadic forward over pyfaust, n >= 1024, batch >= 16", 15, plain, large, faust)
    least("the same over pyfaust's opt_butterfly (no target: for information)", 0, forward, large, faust)
    least("dyadic forward over torch bmm and torch.compile of it", 4, forward, lambda r: True, GROUPED)
    least("dyadic forward over dense, n = 1024, batch 1", 8, forward, _at(1024, 1, 1), ("F.linear",))
    least("dyadic forward over dense, n >= 1024, batch >= 16", 25, forward, large, ("F.linear",))
    most("dyadic forward / memcpy of the activations, n = 1024, batch >= 256", 5, _at(1024, 256))
    most("dyadic forward / memcpy of the activations, n = 4096, batch >= 256", 8, _at(4096, 256))
    least("dyadic training step over grouped torch bmm", 3, train, lambda r: True, GROUPED)
    wide = lambda r: r["n"] >= 1024 and r["rows"] >= 256  # noqa: E731
    least("dyadic training step over grouped torch bmm, n >= 1024, batch >= 256", 4, train, wide, GROUPED)
    some = lambda r: r["n"] >= 512 and r["rows"] >= 16  # noqa: E731
    least("dyadic training step over dense, n >= 512, batch >= 16", 1, train, some, ("F.linear",))
    rivals = ("bmm", "lazylinop")
    middle = lambda r: r["n"] == 1024 and r["rows"] in (16, 256)  # noqa: E731
    least(
        "Monarch forward over the best of bmm and lazylinop, n = 1024, batch 16 and 256", 1.8, monarch, middle, rivals
    )
    least("Monarch forward over the best of bmm and lazylinop, anywhere", 1, monarch, lambda r: True, rivals)
    if "flatwing auto" in calling:
        value = calling["flatwing auto"]
        text = "call overhead in microseconds, n = 256, batch 1, eager, no gradients"
        found.append({"target": text, "needed": "<= 12", "worst": value, "at": "n=256 x 1", "met": value <= 12,
                      "cases": 1, "missed": int(value > 12)})  # fmt: skip
    return found


def _at(n: int, least: int, most: int = 1 << 30) -> Callable[[Row], bool]:
    return lambda r: r["n"] == n and least <= r["rows"] <= most


def _add(found: list[Row], text: str, needed: float, pairs: list[tuple[float, Row]], above: bool) -> None:
    if not pairs:
        return
    value, row = (min if above else max)(pairs, key=lambda pair: pair[0])
    missed = sum((q < needed) if above else (q > needed) for q, _ in pairs)
    found.append(
        {
            "target": text, "needed": f"{'>=' if above else '<='} {needed:g}", "worst": float(f"{value:.3g}"),
            "at": f"n={row['n']} x {row['rows']}", "met": not missed, "cases": len(pairs), "missed": missed,
        }
    )  # fmt: skip


def summary(rows: list[Row], calling: dict[str, float], found: list[Row]) -> str:
    """Targets, overhead, how often we lose and to whom, and what was skipped, failed or wrong."""
    text = ["", "targets (float32, 1 thread): the worst case of each"]
    for t in found:
        verdict = "met" if t["met"] else f"missed in {t['missed']} of {t['cases']}"
        text.append(f"  {t['target']:<101} {t['needed']:>7}  measured {t['worst']:<6g} at {t['at']:<14} {verdict}")
    if calling:
        text += ["", "overhead, microseconds per call, n = 256, batch 1, eager, no gradients"]
        text.append("  " + ", ".join(f"{name} {value}" for name, value in calling.items()))
    timed = [e for r in rows for e in r["methods"].values() if "busy" in e]
    shared = sum(e["busy"] < 0.9 for e in timed)
    text += ["", f"disturbed (less than 90 % of one CPU, best calls count): {shared} of {len(timed)} measurements"]
    compared = [(q, r) for r in rows if (q := ratio(r, PEERS)) is not None]
    lost = sorted(((q, r) for q, r in compared if q < 1), key=lambda pair: pair[0])
    packed = [(q, r) for r in rows if (q := ratio(r, PEERS, PACKED)) is not None]
    text += ["", f"packed: faster than every peer in {sum(q > 1 for q, _ in packed)} of {len(packed)} forwards"]
    text += ["", f"faster than every peer in {len(compared) - len(lost)} of {len(compared)} cases; lost:"]
    for q, r in lost:
        peer = fastest(r, PEERS)
        assert peer is not None
        text.append(f"  {q:.2f}x {r['kind']} {r['mode']} {r['threads']} thr n={r['n']} x {r['rows']}: {peer[0]}")
    for word in ("wrong", "failed", "skipped"):
        notes: dict[str, list[str]] = {}
        for r in rows:
            for m, e in r["methods"].items():
                if word in e:
                    why = f"{m}: {e[word] if word != 'wrong' else 'another result'}"
                    notes.setdefault(why, []).append(f"{r['kind']} {r['mode']} n={r['n']} x {r['rows']}")
        text += [f"  {word}: {why} ({len(at)} cases, first {at[0]})" for why, at in sorted(notes.items())]
    return "\n".join(text)


def draw(rows: list[Row], path: Path) -> None:
    """The ratio over the best peer of every case; below the line we lose, and the peer is named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    modes = list(dict.fromkeys(r["mode"] for r in rows))
    cases = sorted({(r["n"], r["rows"]) for r in rows})
    if not cases:
        return
    size = (3.2 + 0.24 * len(cases) * len(kinds), 1.2 + 3.2 * len(modes))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(modes), len(kinds), sharex=True, sharey=True, squeeze=False)
    for mode, line_of in zip(modes, panels, strict=True):
        for kind, panel in zip(kinds, line_of, strict=True):
            for threads, marker, colour in ((1, "o", "tab:blue"), (2, "x", "tab:orange")):
                chosen = [r for r in rows if (r["mode"], r["kind"], r["threads"]) == (mode, kind, threads)]
                points = [(cases.index((r["n"], r["rows"])), q, r) for r in chosen if (q := ratio(r, PEERS))]
                if not points:
                    continue
                panel.plot([p[0] for p in points], [p[1] for p in points], marker, color=colour, markersize=5,
                           label=f"{threads} thread{'s'[: threads - 1]}")  # fmt: skip
                for at, q, r in points:
                    if q < 1:
                        peer = fastest(r, PEERS)
                        panel.plot([at], [q], marker, color="red", markersize=6)
                        panel.annotate(peer[0].split()[0] if peer else "", (at, q), (0, -3), textcoords="offset points",
                                       rotation=90, fontsize=5, ha="center", va="top", color="red")  # fmt: skip
            panel.axhline(1, color="grey", linewidth=1)
            panel.set(title=f"{kind}, {mode}", yscale="log")
            panel.set_xticks(range(len(cases)), [f"{n} x {k}" for n, k in cases], rotation=90, fontsize=6)
            panel.grid(axis="y", alpha=0.3)
    for line_of in panels:
        line_of[0].set_ylabel("time of the best peer / ours")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
