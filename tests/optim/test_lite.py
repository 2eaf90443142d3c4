import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from distributed import run_ranks
from flatwing.optim import LITE, METHODS, Shell
from flatwing.optim.lite import MUON, boost, flat, next_radius, risen, sharp_part
from flatwing.optim.polar import newton_schulz, span

SHAPES = [(8, 20), (20, 8), (12, 12), (1, 6)]
OFF = {"chi": 1.0, "beta1": 0.0, "beta2": 0.0}


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape).to(p.dtype) + p.detach()
        optimizer.step()


def spectrum(shape: tuple[int, int], power: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    k = min(shape)
    u = torch.linalg.qr(torch.randn(shape[0], k, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(shape[1], k, dtype=torch.float64))[0]
    return u, torch.arange(1, k + 1, dtype=torch.float64) ** -power, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0},
        {"adjust_lr_fn": "original", "momentum": 0.8, "ns_steps": 4, "ns_coefficients": (1.875, -1.25, 0.375)},
        {"lr": 0.5, "eps": 1e-3},
    ],
)
def test_switched_off_it_is_muon_bit_for_bit(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    settings = {"lr": 0.02, **settings}
    ours, theirs = parameters(dtype), parameters(dtype)
    steps(LITE(ours, **settings, **OFF), ours, 0, 6)
    steps(torch.optim.Muon(theirs, **settings), theirs, 0, 6)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_learning_rate_may_be_a_tensor() -> None:
    ours, theirs = parameters(), parameters()
    steps(LITE(ours, torch.tensor(0.03)), ours, 0, 3)
    steps(LITE(theirs, 0.03), theirs, 0, 3)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_switched_off_without_nesterov_it_is_muon() -> None:
    ours, theirs = parameters(), parameters()
    steps(LITE(ours, nesterov=False, **OFF), ours, 0, 6)
    steps(torch.optim.Muon(theirs, nesterov=False), theirs, 0, 6)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_before_the_ramp_it_is_muon() -> None:
    ours, theirs = parameters(), parameters()
    optimizer, muon = LITE(ours, warmup=4, ramp=10), torch.optim.Muon(theirs)
    steps(optimizer, ours, 0, 5)  # the ramp is 0 at the step on which it begins
    steps(muon, theirs, 0, 5)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    steps(optimizer, ours, 5, 6)
    steps(muon, theirs, 5, 6)
    assert not any(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (64, 64)])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_sharp_part_is_the_projector_of_the_svd(shape: tuple[int, int], power: float) -> None:
    u, s, v = spectrum(shape, power)
    moment, k = (u * s) @ v.T, 7
    tau = (s[k - 1] * s[k]).sqrt()  # 7 to 30 % away from both
    factor = newton_schulz(moment.float(), MUON, 5, 1e-7)
    sharp = sharp_part(moment.float(), factor, (tau / s.norm()).float(), span(MUON, 5)).double()
    values = torch.linalg.svdvals(sharp)
    assert torch.minimum(values, (values - 1).abs()).max() <= 0.15
    assert int((values > 0.5).sum()) == k
    assert torch.linalg.matrix_norm(sharp - u[:, :k] @ v[:, :k].T, 2) <= 0.15
    q = flat(torch.eye(shape[1], dtype=torch.float64), sharp)
    assert torch.allclose(q, q.T, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(q)
    assert eigenvalues.min() >= -0.025
    assert eigenvalues.max() <= 1 + 1e-12


def test_directions_that_are_almost_absent_are_flat() -> None:
    """Muon does not bring them to 1; half the sum of the two signs would count each as a quarter of a sharp one."""
    u, _, v = spectrum((64, 64), 1.0)
    s = torch.cat([torch.ones(4), torch.full((60,), 1e-4)]).double()
    moment = ((u * s) @ v.T).float()
    factor = newton_schulz(moment, (1.875, -1.25, 0.375), 5, 1e-7)  # ends them at 0.001, polished at 0.01 ... 0.3
    sharp = sharp_part(moment, factor, torch.tensor(0.1), span(MUON, 5))
    assert torch.linalg.svdvals(sharp)[4:].max() < 0.13
    assert float(sharp.square().sum()) == pytest.approx(4.0, abs=1.0)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_threshold_finds_the_share_asked_for(shape: tuple[int, int]) -> None:
    u, s, v = spectrum(shape, 1.0)
    p = nn.Parameter(torch.zeros(shape))
    optimizer = LITE([p], ramp=0, sharp=0.1, momentum=0.5)
    ranks = []
    for _ in range(80):
        p.grad = ((u * s) @ v.T).float()
        optimizer.step()
        factor = newton_schulz(p.grad, MUON, 5, 1e-7)
        ranks.append(float(sharp_part(p.grad, factor, optimizer.state[p]["radius"], span(MUON, 5)).square().sum()))
    assert 4.0 <= sum(ranks[-20:]) / 20 <= 6.0  # floor(0.1 * 40) + 1 = 5


def test_threshold_stays_in_bounds() -> None:
    many, none = torch.eye(6), torch.zeros(6, 6)
    assert next_radius(torch.tensor(1.0), many, 0.1) == 1.0
    assert next_radius(torch.tensor(1e-3), none, 0.1) == pytest.approx(1e-3)
    three, four = (torch.diag((torch.arange(20) < rank).float()) for rank in (3, 4))
    assert next_radius(torch.tensor(0.5), three, 0.1) == pytest.approx(0.475)  # floor(0.1 * 20) + 1 = 3 are wanted
    assert next_radius(torch.tensor(0.5), four, 0.1) == pytest.approx(0.525)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
@pytest.mark.parametrize(("beta1", "beta2", "chi"), [(0.0, 0.0, 2.0), (0.0, 1.0, 1.0), (-0.25, 2.0, 3.0)])
def test_step_is_the_formula_with_an_exact_projector(
    shape: tuple[int, int], beta1: float, beta2: float, chi: float
) -> None:
    u, s, v = spectrum(shape, 1.0)
    k, lr, decay = 4, 0.02, 0.1
    moment = ((u * s) @ v.T).float()
    start = torch.randn(shape)
    p = nn.Parameter(start.clone())
    optimizer = LITE([p], lr, decay, momentum=0.5, nesterov=False, chi=chi, beta1=beta1, beta2=beta2, ramp=0)
    p.grad = torch.zeros(shape)
    optimizer.step()  # makes the state; nothing moves but decay
    with torch.no_grad():
        p.copy_(start)
    optimizer.state[p]["radius"].fill_(float((s[k - 1] * s[k]).sqrt() / s.norm()))
    gradient = torch.randn(shape)
    optimizer.state[p]["momentum_buffer"].copy_(2 * moment - gradient)
    p.grad = gradient
    optimizer.step()

    q = torch.eye(shape[1]) - (v[:, :k] @ v[:, :k].T).float()
    longer = torch.eye(shape[1]) + (chi - 1) * q
    o, d = (newton_schulz(x, MUON, 5, 1e-7).float() for x in (moment, gradient))
    update = (o + beta1 * d + (beta2 - beta1) * d @ q) @ longer
    factor = max(1.0, shape[0] / shape[1]) ** 0.5
    wanted = start - lr * decay * start @ longer - lr * factor * update
    assert (p.detach() - wanted).norm() <= 0.05 * (wanted - start).norm()


def test_flat_directions_go_further_and_sharp_ones_do_not() -> None:
    u, _, v = spectrum((16, 16), 0.0)
    s = torch.cat([torch.full((1,), 10.0), torch.linspace(1.0, 0.5, 15)]).double()
    gradient = ((u * s) @ v.T).float()
    change = []
    for make in (lambda p: LITE(p, 0.1, 0.0, chi=3.0, beta2=0.0, ramp=0, sharp=0.05), torch.optim.Muon):
        p = nn.Parameter(torch.zeros(16, 16))
        optimizer = make([p])
        optimizer.param_groups[0].update(lr=0.1, weight_decay=0.0)
        p.grad = gradient
        optimizer.step()
        change.append((u.T.float() @ p.detach() @ v.float()).diagonal())
    assert change[0][0] == pytest.approx(float(change[1][0]), rel=0.06)
    torch.testing.assert_close(change[0][1:], 3 * change[1][1:], rtol=0.06, atol=1e-3)


def test_ramp_and_boost() -> None:
    assert [risen(step, 2, 4) for step in range(8)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [risen(step, 2, 0) for step in range(4)] == [0, 0, 1, 1]
    # a cosine from 1 to 0.1: chi times the rate of the sharp directions runs from 2 to 0.1
    for done in (0.0, 0.3, 0.7, 1.0):
        sharp_rate, flat_rate = 0.1 + 0.9 * done, 0.1 + 1.9 * done
        assert boost(2.0, 1.0, sharp_rate, 0.1) * sharp_rate == pytest.approx(flat_rate)
    assert boost(2.0, 1.0, 1e-9, 0.0) == pytest.approx(2.0)
    assert boost(2.0, 1.0, 0.0, 0.0) == 2.0
    assert boost(4.0, 0.0, 1.0, 0.0) == 1.0


def test_peak_of_a_scheduler_sets_the_boost() -> None:
    """With the rate at its floor, chi is 1: after Muon's state is copied, one step equals Muon's."""
    results = []
    for make in (lambda p: LITE(p, 0.1, floor=0.1, ramp=0, beta2=0.0), lambda p: torch.optim.Muon(p, 0.1)):
        params = parameters()
        optimizer = make(params)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
        steps(optimizer, params, 0, 1)
        results.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_uninterrupted(dtype: torch.dtype) -> None:
    whole = parameters(dtype)
    optimizer = LITE(whole, warmup=2, ramp=6)
    steps(optimizer, whole, 0, 12)
    half = parameters(dtype)
    first = LITE(half, warmup=2, ramp=6)
    steps(first, half, 0, 5)
    saved = copy.deepcopy(first.state_dict())
    second = LITE(half)
    second.load_state_dict(saved)
    steps(second, half, 5, 12)
    assert all(torch.equal(p, q) for p, q in zip(whole, half, strict=True))
    assert second.param_groups[0]["step"] == 12


def test_copied_it_goes_on() -> None:
    params = parameters()
    optimizer = LITE(params, ramp=3)
    steps(optimizer, params, 0, 3)
    twins, twin = copy.deepcopy((params, optimizer))
    steps(optimizer, params, 3, 6)
    steps(twin, twins, 3, 6)
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


def test_zero_gradient_and_empty_matrix() -> None:
    params = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.empty(0, 4))]
    optimizer = LITE(params, lr=0.1, weight_decay=0.0, ramp=0)
    for p in params:
        p.grad = torch.zeros_like(p)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(params[0], torch.ones(3, 4))


