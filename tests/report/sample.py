"""Run folders to make reports of: realistic ones, large ones, hostile ones and ones with little in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

EVIL = "<script>document.title='taken'</script>\"'&{{ 7 * 7 }}"


def value(number: float, stderr: float | None = None) -> dict[str, float | None]:
    return {"value": number, "stderr": stderr}


def metrics(loss: float, share: float, *, kl: float | None, speed: float) -> dict[str, Any]:
    """Metrics of a byte language model that keeps this share of its linear parameters."""
    agreement = kl and {"kl": value(kl, kl / 40), "top1": value(1 - kl, 0.004), "cosine": value(1 - kl / 8, 0.001)}
    times = [(1, 1.9, 0.8), (8, 6.4, 1.0), (64, 41.0, speed)]
    return {
        "loss": value(loss, 0.0108),
        "perplexity": value(2.718281828**loss, 0.043),
        "accuracy": None,
        "agreement": agreement,
        "parameters": int(140_000 + 1_179_648 * share),
        "linear_parameters": int(1_179_648 * share),
        "bytes": int(4 * (140_000 + 1_179_648 * share)),
        "flops": int(2 * 1_179_648 * share + 250_000),
        "peak_memory": int(61e6 * (0.6 + 0.4 * share)),
        "latency": [
            {"batch": batch, "ms": ms / ratio, "low": ms / ratio * 0.96, "high": ms / ratio * 1.05}
            for batch, ms, ratio in ((b, ms, 1.0 if kl is None else r) for b, ms, r in times)
        ],
    }


def layer(name: str, rows: int, columns: int, difficulty: float, seed: int) -> dict[str, Any]:
    """A layer replaced by 8 x 8 blocks with shared bases, or by a product of three factors."""
    blast = seed % 3 != 1
    rank, blocks = max(rows // 16, 1), 8
    chain = [[1, blocks, blocks, rows // blocks], [blocks, rows // blocks, columns // blocks, 1]]
    spectrum = [1 / (1 + i * (0.02 + 0.3 / difficulty)) ** 1.5 + 1e-4 for i in range(128)]
    return {
        "name": name,
        "shape": [rows, columns],
        "action": "replaced",
        "reason": None,
        "structure": f"blast(blocks={blocks}, rank={rank})" if blast else f"monarch(blocks={blocks})",
        "kind": "blast" if blast else "chain",
        "chain": None if blast else chain,
        "blocks": [blocks, blocks] if blast else None,
        "rank": rank if blast else None,
        "parameters": rank * (rows + columns + blocks * blocks) if blast else rows * (blocks + columns // blocks),
        "dense_parameters": rows * columns,
        "error": 0.012 * difficulty,
        "heldout_error": 0.0128 * difficulty,
        "lower_bound": None if blast else 0.0095 * difficulty,
        "unweighted_error": 0.021 * difficulty,
        "sensitivity": 0.0031 * difficulty,
        "speed": 1.0 + seed % 5 / 4,
        "spectrum": spectrum,
    }


def result(blocks: int = 4) -> dict[str, Any]:
    """A finished `result.json`: a byte language model at a quarter of its linear parameters."""
    generator = np.random.default_rng(0)
    layers = []
    for i in range(blocks):
        for part, rows, columns in (("attn.qkv", 384, 128), ("attn.out", 128, 128), ("mlp.up", 512, 128)):
            difficulty = float(generator.uniform(4, 30))
            layers.append(layer(f"blocks.{i}.{part}", rows, columns, difficulty, len(layers)))
    untouched = {"action": "kept", "reason": "keeping it dense loses less per byte", "structure": "dense"}
    untouched |= {"shape": [128, 512], "kind": "dense", "parameters": 65536, "dense_parameters": 65536}
    layers += [{"name": f"blocks.{i}.mlp.down", **untouched} for i in range(blocks)]
    layers.append({"name": "head", **untouched, "action": "skipped", "reason": "tied to the embedding"})
    shares = (0.125, 0.25, 0.5, 0.75)
    curves = {
        "flatwing": (2.31, 1.7192, 1.4345, 1.3951),
        "whitened SVD": (3.02, 2.2741, 1.4782, 1.4203),
        "plain SVD": (4.61, 3.2266, 1.6398, 1.4712),
    }
    dense, small = metrics(1.3827, 1.0, kl=None, speed=1.0), metrics(1.7192, 0.25, kl=0.2211, speed=1.62)
    landmark = {"accuracy": None, "agreement_kl": None, "parameters": 434_912, "flops": None, "note": None}
    return {
        "format": "flatwing.run",
        "version": 1,
        "command": "compress",
        "created": "2026-11-21T05:00:00+00:00",
        "flatwing": "0.1.0",
        "name": "bytelm",
        "task": "lm",
        "seed": 0,
        "summary": [
            "If the size of the file is what matters, int8 alone is the better choice: it keeps the loss at 1.3829 in "
            "a quarter of the bytes.",
            "flatwing replaced 12 of 17 linear layers and keeps 25 % of their parameters.",
            "The held-out loss rose from 1.383 to 1.719, and healing brought it back to 1.545.",
            "At batch 64 a forward pass is 1.6 times faster on this machine, at batch 1 it is slower.",
            "To lose less, heal for longer (--heal 1000) or ask for half of the parameters (--budget 0.5).",
        ],
        "budget": {"unit": "parameters", "share": 0.25, "dense": 1_179_648, "kept": 294_912},
        "calibration": {
            "source": "Python standard library",
            "samples": 512,
            "tokens": 65536,
            "heldout_tokens": 8192,
            "anchored": True,
            "warnings": [],
        },
        "metrics": {
            "before": dense,
            "compressed": small,
            "healed": metrics(1.5447, 0.25, kl=0.1202, speed=1.62),
            "quantized": metrics(1.5451, 0.25, kl=0.1206, speed=1.31) | {"bytes": 462_912, "peak_memory": 33_000_000},
        },
        "layers": layers,
        "landmarks": [
            {**landmark, "name": "dense", "loss": value(1.3827, 0.0108), "bytes": dense["bytes"], "flops": 2_609_296},
            {**landmark, "name": "plain SVD", "loss": value(3.2266, 0.02), "bytes": small["bytes"], "flops": 839_824},
            {**landmark, "name": "whitened SVD", "loss": value(2.2741, 0.013), "bytes": 1_739_000, "flops": 839_824},
            {
                **landmark,
                "name": "2:4",
                "loss": value(1.5288, 0.011),
                "bytes": 3_311_000,
                "note": "no 2:4 kernel on this CPU",
            },
            {
                **landmark,
                "name": "unstructured",
                "loss": value(1.602, 0.011),
                "bytes": 2_909_000,
                "note": "values and bit mask",
            },
            {**landmark, "name": "int8", "loss": value(1.3829, 0.0108), "bytes": 1_322_000, "flops": 2_609_296},
            {**landmark, "name": "int4", "loss": value(1.3866, 0.0109), "bytes": 734_000, "flops": 2_609_296},
            {**landmark, "name": "flatwing", "loss": value(1.7192, 0.0115), "bytes": small["bytes"], "flops": 839_824},
            {
                **landmark,
                "name": "flatwing + heal",
                "loss": value(1.5447, 0.0111),
                "bytes": small["bytes"],
                "flops": 839_824,
            },
            {**landmark, "name": "flatwing + int8", "loss": value(1.5451, 0.0111), "bytes": 462_912, "flops": 839_824},
        ],
        "curve": {
            "metric": "loss",
            "points": [
                {"method": method, "share": share, "value": loss, "stderr": 0.011}
                for method, losses in curves.items()
                for share, loss in zip(shares, losses, strict=True)
            ],
            "dense": 1.3827,
        },
        "heal": {"steps": 200, "optimizer": "AdamW", "lr": 1e-3, "seconds": 74.2},
        "files": {"model": "model.safetensors"},
    }


def tensors(layers: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Factors as a structured model stores them."""
    generator = torch.Generator().manual_seed(0)
    stored: dict[str, torch.Tensor] = {}
    for entry in layers:
        name, shape = entry["name"], entry["shape"]
        if entry["action"] == "replaced" and entry["blocks"]:
            (rows, columns), rank = entry["blocks"], entry["rank"]
            sizes = {"left": (rows, shape[0] // rows, rank), "right": (columns, rank, shape[1] // columns)}
            for part, size in {**sizes, "coupling": (rows, columns, rank)}.items():
                stored[f"{name}.{part}"] = torch.randn(size, generator=generator)
        elif entry["action"] == "replaced" and entry["chain"]:
            for i, (a, b, c, d) in enumerate(entry["chain"]):
                stored[f"{name}.factors.{i}"] = torch.randn(a * d, b, c, generator=generator) ** 3
    return stored


def log(steps: int = 200) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl`."""
    lines: list[dict[str, Any]] = [
        {"stage": stage, "seconds": seconds}
        for stage, seconds in (("load", 0.2), ("calibrate", 8.1), ("plan", 31.0), ("factorize", 64.0), ("heal", 74.2))
    ]
    for step in range(1, steps + 1):
        loss = 0.19 + 0.16 * 2.718 ** (-step / 40) + 0.012 * float(np.sin(step * 1.7))
        heldout = 0.2 + 0.15 * 2.718 ** (-step / 45) if step % 20 == 0 else None
        lines.append({"stage": "heal", "step": step, "loss": loss, "heldout": heldout, "lr": 0.001})
    return lines


def write_run(folder: Path, record: dict[str, Any] | None = None, *, bare: bool = False) -> Path:
    """A run folder with this `result.json`; `bare` leaves out all other files."""
    folder.mkdir(exist_ok=True)
    record = result() if record is None else record
    (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
    if bare:
        return folder
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log()), encoding="utf-8")
    environment = {"python": "3.13.5", "torch": "2.13.0+cpu", "flatwing": "0.1.0", "platform": "Linux", "threads": 2}
    environment |= {"cpu": "an ordinary processor", "device": "cpu", "date": "2026-11-21"}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    config = 'model = "bytelm"\nbudget = 0.25\nheal = 200\nquantize = "int8"\nseed = 0\n'
    (folder / "config.toml").write_text(config, encoding="utf-8")
    save_file(tensors(record["layers"]), folder / "model.safetensors")
    return folder


def hostile() -> dict[str, Any]:
    """Every text is an attack, and every optional number is none: NaN, Infinity or absent."""
    record = result()

    def spoil(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {name: spoil(entry, name) for name, entry in node.items()}
        if isinstance(node, list):
            return [spoil(entry, key) for entry in node]
        if isinstance(node, str) and key not in ("format", "action", "kind", "task", "model"):
            half = "" if key == "name" else "\ud800"  # a file of tensors cannot hold half a character in a name
            return f"{EVIL}{node}{half}"
        return node

    record = spoil(record)
    for i, entry in enumerate(record["layers"]):
        entry["error"] = (float("nan"), float("inf"), None)[i % 3]
        entry["heldout_error"], entry["lower_bound"] = float("-inf"), float("nan")
    record["metrics"]["before"]["loss"] = {"value": float("nan"), "stderr": float("inf")}
    return record


def bare() -> dict[str, Any]:
    """The least that a `result.json` must hold: a run of weights alone, without data."""
    empty: dict[str, Any] = dict.fromkeys(("loss", "perplexity", "accuracy", "agreement", "flops", "peak_memory"))
    return {
        "format": "flatwing.run",
        "version": 1,
        "layers": [],
        "metrics": {"before": empty, "compressed": empty, "healed": None},
    }
