import copy
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

from flatwing.optim import IRE, SAM, GradPower, boost, perturbed
from flatwing.optim.curvature import sampled_diagonal

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(5))
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(6))


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def adamw(model: nn.Module, **settings: Any) -> optim.AdamW:
    return optim.AdamW(model.parameters(), lr=1e-2, **settings)


def sgd(model: nn.Module, **settings: Any) -> optim.SGD:
    return optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **settings)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int, *, refresh: bool = False) -> list[torch.Tensor]:
    for _ in range(steps):
        if refresh and isinstance(optimizer, IRE):
            optimizer.refresh(lambda: model(X), model=model)
        backward(model)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def share(optimizer: IRE) -> float:
    masks = list(optimizer.masks().values())
    return float(sum(mask.sum() for mask in masks)) / sum(mask.numel() for mask in masks)


@pytest.mark.parametrize("settings", [{"kappa": 0.0}, {"start": 8}, {"start": 13, "interval": 4}, {"gamma": 0.0}])
@pytest.mark.parametrize("base", [adamw, sgd])
def test_off_or_not_begun_or_nothing_flat_is_the_base_bit_for_bit(base: Any, settings: dict[str, Any]) -> None:  # I1
    bare, wrapped = network(), network()
    wanted = train(bare, base(bare), 8)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    optimizer = IRE(base(wrapped := network()), **settings)
    assert same(train(wrapped, optimizer, 8, refresh=True), wanted)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mask", ["gradient", "sampled", "random"])
@pytest.mark.parametrize("base", [adamw, sgd])
def test_everything_flat_is_the_base_with_a_larger_learning_rate(base: Any, mask: Any) -> None:  # I2
    bare, wrapped = network(), network()
    inner, outer = base(bare), IRE(base(wrapped), kappa=2.0, gamma=1.0, mask=mask)
    inner.param_groups[0]["lr"] *= 3.0
    torch.manual_seed(0)
    wanted = train(bare, inner, 5)
    torch.manual_seed(0)
    for a, b in zip(train(wrapped, outer, 5, refresh=True), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def valley(kappa: float, lr: float = 1.0, steps: int = 700) -> tuple[float, float]:
    """(1 + u^2) v^2 / 2: the minima are v = 0, the flattest of them u = 0, and the gradient is smaller along u."""
    u, v = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (1.0, 0.01))
    optimizer = IRE(optim.SGD([u, v], lr=lr), kappa=kappa, gamma=0.5, interval=1, mask="gradient")
    for _ in range(steps):
        if abs(float(v.detach())) < 1e-12 or abs(float(v.detach())) > 1e6:
            break
        optimizer.zero_grad()
        ((1 + u**2) * v**2 / 2).backward()
        optimizer.step()
    return float(u.detach()), float(v.detach())


@pytest.mark.parametrize(("kappa", "wanted"), [(0.0, 0.99289), (90.0, 0.92849), (900.0, 0.74259), (9e3, 0.00998)])
def test_walks_along_the_valley_to_where_it_is_wide(kappa: float, wanted: float) -> None:  # I3
    u, v = valley(kappa)
    assert u == pytest.approx(wanted, abs=1e-4)
    assert abs(v) < 1e-2


def test_a_larger_learning_rate_instead_diverges() -> None:
    assert abs(valley(0.0, lr=2.0)[1]) > 1e6


@pytest.mark.parametrize("gamma", [0.1, 0.6, 0.93])
def test_mask_is_the_given_share_with_the_least_curvature(gamma: float) -> None:  # I4
    model = network()
    optimizer = IRE(adamw(model), gamma=gamma, interval=1)
    train(model, optimizer, 3)
    v = {p: optimizer.state[p]["exp_avg_sq"].clone() for p in model.parameters()}
    train(model, optimizer, 1)
    every = torch.cat([score.flatten() for score in v.values()])
    threshold = every.kthvalue(int(gamma * every.numel())).values
    assert all(torch.equal(mask, v[p] <= threshold) for p, mask in optimizer.masks().items())
    assert gamma - 0.02 < share(optimizer) <= gamma + float((every == threshold).float().mean())


def test_sampled_mask_is_that_of_sampled_diagonal_at_the_weights_of_the_call() -> None:
    model = network().eval()
    optimizer = IRE(sgd(model), gamma=0.5, seed=4)
    wanted = sampled_diagonal(lambda: model(X), model.parameters(), seed=4, step=0)
    assert optimizer.refresh(lambda: model(X))
    threshold = torch.cat([h.flatten() for h in wanted]).kthvalue(int(0.5 * sum(h.numel() for h in wanted))).values
    assert same(list(optimizer.masks().values()), [h <= threshold for h in wanted])


