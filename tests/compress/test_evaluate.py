import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from flatwing.compress.batch import Batch
from flatwing.compress.evaluate import Estimate, Metrics, evaluate, quality_loss, ratio
from flatwing.train import ByteLM, DigitsMLP


class Fixed(nn.Module):
    """Gives what it is given."""

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Noisy(nn.Module):
    """Draws numbers, counts its calls and drops out, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 3), nn.Dropout()
        self.register_buffer("calls", torch.zeros(()))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(self.dropout(x)) + torch.rand(3)


def texts(rows: int, length: int = 6, classes: int = 5) -> Batch:
    return Batch((torch.randn(rows, length, classes),), targets=torch.randint(classes, (rows, length)))


def test_loss_and_perplexity_of_a_language_model_are_those_of_cross_entropy() -> None:
    batches = [texts(3), texts(2)]
    metrics = evaluate(Fixed(), batches, "lm")
    logits = torch.cat([b.args[0] for b in batches]).reshape(-1, 5)
    wanted = F.cross_entropy(logits, torch.cat([b.targets for b in batches if b.targets is not None]).reshape(-1))
    assert metrics.loss is not None
    assert metrics.perplexity is not None
    assert metrics.loss.value == pytest.approx(float(wanted), rel=1e-6)
    assert metrics.perplexity.value == pytest.approx(math.exp(float(wanted)), rel=1e-6)
    assert metrics.perplexity.stderr == pytest.approx(metrics.perplexity.value * (metrics.loss.stderr or 0))
    assert metrics.accuracy is None


def test_ignored_targets_count_for_nothing() -> None:
    batch = texts(4)
    assert batch.targets is not None
    cut = batch.targets.clone()
    cut[:, 3:] = -100
    short = Batch((batch.args[0][:, :3],), targets=batch.targets[:, :3])
    long = Batch(batch.args, targets=cut)
    assert evaluate(Fixed(), [long], "lm") == evaluate(Fixed(), [short], "lm")


def test_the_error_is_over_texts_not_over_tokens() -> None:
    one = torch.randn(8, 1, 5)
    targets = torch.randint(5, (8, 1))
    alone = evaluate(Fixed(), [Batch((one,), targets=targets)], "lm").loss
    repeated = evaluate(Fixed(), [Batch((one.expand(8, 50, 5),), targets=targets.expand(8, 50))], "lm").loss
    assert alone is not None
    assert repeated is not None
    assert repeated.stderr == pytest.approx(alone.stderr, rel=1e-9), "50 copies of a token tell nothing new"


def test_the_error_covers_the_truth_as_often_as_it_says() -> None:
    inside = 0
    for _ in range(300):
        counts = torch.randint(1, 9, (60,)).double()
        found = ratio(counts * (2 + torch.randn(60, dtype=torch.float64)), counts)
        inside += abs(found.value - 2) < 1.96 * (found.stderr or 0)
    assert 0.90 < inside / 300 < 0.98


def test_one_row_has_no_error() -> None:
    assert ratio(torch.tensor([3.0]), torch.tensor([2.0])) == Estimate(1.5, None)


def test_accuracy_is_binomial() -> None:
    logits = torch.eye(3)[torch.arange(3).repeat(20)]
    targets = torch.arange(3).repeat(20)
    targets[:6] = (targets[:6] + 1) % 3
    metrics = evaluate(Fixed(), [Batch((logits,), targets=targets)], "classification")
    assert metrics.accuracy is not None
    assert metrics.accuracy.value == pytest.approx(0.9)
    assert metrics.accuracy.stderr == pytest.approx(math.sqrt(0.9 * 0.1 / 60), rel=0.06)
    assert metrics.perplexity is None
    sure = evaluate(Fixed(), [Batch((logits,), targets=torch.arange(3).repeat(20))], "classification").accuracy
    assert sure is not None
    assert sure.value == 1.0
    assert (sure.stderr or 0) > 0.01, "60 of 60 is not certainty"


def test_agreement_with_the_reference() -> None:
    model, reference = DigitsMLP(width=8), DigitsMLP(width=8)
    x = torch.rand(30, 64)
    metrics = evaluate(model, [Batch((x[:20],)), Batch((x[20:],))], "classification", reference)
    with torch.no_grad():
        p, q = reference(x).log_softmax(-1), model(x).log_softmax(-1)
    assert metrics.loss is None
    assert metrics.kl is not None
    assert metrics.top1 is not None
    assert metrics.cosine is not None
    assert metrics.kl.value == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-4)
    assert metrics.top1.value == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    assert metrics.cosine.value < 0.999
    same = evaluate(model, [Batch((x,))], "classification", model)
    assert (same.kl, same.top1) == (Estimate(0.0, 0.0), Estimate(1.0, 0.0))
    assert same.cosine is not None
    assert 1 - 1e-6 < same.cosine.value <= 1


def test_a_shift_of_all_logits_is_agreement() -> None:
    class Shifted(Fixed):
        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 7

    metrics = evaluate(Shifted(), [texts(3)], "lm", Fixed())
    assert metrics.cosine is not None
    assert metrics.kl is not None
    assert metrics.cosine.value == pytest.approx(1, abs=1e-5)
    assert metrics.kl.value == pytest.approx(0, abs=1e-5)


def test_classes_that_are_ruled_out_are_no_disagreement() -> None:
    x = torch.randn(4, 5)
    x[:, 2] = -math.inf
    metrics = evaluate(Fixed(), [Batch((x,))], "classification", Fixed())
    assert metrics.kl == Estimate(0.0, 0.0)
    assert metrics.cosine is not None
    assert metrics.cosine.value == pytest.approx(1)


def test_other_outputs_have_cosine_and_relative_error() -> None:
    class Scaled(Fixed):
        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.9 * x

    x, mask = torch.randn(5, 4, 3), torch.tensor([[True, True, False, False]] * 5)
    x[:, 2:] = 1e6  # padding
    metrics = evaluate(Scaled(), [Batch((x,), mask=mask)], "other", Fixed())
    assert metrics.loss is not None
    assert metrics.loss.value == pytest.approx(0.1, rel=1e-4)
    assert metrics.cosine is not None
    assert metrics.cosine.value == pytest.approx(1)
    assert metrics.kl is None
    assert evaluate(Fixed(), [Batch((x,))], "other", Fixed()).loss == Estimate(0.0, 0.0)


def test_modes_gradients_random_state_and_buffers_are_as_before() -> None:
    model, reference = Noisy(), Noisy().eval()
    model.linear.weight.grad = torch.ones(3, 4)
    weight, state = model.linear.weight.detach().clone(), torch.get_rng_state()
    evaluate(model, [Batch((torch.ones(6, 4),), targets=torch.zeros(6, dtype=torch.long))], "classification", reference)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.calls == 0
    assert model.training
    assert model.dropout.training
    assert not reference.training
    assert torch.equal(model.linear.weight, weight)
    assert torch.equal(model.linear.weight.grad, torch.ones(3, 4))


def test_the_dictionary_is_json_with_exactly_these_keys() -> None:
    model = ByteLM(width=16, depth=1, heads=2)
    tokens = torch.randint(256, (3, 9))
    plain = evaluate(model, [Batch((tokens[:, :-1],), targets=tokens[:, 1:])], "lm", model).to_dict()
    assert list(plain) == ["loss", "perplexity", "accuracy", "agreement"]
    assert list(plain["agreement"]) == ["kl", "top1", "cosine"]
    assert set(plain["loss"]) == {"value", "stderr"}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert Metrics(loss=Estimate(math.inf, None)).to_dict()["loss"] == {"value": None, "stderr": None}
    assert Metrics().to_dict()["agreement"] is None


def test_quality_that_was_lost() -> None:
    def own(**values: float) -> Metrics:
        return Metrics(**{name: Estimate(value, None) for name, value in values.items()})

    assert quality_loss(own(loss=2.0), own(loss=2.2), "lm") == pytest.approx(0.1)
    assert quality_loss(own(accuracy=0.9), own(accuracy=0.88), "classification") == pytest.approx(0.02)
    assert quality_loss(own(), own(cosine=0.97), "other") == pytest.approx(0.03)
    with pytest.raises(ValueError, match="evaluate with data with targets"):
        quality_loss(own(), own(), "lm")
    with pytest.raises(ValueError, match="task is 'speech'"):
        quality_loss(own(), own(), "speech")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="task is 'speech'"):
        evaluate(Fixed(), [], "speech")
    with pytest.raises(ValueError, match="no batches"):
        evaluate(Fixed(), [], "lm")
    with pytest.raises(ValueError, match="batch 1 hold NaN"):
        evaluate(Fixed(), [texts(1), Batch((torch.full((1, 6, 5), torch.nan),), targets=texts(1).targets)], "lm")
    with pytest.raises(ValueError, match="batch 1 has no targets"):
        evaluate(Fixed(), [texts(1), Batch((torch.ones(1, 6, 5),))], "lm")
    with pytest.raises(ValueError, match=r"targets have shape \(2, 4\), outputs \(2, 6, 5\)"):
        evaluate(Fixed(), [Batch((torch.ones(2, 6, 5),), targets=torch.zeros(2, 4, dtype=torch.long))], "lm")
    with pytest.raises(ValueError, match="all targets are -100"):
        evaluate(Fixed(), [Batch((torch.ones(2, 5),), targets=torch.full((2,), -100))], "classification")
    with pytest.raises(ValueError, match=r"gives \(1, 3\), the reference \(1, 2\)"):
        evaluate(nn.Linear(4, 3), [Batch((torch.ones(1, 4),))], "other", nn.Linear(4, 2))
