import pytest
import torch
from torch import nn, optim

from flatwing.optim import Shell, boost, memory
from flatwing.optim.boost import SEPARATE, Boost, boosted_step, pieces

SHAPES = [(5, 4), (3,), (7, 2), (300, 230)]  # the last one is large enough for compiled code


def parameters(dtype: torch.dtype = torch.float64, *, matrices: bool = False) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = [shape for shape in SHAPES if len(shape) == 2 or not matrices]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def train(params: list[nn.Parameter], step, steps: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        with torch.no_grad():
            step()
    return [p.detach().clone() for p in params]


def boosts(params: list[nn.Parameter], *, share: float = 0.5, **settings: bool) -> dict[torch.Tensor, Boost]:
    generator = torch.Generator().manual_seed(3)
    return {p: Boost(torch.rand(p.shape, generator=generator) < share, 3.0, **settings) for p in params}


ADAMS = {
    "AdamW": lambda p: optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW foreach": lambda p: optim.AdamW(p, lr=1e-2, foreach=True),
    "AdamW fused": lambda p: optim.AdamW(p, lr=1e-2, fused=True),
    "AdamW amsgrad maximize": lambda p: optim.AdamW(p, lr=1e-2, amsgrad=True, maximize=True),
    "Adam L2": lambda p: optim.Adam(p, lr=1e-2, weight_decay=0.1, eps=1e-3),
    "Adam decoupled": lambda p: optim.Adam(p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ADAMS)
def test_a_move_told_from_adams_state_is_the_move_seen(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for seen in (False, True):
        if seen:
            monkeypatch.setattr(boost, "keeps_its_move", lambda *_: False)
        params = parameters(dtype)
        base = ADAMS[name](params)
        results.append(train(params, lambda base=base, params=params: boosted_step(base, boosts(params))))
    for first, second in zip(*results, strict=True):
        tight = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(first, second, rtol=tight, atol=tight)


@pytest.mark.parametrize("flat_decay", [True, False])
def test_compiled_code_and_torch_agree(flat_decay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (optim.AdamW, optim.Muon):
        results = []
        for worth in (1, 1 << 40):
            monkeypatch.setattr(memory, "WORTH", worth)
            params = parameters(torch.float32, matrices=True)
            base = kind(params, lr=1e-2, weight_decay=0.1)
            table = boosts(params, decay=flat_decay)
            results.append(train(params, lambda base=base, table=table: boosted_step(base, table)))
        for first, second in zip(*results, strict=True):
            torch.testing.assert_close(first, second, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", sorted(SEPARATE, key=lambda kind: kind.__name__))
def test_stepping_in_pieces_is_one_step_bit_for_bit(
    kind: type[optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boost, "PIECE", {"cpu": 1})
    whole, split = (parameters(torch.float32, matrices=True) for _ in range(2))
    base = kind(split)
    assert len(list(pieces(base))) == len(split)
    wanted = train(whole, kind(whole).step)
    # nothing is flat, so what is left is the base
    found = train(split, lambda: boosted_step(base, boosts(split, share=0.0)))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.Muon])
def test_boosted_everywhere_is_a_larger_learning_rate(kind: type[optim.Optimizer]) -> None:  # I2
    first, second = (parameters(matrices=True) for _ in range(2))
    base, fast = kind(first, lr=1e-3), kind(second, lr=4e-3)
    found = train(first, lambda: boosted_step(base, boosts(first, share=2.0)))
    for a, b in zip(found, train(second, fast.step), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [optim.AdamW, optim.Muon])
def test_decay_may_keep_its_strength(kind: type[optim.Optimizer]) -> None:
    """With a gradient of zero the decay is all that moves."""
    first, second = (parameters(matrices=True) for _ in range(2))
    base, bare = (kind(params, lr=1e-2, weight_decay=0.3) for params in (first, second))
    for p in first + second:
        p.grad = torch.zeros_like(p)
    with torch.no_grad():
        boosted_step(base, boosts(first, decay=False))
        bare.step()
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_decay_that_is_not_known_apart_is_refused() -> None:
    params = parameters()
    base = optim.SGD(params, lr=0.1, weight_decay=0.1)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="SGD with weight_decay"):
        train(params, lambda: boosted_step(base, boosts(params, decay=False)))
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_half_precision_is_boosted_by_the_exact_move_not_the_rounded_one() -> None:
    p = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    base = optim.AdamW([p], lr=1e-3, weight_decay=0.0)  # a move of 1e-3 rounds to nothing next to 1
    with torch.no_grad():
        boosted_step(base, {p: Boost(torch.ones(64, dtype=torch.bool), 7.0)})
    assert float(p.detach()[0]) == pytest.approx(1 - 7e-3, abs=2e-3)


def test_half_precision_is_rounded_once() -> None:
    p, m, v = (torch.rand(1000).bfloat16() for _ in range(3))
    flat, exact, wide = torch.ones(1000, dtype=torch.bool), p.clone(), p.double()
    boost.of_adam(p, m, v, flat, -1.3, -0.3, 1e-8)
    wanted = wide - 1.3 * m.double() / (v.double().sqrt() + 1e-8) - 0.3 * wide
    assert float((p == wanted.bfloat16()).float().mean()) > 0.99
    boost.of_move(exact, m, flat, 1.7, 0.1)
    wanted = wide + 1.7 * (wide - m.double() + 0.1 * m.double())
    assert float((exact == wanted.bfloat16()).float().mean()) > 0.99


def test_parameters_without_a_gradient_stay() -> None:
    params = parameters()
    base = optim.AdamW(params)
    train(params, base.step, steps=1)
    before = [p.detach().clone() for p in params]
    params[0].grad = None
    with torch.no_grad():
        boosted_step(base, boosts(params))
    assert [torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [True] + [False] * 3


def test_who_watches_steps_sees_one() -> None:
    params = parameters()
    base = optim.AdamW(params, lr=1e-2)
    calls: list[int] = []
    base.register_step_post_hook(lambda *_: calls.append(1))
    train(params, lambda: boosted_step(base, boosts(params)), steps=3)
    assert len(calls) == 3
    assert len(list(pieces(Shell([base])))) == 1


def test_a_hook_that_moves_weights_is_part_of_the_move() -> None:
    params = parameters()
    base = optim.AdamW(params, lr=1e-2)
    base.register_step_post_hook(lambda *_: [p.fill_(5.0) for p in params] and None)
    table = {p: Boost(torch.ones(p.shape, dtype=torch.bool), 1.0) for p in params}
    before = [p.detach().clone() for p in params]
    after = train(params, lambda: boosted_step(base, table), steps=1)
    for p, old in zip(after, before, strict=True):
        torch.testing.assert_close(p, 5.0 + (5.0 - old))


def test_schedulers_of_the_base_go_on_working() -> None:
    params = parameters()
    base = optim.AdamW(params, lr=1e-2)
    scheduler = optim.lr_scheduler.StepLR(base, 1, 0.1)  # warns, which is an error here, if it misses the step
    train(params, lambda: boosted_step(base, boosts(params)), steps=1)
    scheduler.step()
    assert base.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert [len(group["params"]) for group in base.param_groups] == [len(params)]