def test_weights_that_are_flat_move_further_and_others_do_not() -> None:
    model, twin = network().eval(), network().eval()
    optimizer, bare = IRE(sgd(model), kappa=4.0, mask="gradient"), sgd(twin)
    begin = [p.detach().clone() for p in model.parameters()]
    after, base = train(model, optimizer, 1), train(twin, bare, 1)
    for (_, flat), old, new, plain in zip(optimizer.masks().items(), begin, after, base, strict=True):
        assert torch.equal(new[~flat], plain[~flat])
        torch.testing.assert_close((new - old)[flat], 5.0 * (plain - old)[flat], rtol=1e-4, atol=1e-6)


def test_mask_is_made_at_the_start_and_each_interval_only() -> None:
    model = network()
    optimizer = IRE(sgd(model), start=3, interval=4)
    due = []
    for _ in range(12):
        due.append(optimizer.refresh(lambda: model(X)))
        train(model, optimizer, 1)
    assert [step for step, made in enumerate(due) if made] == [3, 7, 11]


BASES = {
    "SGD": lambda model: optim.SGD(model.parameters(), lr=0.05),  # keeps no state at all
    "momentum": sgd,
    "RMSprop": lambda model: optim.RMSprop(model.parameters(), lr=1e-3),
    "Muon and AdamW": lambda model: [
        optim.Muon([model[0].weight, model[3].weight], lr=1e-2),
        optim.AdamW([model[0].bias, model[3].bias], lr=1e-2),
    ],
}


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("cleared", ["before", "after", "after the step"])
def test_refresh_is_heard_wherever_gradients_are_cleared(cleared: str, base: Any, start: int) -> None:
    model = network()
    optimizer = IRE(base(model), interval=3, start=start)
    due = []
    for step in range(8):
        if cleared == "before":
            optimizer.zero_grad()
        if optimizer.refresh(lambda: model(X)):
            due.append(step)
        if cleared == "after":
            optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        if cleared == "after the step":
            optimizer.zero_grad()
        if step == 3:  # a resumed run goes on with the same grid
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = IRE(base(model), interval=3, start=start)
            optimizer.load_state_dict(state)
    assert due == list(range(start, 8, 3))


def test_a_second_call_in_a_step_and_a_missed_one_are_handled() -> None:
    model = network()
    optimizer = IRE(sgd(model), interval=4)
    assert optimizer.refresh(lambda: model(X))
    assert not optimizer.refresh(lambda: model(X))
    with pytest.warns(UserWarning, match="mask of IRE is of step 0, now is step 5, and it is due every 4 steps"):
        train(model, optimizer, 6)  # the mask was due at step 4
    train(model, optimizer, 1)  # it says so once
    assert optimizer.refresh(lambda: model(X))
    train(model, optimizer, 1, refresh=True)
    assert optimizer.param_groups[0]["ire_refreshed"] == 7


@pytest.mark.parametrize("settings", [{"kappa": 0.0}, {"start": 1}, {"mask": "adam"}, {"mask": "random"}])
def test_nothing_is_sampled_that_is_not_needed(settings: dict[str, Any]) -> None:
    def forward() -> torch.Tensor:
        raise AssertionError("called")

    assert not IRE(sgd(network()), **settings).refresh(forward)
    assert not IRE(adamw(network())).refresh(forward)


def test_a_due_mask_that_was_never_made_is_an_error_before_anything_moves() -> None:
    model = network()
    optimizer = IRE(sgd(model), mask="sampled")
    before = [p.detach().clone() for p in model.parameters()]
    backward(model)
    with pytest.raises(ValueError, match=r"Add optimizer\.refresh\(lambda: model\(x\)\)"):
        optimizer.step()
    assert same(before, list(model.parameters()))


def test_auto_takes_adams_second_moment_only_where_all_bases_have_one() -> None:
    model = network()
    matrices, vectors = [model[0].weight, model[3].weight], [model[0].bias, model[3].bias]
    mixed = IRE([optim.Muon(matrices, lr=1e-2), optim.AdamW(vectors, lr=1e-2)])
    with pytest.raises(ValueError, match="never made"):
        train(model, mixed, 2)
    both = IRE([optim.AdamW(matrices, lr=1e-3), optim.AdamW(vectors, lr=1e-2)])
    train(model, both, 2)
    assert share(both) == pytest.approx(0.6, abs=0.01)


