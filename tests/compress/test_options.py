import json
import math
from typing import Any

import pytest

from flatwing.compress import STRUCTURES, Options
from flatwing.compress.options import check_task
from strategies import as_user


def test_the_defaults_need_a_budget_only() -> None:
    options = Options(budget=0.5)
    assert options.structures == tuple(STRUCTURES)
    assert options.anchored
    assert options.heal == 0
    assert options.quantize is None
    assert json.loads(json.dumps(options.to_dict()))["budget"] == 0.5
    assert Options(**{**options.to_dict(), "budget": 0.5}) == options


@pytest.mark.parametrize(
    ("given", "share"), [({"budget": 0.3}, 0.3), ({"budget": 1.0}, 0.9), ({"max_loss": 1.0}, 0.35)]
)
def test_error_curves_are_measured_around_the_budget(given: dict, share: float) -> None:
    assert Options(**given).share == share


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"budget": None}, r"neither of budget and max_loss was given\. Rule: one, such as budget=0\.5"),
        ({"max_loss": 0.1}, r"both of budget and max_loss was given"),
        ({"budget": 0.0}, r"budget is 0\.0\. Rule: a number, above 0 and at most 1.*share of the dense cost"),
        ({"budget": 1.5}, r"budget is 1\.5\. Rule"),
        ({"budget": -0.1}, r"budget is -0\.1\. Rule"),
        ({"budget": math.nan}, r"budget is nan\. Rule"),
        ({"budget": None, "max_loss": 0.0}, r"max_loss is 0\.0\. Rule: a number, above 0"),
        ({"budget": None, "max_loss": math.inf}, r"max_loss is inf\. Rule: a number, above 0"),
        ({"heal": -1}, r"heal is -1\. Rule: a whole number, at least 0.*number of steps"),
        ({"heal": math.inf}, r"heal is inf\. Rule"),
        ({"heal_lr": 0.0}, r"heal_lr is 0\.0\. Rule: a number, above 0"),
        ({"heal_lr": math.nan}, r"heal_lr is nan\. Rule"),
        ({"unit": "bits"}, r"unit='bits'\. Rule: one of .*parameters"),
        ({"match": "blocks"}, r"match='blocks'\. Rule: one of outputs, layers"),
        ({"precision": "fp16"}, r"precision='fp16'\. Rule: one of fp32, bf16"),
        ({"quantize": "int4"}, r"quantize='int4'\. Rule: one of None, int8"),
        ({"quantize": "int8", "densify": True}, r"quantize and densify exclude each other"),
        ({"structures": ()}, r"no structures\. Rule: some of low_rank"),
        ({"structures": ("low_rank", "blast_16")}, r"unknown structure 'blast_16', did you mean 'blast_\d'\?"),
        ({"optimizer": "Addam"}, r"unknown optimizer 'Addam', did you mean 'Adam'\?"),
    ],
)
def test_bad_options_are_refused(more: dict[str, Any], message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        Options(**{"budget": 0.5, **more})


def test_tasks_are_known_or_none() -> None:
    for task in ("lm", "classification", "other", None):
        check_task(task)
    with pytest.raises(ValueError, match=r"task='regression'\. Rule: one of lm, classification, other"):
        check_task("regression")
