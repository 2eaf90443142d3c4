import pytest
import torch
from torch import nn

from flatwing.optim.curvature import adam_second_moment, sample_labels, sampled_diagonal, squared_gradient


def diagonal_of_hessian(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Of the mean cross-entropy of softmax(x w^T): no label in it, because the model is linear."""
    p = (x @ w.T).softmax(-1)
    return torch.einsum("nc,nd->cd", p * (1 - p), x**2) / len(x)


def test_mean_of_many_draws_is_the_hessian_of_softmax_regression() -> None:  # I5
    w, x = nn.Parameter(torch.randn(3, 4)), torch.randn(8, 4)
    wanted = diagonal_of_hessian(x, w.detach())
    found = sampled_diagonal(lambda: x @ w.T, [w], draws=5_000)[0]
    assert float(((found - wanted) / wanted).abs().max()) < 0.08


def test_a_draw_is_n_times_the_squared_gradient_of_the_mean_loss() -> None:
    w, x = nn.Parameter(torch.randn(3, 4)), torch.randn(8, 4)
    labels = sample_labels((x @ w.T).detach(), (7, 2, 0, 0))
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(x @ w.T, labels), w)
    torch.testing.assert_close(sampled_diagonal(lambda: x @ w.T, [w], seed=7, step=2)[0], 8 * g**2)


def test_micro_batches_are_summed_before_they_are_squared() -> None:
    w, x = nn.Parameter(torch.randn(3, 4)), torch.randn(8, 4)
    parts = x[:5], x[5:]
    labels = torch.cat([sample_labels((part @ w.T).detach(), (0, 0, 0, k)) for k, part in enumerate(parts)])
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(x @ w.T, labels), w)
    found = sampled_diagonal([lambda part=part: part @ w.T for part in parts], [w])[0]
    torch.testing.assert_close(found, 8 * g**2)


def test_each_position_of_a_sequence_is_a_label() -> None:
    w, x = nn.Parameter(torch.randn(3, 4)), torch.randn(2, 4, 4)
    flat = sampled_diagonal(lambda: x.flatten(0, 1) @ w.T, [w])[0]
    assert torch.equal(sampled_diagonal(lambda: x @ w.T, [w])[0], flat)


def test_labels_depend_on_every_part_of_the_key_and_on_nothing_else() -> None:
    logits = torch.zeros(64, 10)
    first = sample_labels(logits, (0, 0))
    torch.rand(3)
    assert torch.equal(first, sample_labels(logits, (0, 0)))
    assert not torch.equal(first, sample_labels(logits, (0, 1)))
    assert not torch.equal(first, sample_labels(logits, (1, 0)))


def test_labels_follow_the_probabilities() -> None:
    p = torch.tensor([0.7, 0.2, 0.1])
    share = sample_labels(p.log().expand(20_000, 3), (0,)).bincount() / 20_000
    torch.testing.assert_close(share, p, atol=0.01, rtol=0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_gradients_buffers_and_random_state_are_as_before() -> None:
    model, x = network(), torch.randn(16, 4)
    model(x).square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    values = [g.clone() for g in gradients if g is not None]
    buffers, state = [b.clone() for b in model.buffers()], torch.get_rng_state()
    sampled_diagonal(lambda: model(x), [model[0].weight], model=model)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(p.grad, v) for p, v in zip(model.parameters(), values, strict=True) if p.grad is not None)
    assert all(torch.equal(b, old) for b, old in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_of_parameters_that_nobody_named_are_as_before() -> None:
    model, x = network(), torch.randn(16, 4)
    sampled_diagonal(lambda: model(x), [model[3].weight])
    assert all(p.grad is None for p in model.parameters())
    model[0].weight.grad = before = torch.ones(8, 4)
    sampled_diagonal(lambda: model(x), [model[3].weight])
    assert model[0].weight.grad is before
    assert torch.equal(before, torch.ones(8, 4))


def test_gradients_are_as_before_after_an_error() -> None:
    w = nn.Parameter(torch.ones(3))
    w.grad = before = torch.ones(3)
    with pytest.raises(ZeroDivisionError, match="division"):
        sampled_diagonal(lambda: w * (1 // 0), [w])
    assert w.grad is before


def test_unused_parameters_have_zeros_and_half_precision_has_float32() -> None:
    w, unused, x = nn.Parameter(torch.randn(3, 4).bfloat16()), nn.Parameter(torch.ones(2)), torch.randn(8, 4)
    found = sampled_diagonal(lambda: x.bfloat16() @ w.T, [w, unused])
    assert [h.dtype for h in found] == [torch.float32] * 2
    assert not found[1].any()
    assert not found[0].requires_grad


@pytest.mark.parametrize(
    ("forward", "match"),
    [
        (lambda w: w.sum(), "at least 2 classes"),
        (lambda w: w[:, :1], "at least 2 classes"),
        (lambda w: w[:0], "at least one"),
        (lambda w: w.detach(), "have no graph"),
        (lambda w: w.detach().long(), "floating-point"),
    ],
)
def test_what_is_not_logits_is_refused(forward, match: str) -> None:
    w = nn.Parameter(torch.ones(4, 3))
    with pytest.raises(ValueError, match=match):
        sampled_diagonal(lambda: forward(w), [w])


def test_missing_and_complex_arguments_are_refused() -> None:
    w = nn.Parameter(torch.ones(4, 3))
    with pytest.raises(ValueError, match="no forward"):
        sampled_diagonal([], [w])
    with pytest.raises(ValueError, match="no parameters"):
        sampled_diagonal(lambda: w, [])
    with pytest.raises(ValueError, match="draws is 0"):
        sampled_diagonal(lambda: w, [w], draws=0)
    with pytest.raises(ValueError, match="complex"):
        sampled_diagonal(lambda: w, [nn.Parameter(torch.ones(2, dtype=torch.complex64))])


def test_squared_gradient_has_zeros_where_there_is_none() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    used.grad = torch.tensor([3.0, -2.0])
    first, second = squared_gradient([used, unused])
    assert first.tolist() == [9.0, 4.0]
    assert second.tolist() == [0.0, 0.0, 0.0]


def test_second_moment_is_the_state_itself_or_an_error() -> None:
    w = nn.Parameter(torch.ones(2))
    adam, sgd = torch.optim.Adam([w]), torch.optim.SGD([w], 0.1)
    with pytest.raises(ValueError, match="has nothing"):
        adam_second_moment(adam, [w])
    w.grad = torch.ones(2)
    adam.step()
    assert adam_second_moment(adam, [w])[0] is adam.state[w]["exp_avg_sq"]
    sgd.step()
    with pytest.raises(ValueError, match="Rule: exp_avg_sq"):
        adam_second_moment(sgd, [w])