def test_several_optimizers_have_one_threshold() -> None:
    model = network()
    matrices, vectors = [model[0].weight, model[3].weight], [model[0].bias, model[3].bias]
    optimizer = IRE([optim.Muon(matrices, lr=1e-2), optim.AdamW(vectors, lr=1e-2)], gamma=0.6)
    train(model, optimizer, 3, refresh=True)
    assert share(optimizer) == pytest.approx(0.6, abs=0.01)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_second_moment_that_a_base_does_not_keep_is_an_error() -> None:
    model = network()
    with pytest.raises(ValueError, match="Rule: exp_avg_sq"):
        train(model, IRE(sgd(model), mask="adam"), 2)


def test_random_mask_has_the_share_and_depends_on_seed_and_step_only() -> None:
    def masks(steps: int, seed: int) -> list[torch.Tensor]:
        model = network()
        torch.manual_seed(steps)  # of no influence
        optimizer = IRE(adamw(model), interval=2, mask="random", seed=seed)
        train(model, optimizer, steps)
        assert share(optimizer) == pytest.approx(0.6, abs=0.01)
        return list(optimizer.masks().values())

    first = masks(1, 0)
    assert same(first, masks(2, 0))
    assert not same(first, masks(3, 0))
    assert not same(first, masks(1, 1))


def test_ramp_raises_kappa_to_its_value() -> None:
    model = network().eval()
    optimizer = IRE(optim.SGD(model.parameters(), lr=0.1), kappa=4.0, gamma=1.0, start=1, ramp=4, mask="gradient")
    ratios = []
    for _ in range(7):
        backward(model)
        gradient, old = model[3].bias.grad.clone(), model[3].bias.detach().clone()
        optimizer.step()
        ratios.append(float(((old - model[3].bias.detach()) / (0.1 * gradient)).mean()))
    assert ratios == pytest.approx([1, 2, 3, 4, 5, 5, 5], rel=1e-3)


def test_groups_may_have_their_own_kappa_and_decay() -> None:
    model = network()
    groups = [{"params": [model[0].weight], "kappa": 0.0}, {"params": [model[3].weight], "boost_weight_decay": False}]
    optimizer = IRE(optim.AdamW(groups, lr=1e-2), gamma=1.0, mask="gradient")
    assert [(g["kappa"], g["boost_weight_decay"]) for g in optimizer.param_groups] == [(0.0, True), (3.0, False)]
    before = model[0].weight.detach().clone()
    backward(model)
    for p in model.parameters():
        p.grad.zero_()
    old = model[3].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 1e-4))
    torch.testing.assert_close(model[3].weight.detach(), old * (1 - 1e-4))


@pytest.mark.parametrize(("base", "mask"), [(adamw, "auto"), (sgd, "sampled"), (sgd, "random"), (sgd, "gradient")])
def test_resumed_in_the_middle_of_an_interval_is_uninterrupted(base: Any, mask: Any) -> None:  # I7
    whole, half, resumed = network().eval(), network().eval(), network().eval()
    wanted = train(whole, IRE(base(whole), interval=4, mask=mask), 11, refresh=True)
    first = IRE(base(half), interval=4, mask=mask)
    train(half, first, 6, refresh=True)
    second = IRE(base(resumed), interval=4, mask=mask)
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert same(train(resumed, second, 5, refresh=True), wanted)


def test_state_of_the_bare_base_is_a_beginning() -> None:
    model = network()
    bare = adamw(model)
    train(model, bare, 3)
    optimizer = IRE(adamw(model))
    optimizer.load_state_dict(bare.state_dict())
    train(model, optimizer, 1)
    assert share(optimizer) == pytest.approx(0.6, abs=0.01)  # from the second moment that was loaded


def test_memory_is_one_byte_per_parameter() -> None:
    model = network()
    optimizer = IRE(adamw(model))
    train(model, optimizer, 2)
    for p in model.parameters():
        assert {key: value.dtype for key, value in optimizer.kept[p].items()} == {"flat": torch.bool}


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = network().eval(), network().eval()
    wanted = train(model, IRE(adamw(model)), 12)
    monkeypatch.setattr(boost, "PIECE", {"cpu": 1})
    assert same(train(twin, IRE(adamw(twin)), 12), wanted)


def test_works_around_another_method() -> None:
    model = network()
    optimizer = IRE(GradPower(adamw(model), p=1.2))
    train(model, optimizer, 3)
    assert share(optimizer) == pytest.approx(0.6, abs=0.01)


