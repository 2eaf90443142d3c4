import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing.compress import batches as module
from flatwing.compress.batch import Batch
from flatwing.compress.batches import (
    as_batch,
    from_labels,
    row_batches,
    row_parts,
    spread_over,
    text_batches,
    token_batches,
)
from flatwing.compress.source import Source, from_module
from flatwing.train import ByteLM
from strategies import as_user


@given(st.integers(3, 2000), st.integers(1, 500))
def test_parts_are_disjoint_contiguous_and_never_empty(count: int, samples: int) -> None:
    with as_user():
        parts = row_parts(count, samples)
    for part in parts:
        assert len(part) >= 1
        assert part.tolist() == sorted(set(part.tolist()))
    fit, heldout, test = (part.tolist() for part in parts)
    assert len(fit) <= samples
    assert fit[0] >= 0
    assert fit[-1] < heldout[0]
    assert heldout[-1] < test[0]
    assert test[-1] < count


@given(st.integers(3, 500), st.integers(1, 200))
def test_mixed_parts_are_disjoint_and_always_the_same(count: int, samples: int) -> None:
    with as_user():
        parts = row_parts(count, samples, mixed=True)
        again = row_parts(count, samples, mixed=True)
    numbers = [n for part in parts for n in part.tolist()]
    assert len(numbers) == len(set(numbers))
    assert [len(part) for part in parts] == [len(part) for part in row_parts(count, samples)]
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_sorted_classes_are_in_every_mixed_part() -> None:
    labels = torch.arange(10).repeat_interleave(40)
    for part in row_parts(400, 400, mixed=True):
        assert set(labels[part].tolist()) == set(range(10))
        assert part.tolist() == sorted(part.tolist())


def named(kind: str, task: str, home: str = "transformers") -> Source:
    return Source("x", type(kind, (torch.nn.Module,), {})(), task, {"kind": home, "class": kind})


IDS = torch.tensor([[3, 4, 5, 6]])
SHIFTED = torch.tensor([[4, 5, 6, -100]])
HALF = torch.tensor([[-100, -100, 5, 6]])


@pytest.mark.parametrize(
    ("source", "labels", "wanted"),
    [
        (named("LlamaForCausalLM", "lm"), IDS, SHIFTED),
        (named("GPT2LMHeadModel", "lm"), HALF, torch.tensor([[-100, 5, 6, -100]])),
        (named("LlamaForCausalLM", "lm"), IDS + 1, SHIFTED + torch.tensor([1, 1, 1, 0])),
        (named("BertForMaskedLM", "lm"), IDS, IDS),
        (named("BertForSequenceClassification", "classification"), IDS, IDS),
        (named("LlamaForCausalLM", "lm"), IDS[:, 1:], IDS[:, 1:]),
        (named("ByteLM", "lm", "flatwing"), HALF, torch.tensor([[-100, 5, 6, -100]])),
        (named("ByteLM", "lm", "flatwing"), IDS + 1, IDS + 1),
    ],
)
def test_labels_of_causal_language_models_move_one_place(
    source: Source, labels: torch.Tensor, wanted: torch.Tensor
) -> None:
    assert torch.equal(from_labels(source, IDS, labels), wanted)
    batch = as_batch({"input_ids": IDS, "labels": labels}, source)
    assert batch.targets is not None
    assert torch.equal(batch.targets, wanted)


def test_rows_are_taken_at_equal_distances() -> None:
    assert spread_over(torch.arange(100), 5).tolist() == [0, 25, 50, 74, 99]
    assert spread_over(torch.arange(3), 5).tolist() == [0, 1, 2]


def test_texts_come_in_batches_of_some_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 40)
    ids, mask = torch.arange(100).reshape(10, 10), torch.rand(10, 10) > 0.2
    found = text_batches(ids, mask, ids + 1)
    assert [len(b.inputs) for b in found] == [4, 4, 2]
    assert torch.equal(torch.cat([b.inputs for b in found]), ids)
    for b in found:
        assert b.targets is not None
        assert b.mask is not None
        assert torch.equal(b.targets, b.inputs + 1)
        assert torch.equal(b.mask, mask[b.inputs[:, 0] // 10])
    assert len(text_batches(torch.ones(3, 100, dtype=torch.long))) == 3


def test_rows_come_in_batches() -> None:
    x, y = torch.rand(300, 5), torch.arange(300)
    found = row_batches(x, y)
    assert [len(b.inputs) for b in found] == [256, 44]
    assert torch.equal(torch.cat([b.args[0] for b in found]), x)
    assert [b.targets[0].item() for b in found if b.targets is not None] == [0, 256]
    (named,) = row_batches(x[:5], None, "pixel_values")
    assert set(named.kwargs) == {"pixel_values"}
    assert named.targets is None


def test_built_in_networks_are_called_with_tokens_alone() -> None:
    (found,) = token_batches(
        from_module(ByteLM(width=8, depth=1, heads=2)), torch.ones(2, 5, dtype=torch.long), None, None
    )
    assert len(found.args) == 1
    assert not found.kwargs


@pytest.mark.parametrize(
    ("kind", "task", "targets", "kept"),
    [
        ("LlamaForCausalLM", "lm", (2, 5), True),
        ("GPT2LMHeadModel", "lm", (2, 5), True),
        ("BertForMaskedLM", "lm", (2, 5), False),
        ("BertForSequenceClassification", "classification", (2,), True),
        ("BertForSequenceClassification", "classification", (2, 5), False),
        ("BertModel", "other", (2,), False),
    ],
)
def test_networks_of_transformers_get_keywords_and_the_targets_that_suit_them(
    kind: str, task: str, targets: tuple, kept: bool
) -> None:
    model = type(kind, (torch.nn.Module,), {})()
    model.config = type("Config", (), {"use_cache": True})()
    source = Source("x", model, task, {"kind": "transformers", "class": kind})
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)
    (found,) = token_batches(source, ids, mask, torch.ones(targets, dtype=torch.long))
    assert (found.targets is not None) == kept
    assert found.kwargs["use_cache"] is False
    assert found.kwargs["attention_mask"].dtype == torch.int64
    assert torch.equal(found.kwargs["input_ids"], ids)
    assert found.mask is not None


def test_batches_from_what_users_have() -> None:
    x, y = torch.rand(2, 3), torch.tensor([0, 1])
    own = Batch((x,))
    assert as_batch(own) is own
    assert as_batch(x).args[0] is x
    pair = as_batch([x, y])
    assert pair.args[0] is x
    assert pair.targets is y
    mask = torch.tensor([[1, 0], [1, 1]])
    named = as_batch({"input_ids": y, "attention_mask": mask, "labels": y})
    assert set(named.kwargs) == {"input_ids", "attention_mask"}
    assert named.targets is y
    assert named.mask is not None
    assert torch.equal(named.mask, mask.bool())
    assert as_batch({"x": x, "attention_mask": torch.ones(2, 1, 4, 4)}).mask is None


@pytest.mark.parametrize("item", ["text", 5, [1, 2], (torch.ones(1),), None])
def test_what_is_no_batch_is_refused(item: object) -> None:
    with pytest.raises(TypeError, match=r"a batch is a \w+\. Rule: a tensor, \(inputs, targets\), or a dictionary"):
        as_batch(item)
