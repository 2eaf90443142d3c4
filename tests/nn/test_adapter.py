"""StructuredAdapter: it begins as nothing, stays orthogonal, merges exactly, and is BOFT by formula."""

import copy
import math

import pytest
import torch
from torch import nn

from flatwing import Chain
from flatwing.nn import StructuredAdapter
from flatwing.nn.adapter import orthogonal_blocks

SETUPS = {
    "additive": ("monarch(12, 8, blocks=4)", {"mode": "additive", "scale": 0.5}),
    "out": ("butterfly(12)", {"mode": "orthogonal"}),
    "in": ("butterfly(8, radices=(4, 2))", {"mode": "orthogonal", "side": "in"}),
    "exp": ("block_diagonal(12, 12, blocks=3)", {"mode": "orthogonal", "map": "exp"}),
}


def adapter(name: str, dtype: torch.dtype = torch.float32, bias: bool = True, moved: bool = True) -> StructuredAdapter:
    structure, options = SETUPS[name]
    made = StructuredAdapter(nn.Linear(8, 12, bias=bias, dtype=dtype), structure, **options)
    if moved:
        with torch.no_grad():
            for p in made.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p))
    return made


@pytest.mark.parametrize("name", SETUPS)
def test_begins_as_the_base_and_trains_only_the_change(name: str) -> None:
    made = adapter(name, moved=False)
    x = torch.randn(3, 8)
    assert torch.allclose(made(x), made.base(x), atol=1e-6)
    made(x).square().sum().backward()
    assert made.base.weight.grad is None
    assert made.base.bias.grad is None
    grads = [p.grad for p in made.parameters() if p.requires_grad]
    assert any(g is not None and float(g.abs().sum()) > 0 for g in grads)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SETUPS)
def test_forward_weight_and_merge_are_one_function(name: str, bias: bool) -> None:
    made = adapter(name, torch.float64, bias)
    for x in (torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)):
        dense = nn.functional.linear(x, made.weight, made.bias)
        assert torch.allclose(made(x), dense, atol=1e-12)
        assert torch.allclose(made.merge()(x), dense, atol=1e-12)
    assert made(torch.ones(0, 8, dtype=torch.float64)).shape == (0, 12)
    merged = made.merge()
    assert type(merged) is nn.Linear
    assert all(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize("name", ["out", "in", "exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
def test_rotation_is_orthogonal_and_keeps_singular_values(name: str, dtype: torch.dtype) -> None:
    made = adapter(name, dtype)
    R = made.rotation.dense()
    eps = 1e-12 if dtype != torch.float32 else 1e-5
    assert torch.allclose(R @ R.mH, torch.eye(len(R), dtype=dtype), atol=eps)
    assert float((R - torch.eye(len(R), dtype=dtype)).detach().norm()) > 0.5
    before, after = (torch.linalg.svdvals(W) for W in (made.base.weight, made.weight))
    assert torch.allclose(before, after, atol=eps * 10)


@pytest.mark.parametrize("name", ["out", "in", "exp", "additive"])
def test_gradients(name: str) -> None:
    made = adapter(name, torch.float64)
    trained = {key: p for key, p in made.named_parameters() if p.requires_grad}
    x = torch.randn(2, 8, dtype=torch.float64)

    def apply(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(made, dict(zip(trained, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(apply, tuple(p.detach().clone().requires_grad_() for p in trained.values()))


def test_is_boft_by_its_definition() -> None:
    # BOFT: weight' = weight R^T for weights stored (out, in), R = B_1 ... B_m; factor B_l is a permuted block diagonal
    # matrix of Cayley transforms (I + Q)(I - Q)^{-1} with Q skew-symmetric.
    made = StructuredAdapter(
        nn.Linear(8, 5, dtype=torch.float64), "butterfly(8, radices=(2, 4))", mode="orthogonal", side="in"
    )
    Rt = torch.eye(8, dtype=torch.float64)
    for p, v in zip(made.chain, made.skew, strict=True):
        v.data.normal_()
        factor = torch.zeros(8, 8, dtype=torch.float64)
        for block in range(p.blocks):
            i, k = divmod(block, p.d)
            where = i * p.b * p.d + torch.arange(p.b) * p.d + k
            Q = torch.zeros(p.b, p.b, dtype=torch.float64)
            Q[tuple(torch.tril_indices(p.b, p.b, -1))] = v[block].detach()
            Q = Q.T - Q
            one = torch.eye(p.b, dtype=torch.float64)
            factor[where[:, None], where] = (one + Q) @ torch.linalg.inv(one - Q)
        Rt = Rt @ factor
    assert torch.allclose(made.weight, made.base.weight @ Rt, atol=1e-12)


def test_half_precision_rotates_with_blocks_solved_in_single() -> None:
    values = torch.randn(3, 6).bfloat16()
    blocks = orthogonal_blocks(values, side=4)
    assert blocks.dtype == torch.bfloat16
    assert torch.equal(blocks, orthogonal_blocks(values.float(), side=4).bfloat16())
    made = adapter("out", torch.bfloat16)
    assert torch.allclose(
        made(torch.ones(8).bfloat16()).float(), made.merge()(torch.ones(8).bfloat16()).float(), atol=0.1
    )
    with torch.autocast("cpu"):
        assert adapter("out")(torch.ones(2, 8)).dtype == torch.bfloat16


def test_exponential_of_a_rotation_by_a_right_angle() -> None:
    Q = orthogonal_blocks(torch.full((1, 1), math.pi / 2, dtype=torch.float64), side=2, map="exp")[0]
    assert torch.allclose(Q, torch.tensor([[0.0, -1], [1, 0]], dtype=torch.float64), atol=1e-12)


def test_blocks_of_one_number_are_one() -> None:
    assert orthogonal_blocks(torch.zeros(4, 0), side=1).tolist() == [[[1.0]]] * 4


@pytest.mark.parametrize(
    ("structure", "options", "message"),
    [
        ("butterfly(8)", {}, "the chain is 8 x 8. Rule: 12 x 8 for mode='additive'"),
        ("butterfly(8)", {"mode": "orthogonal"}, "Rule: 12 x 12"),
        ("butterfly(12)", {"mode": "orthogonal", "side": "in"}, "Rule: 8 x 8"),
        ("low_rank(12, 12, 2)", {"mode": "orthogonal"}, "has blocks 12 x 2. Rule: orthogonal blocks are square"),
        ("butterfly(12)", {"mode": "rotate"}, "mode='rotate'. Rule: one of additive or orthogonal"),
        ("butterfly(12)", {"mode": "orthogonal", "map": "qr"}, "map='qr'"),
        ("dense(12, 8)", {"scale": math.nan}, "scale is nan. Rule: a number"),
    ],
)
def test_refuses(structure: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StructuredAdapter(nn.Linear(8, 12), structure, **options)


def test_additive_has_no_rotation() -> None:
    with pytest.raises(ValueError, match="an additive adapter has no rotation"):
        _ = adapter("additive").rotation


def test_state_and_copies() -> None:
    made, other = adapter("out"), adapter("out")
    other.load_state_dict(made.state_dict())
    x = torch.randn(2, 8)
    assert torch.equal(made(x), other(x))
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    assert sorted(made.state_dict()) == ["base.bias", "base.weight", "skew.0", "skew.1", "skew.2"]
    made.reset_parameters()
    assert torch.allclose(made(x), made.base(x), atol=1e-6)
    assert Chain.butterfly(12) == made.chain
