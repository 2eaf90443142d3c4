"""The first paragraph in words: what was done, what was gained, what was lost, what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Numbers = Mapping[str, Any]


def summarize(
    name: str, task: str, share: float, unit: str, metrics: Mapping[str, Numbers | None], layers: Sequence[Numbers],
    rows: Sequence[Numbers], better: str | None, warnings: Sequence[str], heal_steps: int, densified: bool = False,
) -> list[str]:  # fmt: skip
    """Sentences for the report, the README of the output and the terminal. A better choice is said first.

    All are about the network that was written: `metrics` has "quantized" only if that one was, and a `densified` one
    is multiplied out again.
    """
    before, int8 = metrics["before"], metrics.get("quantized")
    structured = metrics.get("healed") or metrics["compressed"]
    final = int8 or structured
    assert before is not None
    assert structured is not None
    assert final is not None
    lost = _lost(task, before, metrics["compressed"] or structured, metrics.get("healed"), int8, heal_steps)
    replaced = [layer for layer in layers if layer["action"] == "replaced"]
    sentences = [better] if better else []
    size = f"from {_bytes(before['bytes'])} to {_bytes(final['bytes'])}"
    if not replaced:
        kept = "stays as it is: within this budget every layer is kept dense"
        if int8 is None:
            return [f"{name} {kept}, and nothing is lost.", *warnings]
        sentences += [f"{name} {kept}. Its matrices are rounded to int8: the file goes {size}.", lost]
        return [sentence for sentence in (*sentences, *warnings) if sentence]
    kinds = Counter(layer["structure"].split("(")[0].replace("_", " ") for layer in replaced)
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    sentences.append(
        f"{len(replaced)} of {len(layers)} layers of {name} got a structure ({named}), "
        f"{share:.0%} of the {unit} of its linear layers."
    )
    fewer = before["linear_parameters"] / max(1, structured["linear_parameters"])
    if densified:
        sentences.append(
            f"It is written multiplied out (densify): the file is as large as the original, {_bytes(before['bytes'])}, "
            f"and takes as many operations. Without densify it has {fewer:.1f}x fewer linear parameters, in "
            f"{_bytes(final['bytes'])}."
        )
    else:
        sentences.append(
            f"Linear parameters fall from {before['linear_parameters']:,} to {structured['linear_parameters']:,} "
            f"({fewer:.1f}x), the file{' with int8' if int8 else ''} {size}, operations from {_big(before['flops'])} "
            f"to {_big(structured['flops'])} per sample. {_speed(before, structured)}"
        )
    sentences += [lost, _next(task, before, final, metrics.get("healed") is not None, heal_steps)]
    return [sentence for sentence in (*sentences, *warnings) if sentence]


def _lost(
    task: str, before: Numbers, compressed: Numbers, healed: Numbers | None, int8: Numbers | None, steps: int
) -> str:
    key, noun, form = {
        "classification": ("accuracy", "accuracy", "{:.2%}"),
        "lm": ("loss", "loss (nats per token)", "{:.4f}"),
    }.get(task, ("loss", "relative error of the outputs", "{:.4f}"))
    if not (before.get(key) and compressed.get(key)):
        kl = ((int8 or healed or compressed).get("agreement") or {}).get("kl")
        return "" if kl is None else f"Against the original on held-out data: KL divergence {kl['value']:.4g} nats."

    def say(numbers: Numbers) -> str:
        own = numbers[key]
        error = f" ± {form.format(own['stderr'])}" if own.get("stderr") is not None else ""
        return form.format(own["value"]) + error

    steps_taken = [f"to {say(compressed)}"]
    if healed is not None:
        steps_taken.append(f"after {steps} steps of healing to {say(healed)}")
    if int8 is not None:
        steps_taken.append(f"with int8 to {say(int8)}")
    *first, last = steps_taken
    way = f"{', '.join(first)}, and {last}" if first else last
    return f"On held-out data the {noun} goes from {say(before)} {way}."


def _next(task: str, before: Numbers, final: Numbers, healed: bool, steps: int) -> str:
    drop = _drop(task, before, final)
    if drop is None:
        return "Next: measure it on your own task."
    if drop > 0.03 and not healed:
        return "Next: heal it (--heal 200), which usually wins back most of the loss."
    if drop > 0.03:
        return f"Next: heal longer (--heal {max(2 * steps, 400)}), give more calibration data, or a larger budget."
    return "Next: measure it on your own task; a smaller budget may do as well."


def _drop(task: str, before: Numbers, final: Numbers) -> float | None:
    if task == "classification" and before.get("accuracy") and final.get("accuracy"):
        return before["accuracy"]["value"] - final["accuracy"]["value"]
    if before.get("loss") and final.get("loss") and before["loss"]["value"]:
        return final["loss"]["value"] / before["loss"]["value"] - 1
    return None


def _speed(before: Numbers, final: Numbers) -> str:
    parts = []
    for dense, own in zip(before["latency"], final["latency"], strict=False):
        ratio = dense["ms"] / own["ms"]
        apart = own["high"] < dense["low"] or own["low"] > dense["high"]
        word = "as fast" if not apart else f"{ratio:.2f}x as fast" if ratio > 1 else f"{1 / ratio:.2f}x slower"
        parts.append(f"{word} at batch {dense['batch']}")
    return f"On this machine it runs {', '.join(parts)}." if parts else ""


def _bytes(count: int | float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def _big(count: int | float) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"