def test_gradscaler_skips_what_overflowed_and_counts_no_step() -> None:
    model = network().eval()
    optimizer, scaler = IRE(sgd(model), mask="gradient"), torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        (scaler.scale(F.cross_entropy(model(X), Y)) * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    before = [p.detach().clone() for p in model.parameters()]
    step(float("inf"))
    assert scaler.get_scale() == 2.0
    assert same(before, list(model.parameters()))
    assert optimizer.param_groups[0]["ire_step"] == 1
    step(1.0)
    twin = network().eval()
    wanted = train(twin, IRE(sgd(twin), mask="gradient"), 2)
    for p, q in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.detach(), q)


def test_curvature_that_is_not_finite_leaves_the_mask() -> None:
    model = network().eval()
    optimizer = IRE(sgd(model), interval=1)
    train(model, optimizer, 1, refresh=True)
    before = [mask.clone() for mask in optimizer.masks().values()]
    # finite logits whose gradient overflows when it is squared
    with pytest.warns(UserWarning, match="mask stays"):
        assert optimizer.refresh(lambda: model(X) * 1e-3 + (model(X) - model(X).detach()) * 1e30)
    assert same(before, list(optimizer.masks().values()))
    train(model, optimizer, 1)


def test_frozen_weights_are_not_among_those_that_are_ranked() -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = IRE(adamw(model), gamma=0.5)
    train(model, optimizer, 2)
    assert set(optimizer.masks()) == set(model[3].parameters())
    assert share(optimizer) == pytest.approx(0.5, abs=0.03)


def test_with_sam_the_mask_is_of_the_unperturbed_weights() -> None:  # I6
    model = network().eval()
    optimizer = IRE(sgd(model), gamma=0.5)
    wanted = sampled_diagonal(lambda: model(X), model.parameters())
    begin = [p.detach().clone() for p in model.parameters()]
    optimizer.refresh(lambda: model(X))
    backward(model)
    with perturbed(list(model.parameters()), rho=0.5):
        assert not same(begin, list(model.parameters()))
        backward(model)
    assert same(begin, list(model.parameters()))
    optimizer.step()
    threshold = torch.cat([h.flatten() for h in wanted]).kthvalue(int(0.5 * sum(h.numel() for h in wanted))).values
    assert same(list(optimizer.masks().values()), [h <= threshold for h in wanted])


def test_sam_goes_around_it_as_an_optimizer() -> None:
    model, twin = network().eval(), network().eval()
    inner = IRE(sgd(model), kappa=4.0, gamma=0.5)
    wanted = sampled_diagonal(lambda: model(X), model.parameters())
    begin = [p.detach().clone() for p in model.parameters()]
    for net, optimizer in ((model, SAM(inner, rho=0.1)), (twin, SAM(sgd(twin), rho=0.1))):

        def closure(net: nn.Module = net) -> torch.Tensor:
            net.zero_grad()
            loss = F.cross_entropy(net(X), Y)
            loss.backward()
            return loss

        inner.refresh(lambda: model(X))
        optimizer.step(closure)
    threshold = torch.cat([h.flatten() for h in wanted]).kthvalue(int(0.5 * sum(h.numel() for h in wanted))).values
    assert same(list(inner.masks().values()), [h <= threshold for h in wanted])
    moves = [[p.detach() - old for p, old in zip(net.parameters(), begin, strict=True)] for net in (model, twin)]
    for ours, base, flat in zip(*moves, inner.masks().values(), strict=True):
        torch.testing.assert_close(ours, torch.where(flat, 5.0 * base, base), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kappa": -1.0}, r"kappa is -1.0.*a number, at least 0.0.*Nearest good value: 0.0"),
        ({"kappa": float("nan")}, "kappa is nan"),
        ({"kappa": float("inf")}, "kappa is inf.*Nearest good value: 3.0"),
        ({"gamma": 1.5}, r"gamma is 1.5.*from 0.0 to 1.0.*Nearest good value: 1.0"),
        ({"interval": 0}, "interval is 0.*whole number, at least 1"),
        ({"start": -1}, "start is -1"),
        ({"ramp": -1}, "ramp is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        IRE(adamw(network()), **settings)


def test_masks_and_decays_that_do_not_exist_are_refused() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "mask": "magic"}]
    with pytest.raises(ValueError, match=r"mask is 'magic'.*auto, adam"):
        IRE(optim.AdamW(groups))
    with pytest.raises(ValueError, match="only a decoupled decay"):
        IRE(sgd(network(), weight_decay=0.1), boost_weight_decay=False)
    with pytest.raises(ValueError, match="complex"):
        IRE(optim.SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1))
