from typing import Any

import pytest

from flatwing.compress.summary import summarize


def estimate(value: float, stderr: float | None = None) -> dict[str, float | None]:
    return {"value": value, "stderr": stderr}


def metrics(
    loss: float, parameters: int, ms: float = 2.0, accuracy: float | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "loss": estimate(loss, 0.001), "accuracy": None if accuracy is None else estimate(accuracy, 0.01),
        "linear_parameters": parameters, "bytes": 4 * parameters, "flops": 2 * parameters,
        "latency": [{"batch": 1, "ms": ms, "low": 0.9 * ms, "high": 1.1 * ms}], **more,
    }  # fmt: skip


def layer(structure: str, action: str = "replaced") -> dict[str, str]:
    return {"structure": structure, "action": action}


LAYERS = [
    layer("low_rank(rank=3)"),
    layer("low_rank(rank=4)"),
    layer("blast(blocks=4, rank=2)"),
    layer("dense", "kept"),
]


def words(
    task: str, found: dict, *, layers: list = LAYERS, better: str | None = None, steps: int = 0, densified: bool = False
) -> list[str]:
    return summarize("net", task, 0.5, "parameters", found, layers, [], better, ["a warning."], steps, densified)


def test_what_was_done_and_gained_is_said_in_numbers() -> None:
    found = words("lm", {"before": metrics(1.5, 1_200_000), "compressed": metrics(1.52, 600_000, ms=1.0)})
    assert found[0] == (
        "3 of 4 layers of net got a structure (2 low rank, 1 blast), 50% of the parameters of its linear layers."
    )
    assert "Linear parameters fall from 1,200,000 to 600,000 (2.0x)" in found[1]
    assert "the file from 4.80 MB to 2.40 MB, operations from 2.4M to 1.2M per sample." in found[1]
    assert found[1].endswith("On this machine it runs 2.00x as fast at batch 1.")
    assert found[2] == ("On held-out data the loss (nats per token) goes from 1.5000 ± 0.0010 to 1.5200 ± 0.0010.")
    assert found[3] == "Next: measure it on your own task; a smaller budget may do as well."
    assert found[-1] == "a warning."


@pytest.mark.parametrize(("ms", "said"), [(1.0, "2.00x as fast"), (4.0, "2.00x slower"), (2.1, "as fast at batch 1")])
def test_speed_is_claimed_only_where_intervals_are_apart(ms: float, said: str) -> None:
    found = words("lm", {"before": metrics(1.5, 100), "compressed": metrics(1.5, 50, ms=ms)})
    assert f"it runs {said}" in found[1]


@pytest.mark.parametrize(
    ("compressed", "healed", "said"),
    [
        (1.51, None, "a smaller budget may do as well"),
        (1.80, None, "Next: heal it (--heal 200)"),
        (1.80, 1.70, "Next: heal longer (--heal 600)"),
        (1.80, 1.51, "a smaller budget may do as well"),
    ],
)
def test_the_next_step_follows_from_the_loss(compressed: float, healed: float | None, said: str) -> None:
    numbers = {"before": metrics(1.5, 100), "compressed": metrics(compressed, 50)}
    if healed is not None:
        numbers["healed"] = metrics(healed, 50)
    found = words("lm", numbers, steps=300)
    assert any(said in sentence for sentence in found)
    assert any("after 300 steps of healing to" in sentence for sentence in found) == (healed is not None)


def test_accuracy_is_told_for_classification() -> None:
    numbers = {"before": metrics(0.1, 100, accuracy=0.98), "compressed": metrics(0.2, 50, accuracy=0.90)}
    found = words("classification", numbers)
    assert "On held-out data the accuracy goes from 98.00% ± 1.00% to 90.00% ± 1.00%." in found
    assert any("heal it" in sentence for sentence in found)


def test_without_targets_the_agreement_is_told() -> None:
    before, after = metrics(0.0, 100), metrics(0.0, 50, agreement={"kl": estimate(0.0123)})
    before["loss"] = after["loss"] = None
    found = words("lm", {"before": before, "compressed": after})
    assert "Against the original on held-out data: KL divergence 0.0123 nats." in found
    assert "Next: measure it on your own task." in found


def test_a_better_choice_is_said_first() -> None:
    numbers = {"before": metrics(1.5, 100), "compressed": metrics(1.5, 50)}
    assert words("lm", numbers, better="int8 alone is better.")[0] == "int8 alone is better."


def test_nothing_replaced_is_said_plainly() -> None:
    numbers = {"before": metrics(1.5, 100), "compressed": metrics(1.5, 100)}
    found = words("lm", numbers, layers=[layer("dense", "kept")])
    assert found == [
        "net stays as it is: within this budget every layer is kept dense, and nothing is lost.",
        "a warning.",
    ]


def test_int8_is_what_is_told_where_int8_is_written() -> None:
    numbers = {"before": metrics(1.5, 1_000_000), "compressed": metrics(1.6, 500_000), "healed": metrics(1.52, 500_000)}
    numbers["quantized"] = {**metrics(1.75, 500_000), "bytes": 500_000, "latency": []}
    found = words("lm", numbers, steps=9)
    assert "Linear parameters fall from 1,000,000 to 500,000 (2.0x)" in found[1]
    assert "the file with int8 from 4.00 MB to 500.00 kB" in found[1]
    assert found[1].endswith("it runs as fast at batch 1.")
    assert found[2].endswith(
        "to 1.6000 ± 0.0010, after 9 steps of healing to 1.5200 ± 0.0010, and with int8 to 1.7500 ± 0.0010."
    )
    assert found[3].startswith("Next: heal longer"), "the loss is that with int8"
    for each in numbers.values():
        each["loss"] = None
    numbers["healed"]["agreement"], numbers["quantized"]["agreement"] = {"kl": estimate(0.1)}, {"kl": estimate(0.2)}
    assert "Against the original on held-out data: KL divergence 0.2 nats." in words("lm", numbers)


def test_int8_loses_something_even_where_nothing_is_replaced() -> None:
    numbers = {"before": metrics(1.5, 1000), "compressed": metrics(1.5, 1000)}
    numbers["quantized"] = {**metrics(1.6, 1000), "bytes": 1000, "latency": []}
    found = words("lm", numbers, layers=[layer("dense", "kept")])
    assert found[0].endswith("kept dense. Its matrices are rounded to int8: the file goes from 4.00 kB to 1.00 kB.")
    assert "and with int8 to 1.6000" in found[1]
    assert not any("nothing is lost" in sentence for sentence in found)


def test_a_file_that_is_multiplied_out_is_as_large_as_the_original() -> None:
    found = words("lm", {"before": metrics(1.5, 1000), "compressed": metrics(1.6, 500, ms=1.0)}, densified=True)
    assert "the file is as large as the original, 4.00 kB, and takes as many operations" in found[1]
    assert found[1].endswith("Without densify it has 2.0x fewer linear parameters, in 2.00 kB.")
    assert not any("as fast" in sentence or "fall from" in sentence for sentence in found)
