from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typing_extensions import override

from flatwing.compress.batch import Batch, main_output, select
from strategies import as_user


class Echo(nn.Module):
    """Gives back how it was called."""

    @override
    def forward(self, *args: object, **kwargs: object) -> tuple:
        return args, kwargs


def test_a_call_hands_on_all_arguments() -> None:
    x, mask = torch.ones(2, 3), torch.ones(2)
    args, kwargs = Batch((x, 5), {"mask": mask, "flag": True}).call(Echo())
    assert args[0] is x
    assert args[1] == 5
    assert kwargs["mask"] is mask
    assert kwargs["flag"] is True


LOGITS, OTHER = torch.randn(2, 3), torch.randn(4)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, OTHER),
        [LOGITS],
        (torch.ones(2, dtype=torch.long), LOGITS),
        {"loss": OTHER, "logits": LOGITS},
        {"y": LOGITS},
        SimpleNamespace(logits=LOGITS, last_hidden_state=OTHER),
        SimpleNamespace(last_hidden_state=LOGITS),
    ],
    ids=["tensor", "tuple", "list", "second", "logits", "mapping", "attribute", "hidden"],
)
def test_the_main_output_is_found(output: object) -> None:
    assert main_output(output) is LOGITS


@pytest.mark.parametrize("output", [None, (), {}, (torch.ones(2, dtype=torch.long),), SimpleNamespace(logits=None)])
def test_an_output_without_logits_is_refused(output: object) -> None:
    with pytest.raises(TypeError, match=r"the model returned a \w+ without logits\. Rule: a tensor"):
        main_output(output)


def test_the_inputs_are_the_first_tensor() -> None:
    assert Batch((1, LOGITS), {"x": OTHER}).inputs is LOGITS
    assert Batch((), {"use_cache": False, "x": OTHER}).inputs is OTHER
    with pytest.raises(TypeError, match=r"a batch holds no tensor\. Rule: at least one"):
        _ = Batch((1,), {"flag": True}).inputs


def test_positions_are_rows_or_tokens_that_are_no_padding() -> None:
    tokens = torch.ones(2, 5, dtype=torch.long)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    assert Batch((torch.ones(3, 64),)).positions == 3
    assert Batch((torch.ones(3, 1, 8, 8),)).positions == 3
    assert Batch((tokens,)).positions == 10
    assert Batch((tokens,), mask=mask).positions == 7
    assert Batch((torch.ones(4, dtype=torch.long),)).positions == 4


def test_rows_are_selected_everywhere_but_in_what_is_not_one_per_row() -> None:
    batch = Batch(
        (torch.arange(4.0), torch.ones(3)),
        {"mask": torch.arange(8).reshape(4, 2), "scale": torch.tensor(2.0), "flag": True},
        targets=torch.arange(4),
        mask=torch.tensor([True, False, True, False]),
    )
    part = select(batch, torch.tensor([2, 0]))
    assert part.args[0].tolist() == [2.0, 0.0]
    assert part.args[1].shape == (3,)
    assert part.kwargs["mask"].tolist() == [[4, 5], [0, 1]]
    assert part.kwargs["scale"] == 2.0
    assert part.kwargs["flag"] is True
    assert part.targets is not None
    assert part.targets.tolist() == [2, 0]
    assert part.mask is not None
    assert part.mask.tolist() == [True, True]
    assert batch.args[0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_every_tensor_moves() -> None:
    batch = Batch((torch.ones(2), 1), {"x": torch.ones(2), "flag": True}, torch.ones(2), torch.ones(2) > 0)
    with as_user():
        moved = batch.to("meta")
    tensors = (moved.args[0], moved.kwargs["x"], moved.targets, moved.mask)
    assert all(isinstance(t, torch.Tensor) and t.is_meta for t in tensors)
    assert moved.args[1] == 1
    assert moved.kwargs["flag"] is True
