import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatwing.compress import moments as module
from flatwing.compress.moments import Moments


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def undamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DAMP", 1e-13)
    monkeypatch.setattr(module, "DAMP_FEW", 1e-13)


def samples(n: int = 5, m: int = 3, count: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs x, inputs h that the layers in front changed, and what the residual stream lacks; no mean is zero."""
    x = normal(count, n) @ normal(n, n, seed=1) + 1
    return x, x + 0.3 * normal(count, n, seed=2) - 0.5, 0.5 * normal(count, m, seed=3) + x[:, :m] + 2


def mean_square(y: torch.Tensor) -> float:
    return float(y.double().square().sum(1).mean())


@pytest.mark.usefixtures("undamped")
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_target_is_the_least_squares_solution(with_bias: bool, with_residual: bool) -> None:
    x, h, d = samples()
    W, b = normal(3, 5, seed=4), normal(3, seed=5) if with_bias else None
    found = Moments(5)
    found.add(x, h, {"o": d} if with_residual else {})
    target = found.target("o", W, b)
    wanted = x.double() @ W.double().mT + (d.double() if with_residual else 0) + (0 if b is None else b.double())
    design = torch.cat([h.double(), torch.ones(len(h), 1, dtype=torch.float64)], 1) if with_bias else h.double()
    solution = torch.linalg.lstsq(design, wanted).solution.mT
    torch.testing.assert_close(target.matrix, solution[:, :5], rtol=1e-4, atol=1e-4)
    bias = target.bias(target.matrix)
    if with_bias:
        assert bias is not None
        torch.testing.assert_close(bias, solution[:, 5], rtol=1e-4, atol=1e-4)
    else:
        assert bias is None


@given(st.booleans(), st.booleans(), st.integers(0, 100))
@settings(max_examples=20)
def test_the_objective_is_the_mean_squared_error_but_for_a_constant(bias: bool, residual: bool, seed: int) -> None:
    x, h, d = samples()
    W, b = normal(3, 5, seed=4), normal(3, seed=5)
    found = Moments(5)
    found.add(x, h, {"o": d} if residual else {})

    def truth(V: torch.Tensor) -> float:
        rest = x @ W.mT + (d if residual else 0) - h @ V.mT
        return mean_square(rest - rest.mean(0) if bias else rest)  # the best bias takes up the mean

    one, other = normal(3, 5, seed=seed), normal(3, 5, seed=seed + 1)
    own = [found.objective("o", W, b if bias else None, V.double()) for V in (one, other)]
    assert own[0] - own[1] == pytest.approx(truth(one) - truth(other), rel=1e-4, abs=1e-4)


def test_with_the_bias_the_mean_output_is_right_for_any_matrix() -> None:
    x, h, d = samples()
    W, b, rough = normal(3, 5, seed=4), normal(3, seed=5), normal(3, 5, seed=6)
    found = Moments(5)
    found.add(x, h, {"o": d})
    bias = found.target("o", W, b).bias(rough)
    assert bias is not None
    torch.testing.assert_close((h @ rough.mT).mean(0) + bias.float(), (x @ W.mT + b + d).mean(0), rtol=1e-4, atol=1e-4)


def test_nothing_changed_means_nothing_to_correct() -> None:
    x, _, _ = samples()
    W, b = normal(3, 5, seed=4), normal(3, seed=5)
    found = Moments(5)
    found.add(x, x, {"o": torch.zeros(len(x), 3)})
    target = found.target("o", W, b)
    torch.testing.assert_close(target.matrix, W.double(), rtol=1e-9, atol=1e-9)
    bias = target.bias(W)
    assert bias is not None
    torch.testing.assert_close(bias, b.double(), rtol=1e-6, atol=1e-6)


def test_the_metric_is_the_damped_covariance_of_the_new_inputs() -> None:
    x, h, _ = samples()
    found = Moments(5)
    found.add(x, h, {})
    plain = (h.double().mT @ h.double()) / len(h)
    centred = torch.cov(h.double().mT, correction=0)
    for bias, wanted in ((None, plain), (torch.zeros(3), centred)):
        damp = module.DAMP * float(wanted.diagonal().mean()) * torch.eye(5, dtype=torch.float64)
        metric = found.target("o", normal(3, 5), bias).metric
        torch.testing.assert_close(metric.covariance, wanted + damp, rtol=1e-4, atol=1e-4)


def test_residuals_belong_to_their_own_layer() -> None:
    x, h, d = samples()
    W = normal(3, 5, seed=4)
    found = Moments(5)
    found.add(x, h, {"o": d})
    assert not torch.equal(found.target("o", W, None).matrix, found.target("q", W, None).matrix)


@pytest.mark.parametrize("sizes", [(200,), (50, 100, 50), (1,) * 200])
def test_samples_may_come_in_any_parts(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 64)
    x, h, d = samples()
    found = Moments(5)
    for xs, hs, ds in zip(x.split(sizes), h.split(sizes), d.split(sizes), strict=True):
        found.add(xs, hs, {"o": ds})
    assert found.samples == 200
    x, h, d = x.double(), h.double(), d.double()
    for name, wanted in (("hh", h.mT @ h), ("xh", x.mT @ h), ("h", h.sum(0)), ("x", x.sum(0))):
        torch.testing.assert_close(getattr(found, name), wanted, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.dh["o"], d.mT @ h, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.d["o"], d.sum(0), rtol=1e-5, atol=1e-3)
    assert {t.dtype for t in (found.hh, found.xh, found.h, found.x)} == {torch.float64}


def test_few_samples_are_damped_more() -> None:
    found = Moments(10)
    found.add(normal(99, 10), normal(99, 10), {})
    assert found.damp == module.DAMP_FEW
    found.add(normal(1, 10), normal(1, 10), {})
    assert found.damp == module.DAMP < module.DAMP_FEW


def test_damping_pulls_towards_the_weights() -> None:
    """Where no sample says anything, the layer stays as it was."""
    x = normal(50, 5)
    x[:, 3] = 0
    W = normal(2, 5, seed=4)
    found = Moments(5)
    found.add(x, 0.5 * x, {})
    target = found.target("o", W, None).matrix
    assert float((target[:, 3] - W[:, 3]).abs().max()) < 1e-9
    alive = [0, 1, 2, 4]
    assert bool((target[:, alive].abs() > 1.5 * W[:, alive].abs()).all())  # h is half of x there


@pytest.mark.parametrize("bias", [None, torch.ones(2)])
def test_inputs_that_never_vary_have_a_metric_all_the_same(bias: torch.Tensor | None) -> None:
    found = Moments(3)
    found.add(torch.zeros(8, 3), torch.zeros(8, 3), {})
    target = found.target("o", normal(2, 3), bias)
    assert torch.equal(target.matrix, normal(2, 3).double())
    assert target.metric.norm(torch.ones(2, 3)) > 0


@pytest.mark.parametrize("count", [64, 2000, 20000])
def test_constant_inputs_of_a_layer_with_a_bias_say_nothing(count: int) -> None:
    """Their variance is rounding alone, which is not positive semidefinite and must not look like a correction."""
    x = torch.cat([(3 * torch.rand(1, 200)).expand(count, 200), normal(count, 4)], 1)
    found = Moments(204)
    found.add(x, x, {})
    W = normal(8, 204, seed=4)
    hh = found.covariance(True)
    assert float(torch.linalg.eigvalsh(hh)[0]) > 0
    assert float((hh - torch.diag(hh.diagonal()))[:200].abs().max()) == 0
    torch.testing.assert_close(hh[200:, 200:], torch.cov(x[:, 200:].double().mT, correction=0), rtol=1e-3, atol=1e-3)
    target = found.target("o", W, torch.zeros(8))
    torch.testing.assert_close(target.matrix[:, :200], W[:, :200].double(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target.matrix, W.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [None, torch.ones(2)])
def test_without_samples_a_layer_is_its_own_target(bias: torch.Tensor | None) -> None:
    W = normal(2, 3)
    target = Moments(3).target("o", W, bias)
    assert torch.equal(target.matrix, W.double())
    assert torch.equal(target.metric.covariance, torch.eye(3, dtype=torch.float64))
    if bias is not None:
        assert torch.equal(target.bias(torch.zeros(2, 3)) - bias, torch.zeros(2, dtype=torch.float64))  # type: ignore[operator]


@pytest.mark.parametrize("bias", [None, torch.ones(2)])
def test_inputs_that_are_no_numbers_name_the_layer(bias: torch.Tensor | None) -> None:
    found = Moments(3)
    found.add(torch.full((8, 3), torch.nan), torch.full((8, 3), torch.nan), {})
    with pytest.raises(ValueError, match=r"layer 'blocks.3.up', moments of its inputs"):
        found.target("blocks.3.up", normal(2, 3), bias)


def test_half_precision_is_added_up_in_more() -> None:
    x = normal(4000, 4).to(torch.bfloat16)
    found = Moments(4)
    found.add(x, x, {})
    torch.testing.assert_close(found.hh, x.double().mT @ x.double(), rtol=1e-5, atol=1e-2)
