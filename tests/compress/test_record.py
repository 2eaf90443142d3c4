from typing import Any

import pytest
import torch

from flatwing.compress import Compression, compress
from flatwing.compress.candidates import Candidate
from flatwing.compress.layerwise import LayerResult
from flatwing.compress.plan import LayerPlan
from flatwing.compress.record import _row
from flatwing.compress.summary import _bytes
from flatwing.data import digit_images
from flatwing.train import DigitsMLP


def run(**more: Any) -> Compression:
    settings = {"structures": ["low_rank"], "curve": False, "timing": 0.01, "budget": 0.5, "samples": 200}
    return compress(DigitsMLP(width=16), calibration=digit_images("test")[0], **(settings | more))


def rows(done: Compression) -> dict[str, Any]:
    return {row["name"]: row for row in done.result["landmarks"]}


def test_the_summary_tells_of_int8_where_that_is_written() -> None:
    done = run(quantize="int8")
    small = done.metrics["quantized"]["bytes"]
    assert small < 0.6 * done.metrics["compressed"]["bytes"]
    told = " ".join(done.summary)
    assert f"the file with int8 from {_bytes(done.metrics['before']['bytes'])} to {_bytes(small)}" in told
    assert "int8 alone" not in told, "which is larger"
    assert rows(done)["flatwing + int8"]["bytes"] == small < rows(done)["int8"]["bytes"]


def test_the_summary_tells_of_the_dense_file_where_that_is_written() -> None:
    done = run(densify=True, landmarks=False)
    before = done.metrics["before"]
    assert f"the file is as large as the original, {_bytes(before['bytes'])}" in " ".join(done.summary)
    own = rows(done)["flatwing + densify"]
    assert {key: own[key] for key in ("bytes", "parameters", "flops")} == {
        key: before[key] for key in ("bytes", "parameters", "flops")
    }
    assert own["agreement_kl"] == done.metrics["compressed"]["agreement"]["kl"]


def test_without_int8_the_summary_does_not_tell_of_it() -> None:
    done = run(landmarks=False)
    assert done.metrics["quantized"] is not None
    assert "with int8" not in " ".join(done.summary)
    assert "flatwing + densify" not in rows(done)


@pytest.mark.parametrize(
    ("change", "reason"), [(0.0, "worth its size"), (0.1, "worth its size, re-fitted to its new inputs")]
)
def test_a_layer_that_stays_dense_says_whether_it_was_fitted_again(change: float, reason: str) -> None:
    plan = LayerPlan("a", (4, 4), None, 16, 0.0, 0.0, 0.0, 0.0)
    result = LayerResult("a", "dense", 16, 16, 0.0, 0.0, 0.0, change, 1.0, 10)
    assert (_row(plan, result)["reason"], _row(plan, result)["unweighted_error"]) == (reason, change)
    assert _row(plan, None)["reason"] == "worth its size"


def test_a_plan_without_a_bound_has_none_in_the_record() -> None:
    plan = LayerPlan("a", (4, 4), Candidate("low_rank", (4, 4), (1, 1), 1), 8, 0.3, None, 0.0, 0.0)
    row = _row(plan, None)
    assert (row["error"], row["lower_bound"], row["reason"]) == (0.3, None, None)
    assert torch.isfinite(torch.tensor(row["predicted_error"]))