def test_gradient_that_is_not_finite_skips_the_step() -> None:
    params = parameters()
    optimizer = LITE(params)
    steps(optimizer, params, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    params[1].grad = torch.full(SHAPES[1], torch.inf)
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    after = optimizer.state_dict()
    assert optimizer.skipped == 1
    assert after["param_groups"] == before["param_groups"]
    for index, entries in before["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in entries.items())


def test_what_is_no_matrix_is_refused_by_name() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"bias has shape \(2,\).*muon_groups"):
        LITE(model.named_parameters())
    with pytest.raises(ValueError, match="parameter 1 has shape"):
        LITE(model.parameters())
    with pytest.raises(ValueError, match="complex"):
        LITE([nn.Parameter(torch.eye(2, dtype=torch.complex64))])
    optimizer = LITE([model.weight])
    with pytest.raises(ValueError, match="shape"):
        optimizer.add_param_group({"params": [model.bias]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"lr": -1.0}, r"lr is -1.0.*Nearest good value: 0"),
        ({"chi": 0.5}, r"chi is 0.5.*Nearest good value: 1"),
        ({"beta1": 0.5, "beta2": 0.0}, r"beta2 is 0.0.*at least 0.5.*Nearest good value: 0.5"),
        ({"sharp": 1.5}, "sharp is 1.5"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"floor": 1.0}, r"floor is 1.0.*0.999"),
        ({"adjust_lr_fn": "moonlight"}, "match_rms_adamw"),
        ({"ns_steps": 0}, r"ns_steps is 0.*Nearest good value: 1"),
    ],
)
def test_settings_are_checked(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LITE(parameters(), **setting)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lr", "fast", "lr is 'fast'. Rule: a number, at least 0"),
        ("lr", None, "lr is None. Rule: a number"),
        ("momentum", [0.9], r"momentum is \[0.9\]. Rule: a number from 0 to 1"),
        ("chi", "two", "chi is 'two'.*Nearest good value: 2.0"),
        ("beta1", None, "beta1 is None"),
        ("beta2", "1", "beta2 is '1'"),
        ("warmup", True, "warmup is True. Rule: a number"),
        ("nesterov", "yes", "nesterov is 'yes'. Rule: True or False"),
        ("ns_coefficients", None, "ns_coefficients is None. Rule: three numbers"),
        ("ns_coefficients", (1.0, 2.0), r"ns_coefficients is \(1.0, 2.0\)"),
        ("ns_coefficients", "abc", "ns_coefficients is 'abc'"),
        ("ns_coefficients", (1.0, "x", 2.0), "a number in ns_coefficients is 'x'"),
    ],
)
def test_settings_of_a_wrong_type_are_named_and_the_group_is_not_kept(name: str, value: object, words: str) -> None:
    optimizer = LITE(parameters(), lr=torch.tensor(0.02))  # a rate in a tensor is one
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 2))], name: value})
    assert len(optimizer.param_groups) == 1


