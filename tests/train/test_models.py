"""Each built-in model can say how it was made, and says it in JSON."""

import json

import pytest
import torch
from torch import nn

from flatwing.train import MODELS, ByteLM, DigitsMLP, DigitsViT, Model, architecture_of, build_model

SMALL = {
    "digits-vit": {"width": 16, "depth": 1, "heads": 2, "mlp": 2, "patch": 4},
    "digits-mlp": {"width": 8, "depth": 3},
    "byte-lm": {"width": 16, "depth": 1, "heads": 2, "mlp": 2, "context": 12, "vocab": 20},
}


def example_input(model: Model) -> torch.Tensor:
    return torch.randint(20, (3, 12)) if isinstance(model, ByteLM) else torch.rand(3, 64)


def test_names_are_frozen() -> None:
    assert list(MODELS) == ["digits-vit", "digits-mlp", "byte-lm"]


@pytest.mark.parametrize("name", MODELS)
def test_config_gives_the_model_back(name: str) -> None:
    model = build_model(name, SMALL[name])
    again = build_model(name, json.loads(json.dumps(model.config())))
    assert model.config() == SMALL[name]
    assert architecture_of(again) == name
    again.load_state_dict(model.state_dict())
    x = example_input(model)
    assert torch.equal(model(x), again(x))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_takes_part(name: str) -> None:
    model = build_model(name, SMALL[name])
    model(example_input(model)).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", MODELS)
def test_default_is_the_configuration_without_arguments(name: str) -> None:
    assert build_model(name, {}).config() == MODELS[name]().config()


def test_byte_lm_is_large_enough_and_mostly_linear() -> None:
    model = ByteLM()
    total = sum(p.numel() for p in model.parameters())
    linear = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    assert total > 1_000_000
    assert linear > 0.9 * total


def test_byte_lm_predicts_from_the_past_alone() -> None:
    model, tokens = ByteLM(**SMALL["byte-lm"]), torch.randint(20, (1, 12))
    changed = tokens.clone()
    changed[0, -1] = (tokens[0, -1] + 1) % 20
    assert torch.equal(model(tokens)[:, :-1], model(changed)[:, :-1])


def test_byte_lm_refuses_a_text_longer_than_its_context() -> None:
    with pytest.raises(ValueError, match=r"13 tokens. Rule: at most the context, 12"):
        ByteLM(**SMALL["byte-lm"])(torch.zeros(1, 13, dtype=torch.long))


def test_vit_knows_where_a_patch_is() -> None:
    model, x = DigitsViT(width=16, depth=1, heads=2), torch.zeros(2, 8, 8)
    x[0, :2, :2] = 1
    x[1, 4:6, 2:4] = 1  # the same patch in another place
    first, second = model(x.flatten(1))
    assert not torch.allclose(first, second)


def test_vit_patches_are_squares_of_the_image() -> None:
    model = DigitsViT(width=16, depth=1, heads=2, patch=4)
    nn.init.zeros_(model.positions)  # then patches are a set, and moving one whole patch changes nothing
    x = torch.zeros(2, 8, 8)
    x[0, :4, :4] = x[1, 4:, :4] = torch.rand(4, 4)
    first, second = model(x.flatten(1))
    torch.testing.assert_close(first, second)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'digit-vit', did you mean 'digits-vit'"):
        build_model("digit-vit", {})
    with pytest.raises(ValueError, match="unknown argument of DigitsMLP 'widht', did you mean 'width'"):
        DigitsMLP.from_config({"widht": 3})


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None])
def test_sizes_that_are_not_counts_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"width is .*Rule: a whole number, at least 1"):
        DigitsMLP.from_config({"width": value})


def test_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="patch is 3"):
        DigitsViT(patch=3)


def test_other_modules_have_no_architecture() -> None:
    assert architecture_of(nn.Linear(2, 2)) is None
