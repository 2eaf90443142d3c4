import pytest
import torch
from torch.nn import functional as F

from flatwing.compress.batch import Batch
from flatwing.compress.divergence import TASKS, divergence, positions


@pytest.mark.parametrize("task", ["lm", "classification"])
def test_the_divergence_of_distributions_is_kl_from_the_reference(task: str) -> None:
    p, q = torch.randn(4, 6), torch.randn(4, 6)
    wanted = (p.softmax(1) * (p.softmax(1) / q.softmax(1)).log()).sum(1)
    torch.testing.assert_close(divergence(p, q, Batch((p,)), task), wanted)
    assert bool((divergence(p, q, Batch((p,)), task) != divergence(q, p, Batch((p,)), task)).all())


def test_other_outputs_have_a_relative_squared_error() -> None:
    p, q = torch.randn(4, 6), torch.randn(4, 6)
    found = divergence(p, q, Batch((p,)), "other")
    assert found.shape == (4,)
    assert float(found.mean()) == pytest.approx(float((p - q).square().sum() / p.square().sum()), rel=1e-6)
    torch.testing.assert_close(divergence(10 * p, 10 * q, Batch((p,)), "other"), found)
    assert bool(torch.isfinite(divergence(torch.zeros(2, 3), torch.zeros(2, 3), Batch((p,)), "other")).all())


@pytest.mark.parametrize("task", TASKS)
def test_equal_outputs_do_not_diverge_and_others_do(task: str) -> None:
    p = torch.randn(3, 5, 7)
    assert float(divergence(p, p, Batch((p,)), task).abs().max()) < 1e-6
    assert bool((divergence(p, torch.randn(3, 5, 7), Batch((p,)), task) > 0).all())


def test_padding_is_left_out() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    p, q = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    batch = Batch((torch.ones(2, 3, dtype=torch.long),), mask=mask)
    found = divergence(p, q, batch, "lm")
    assert found.shape == (3,)
    q[~mask] = 100.0
    torch.testing.assert_close(divergence(p, q, batch, "lm"), found)
    assert torch.equal(positions(p, batch), p[mask])
    assert positions(torch.ones(2, 5), batch).shape == (2, 5), "one output per text has no padding"


def test_it_can_be_differentiated_and_half_precision_is_computed_in_more() -> None:
    p = torch.randn(3, 5)
    q = torch.randn(3, 5, requires_grad=True)
    divergence(p, q, Batch((p,)), "classification").sum().backward()
    assert q.grad is not None
    torch.testing.assert_close(q.grad, q.detach().softmax(1) - p.softmax(1), rtol=1e-5, atol=1e-6)
    half = divergence(p.bfloat16(), p.bfloat16() + 1, Batch((p,)), "classification")
    assert half.dtype == torch.float32
    assert F.relu(half).max() < 1e-2