def test_made_for_a_model_it_takes_hidden_matrices_and_leaves_the_rest_to_the_base() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "layer": nn.TransformerEncoderLayer(4, 2, 8)})
    model["head"] = nn.Linear(4, 5)
    made = METHODS["LITE"].make(model, torch.optim.SGD, lr=0.01, chi=1.5)
    assert isinstance(made, Shell)
    assert [type(member).__name__ for member in made.members] == ["LITE", "SGD"]
    assert made.param_groups[0]["chi"] == 1.5
    assert made.param_groups[0]["param_names"][0] == "layer.self_attn.in_proj_weight"
    assert {"embed.weight", "head.weight", "layer.norm1.weight"} <= set(made.param_groups[1]["param_names"])


def test_made_for_a_model_whose_names_say_nothing_it_takes_all_matrices() -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.eye(3)), "b": nn.Parameter(torch.ones(3))})
    made = METHODS["LITE"].make(model, torch.optim.SGD, lr=0.01)
    assert [group["param_names"] for group in made.param_groups] == [["a"], ["b"]]


def on_ranks(rank: int, world: int, settings: dict[str, Any], dim: int) -> list[torch.Tensor]:
    mesh = init_device_mesh("cpu", (world,))
    whole = parameters()
    params = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(dim)])) for p in whole]
    optimizer = LITE(params, lr=0.05, **settings)
    for step in range(6):
        torch.manual_seed(100 + step)
        for p in params:
            gradient = torch.randn(p.shape) + p.full_tensor().detach()
            p.grad = distribute_tensor(gradient, mesh, [Shard(dim)])
        optimizer.step()
    return [p.full_tensor().detach().clone() for p in params]


@pytest.mark.parametrize(("world", "dim"), [(2, 1), (3, 0)])
def test_sharded_it_equals_one_process_to_the_bit(world: int, dim: int) -> None:
    settings = {"ramp": 3, "beta1": -0.25}
    params = parameters()
    steps(LITE(params, lr=0.05, **settings), params, 0, 6)
    for found in run_ranks(on_ranks, world, settings, dim):
        assert all(torch.equal(p, q) for p, q in zip(params, found, strict=True))
