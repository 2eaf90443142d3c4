"""Each built-in model can say how it was made, and says it in JSON."""

import json

import pytest
import torch
from torch import nn

from flatwing.data import Dataset, Rows, Splits, open_data
from flatwing.train import MODELS, ByteLM, DigitsMLP, DigitsViT, Model, architecture_of, build_model, sizes_for

SMALL = {
    "byte-lm": {"width": 16, "depth": 1, "heads": 2, "mlp": 2, "context": 12, "vocab": 20},
    "cnn": {"side": 8, "width": 4, "depth": 2, "hidden": 12, "classes": 5},
    "digits-mlp": {"width": 8, "depth": 3},
    "digits-vit": {"width": 16, "depth": 1, "heads": 2, "mlp": 2, "patch": 4},
    "linear": {"inputs": 64, "classes": 3, "bias": False},
    "llama": {
        "vocab": 20, "width": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "context": 12, "tied": True
    },
    "mlp": {"inputs": 64, "width": 8, "depth": 3, "classes": 4},
    "relu-mlp": {"inputs": 64, "width": 8, "depth": 2, "classes": 4},
    "vit": {"side": 8, "width": 16, "depth": 1, "heads": 2, "mlp": 2, "patch": 4, "classes": 3},
}  # fmt: skip
LM = ["byte-lm", "llama"]


def example_input(model: Model) -> torch.Tensor:
    return torch.randint(20, (3, 12)) if model.task == "lm" else torch.rand(3, 64)


def test_names_are_frozen() -> None:
    assert sorted(MODELS) == sorted(SMALL)
    assert [name for name in MODELS if MODELS[name].task == "lm"] == LM


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


def test_the_homogeneous_perceptron_has_no_biases_and_cuts_off_what_is_negative() -> None:
    model = build_model("relu-mlp", SMALL["relu-mlp"])
    assert list(model.state_dict()) == ["layers.0.weight", "layers.1.weight", "head.weight"]
    layers = [p.detach() for p in model.parameters()]
    x = torch.randn(3, 64)
    torch.testing.assert_close(model(x), (x @ layers[0].T).relu().matmul(layers[1].T).relu() @ layers[2].T)


@pytest.mark.parametrize("name", MODELS)
def test_default_is_the_configuration_without_arguments(name: str) -> None:
    assert build_model(name, {}).config() == MODELS[name]().config()


def test_byte_lm_is_large_enough_and_mostly_linear() -> None:
    model = ByteLM()
    total = sum(p.numel() for p in model.parameters())
    linear = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    assert total > 1_000_000
    assert linear > 0.9 * total


@pytest.mark.parametrize("name", LM)
def test_decoders_predict_from_the_past_alone(name: str) -> None:
    model, tokens = build_model(name, SMALL[name]), torch.randint(20, (1, 12))
    changed = tokens.clone()
    changed[0, -1] = (tokens[0, -1] + 1) % 20
    assert torch.equal(model(tokens)[:, :-1], model(changed)[:, :-1])


@pytest.mark.parametrize("name", LM)
def test_decoders_refuse_a_text_longer_than_their_context(name: str) -> None:
    with pytest.raises(ValueError, match=r"13 tokens. Rule: at most the context, 12"):
        build_model(name, SMALL[name])(torch.zeros(1, 13, dtype=torch.long))


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


def test_flags_are_true_or_false() -> None:
    assert build_model("linear", {"bias": False}).config()["bias"] is False
    with pytest.raises(ValueError, match=r"tied is 1. Rule: true or false"):
        build_model("llama", {"tied": 1})
    with pytest.raises(ValueError, match=r"depth is True. Rule: a whole number, at least 1"):
        build_model("llama", {"depth": True})


def test_general_models_are_the_ones_for_digits_at_other_sizes() -> None:
    for digits, general, more in (("digits-mlp", "mlp", {"inputs": 64}), ("digits-vit", "vit", {"side": 8})):
        small = SMALL[digits]
        torch.manual_seed(1)
        model = build_model(digits, small)
        torch.manual_seed(1)
        other = build_model(general, small | more | {"classes": 10})
        x = torch.rand(3, 64)
        assert torch.equal(model(x), other(x))


def test_sizes_follow_from_the_data() -> None:
    digits, python = open_data("digits"), open_data("python", length=64, vocab=128)
    assert sizes_for("digits-vit", digits) == {}
    assert sizes_for("mlp", digits) == sizes_for("linear", digits) == {"inputs": 64, "classes": 10}
    assert sizes_for("vit", digits) == sizes_for("cnn", digits) == {"side": 8, "classes": 10}
    assert sizes_for("byte-lm", python) == {"vocab": 128, "context": 64}
    for name in MODELS:
        data = python if name in LM else digits
        model = build_model(name, sizes_for(name, data))
        x, y = data.take(torch.arange(2))
        assert model(x).shape == (*y.shape, data.classes)


@pytest.mark.parametrize("shape", [(9,), (3, 3), (1, 3, 3), (3, 3, 1)])
def test_images_are_squares_however_they_lie(shape: tuple[int, ...]) -> None:
    data = rows_of(shape)
    assert sizes_for("cnn", data) == {"side": 3, "classes": 2}
    assert build_model("cnn", sizes_for("cnn", data) | {"depth": 1})(data.take(torch.arange(4))[0]).shape == (4, 2)


def rows_of(shape: tuple[int, ...]) -> Dataset:
    rows = Rows(torch.rand(4, *shape), torch.tensor([0, 1, 0, 1]))
    return Dataset("mine", "classification", Splits(rows, rows, rows), shape, 2)


def test_data_that_do_not_fit_are_refused() -> None:
    for shape in ((8,), (2, 8), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"model 'cnn' is for squares, one sample of 'mine' is \("):
            sizes_for("cnn", rows_of(shape))
    assert sizes_for("mlp", rows_of((2, 8))) == {"inputs": 16, "classes": 2}
    with pytest.raises(ValueError, match=r"model 'llama' is for 'lm', data 'mine' are 'classification'. Take .*'?cnn"):
        sizes_for("llama", rows_of((4,)))
    for name in ("linear", "mlp", "vit", "cnn", "digits-mlp"):
        with pytest.raises(ValueError, match=r"x has shape \(64, 63\): 63 numbers in a row. Rule: 64"):
            build_model(name, {})(torch.zeros(64, 63))  # 63 rows of 64 would be another batch


def test_cnn_logits_do_not_depend_on_the_batch() -> None:
    model, x = build_model("cnn", {}), torch.rand(6, 64)
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


def test_cnn_refuses_more_pooling_than_pixels() -> None:
    build_model("cnn", {"side": 8, "depth": 3})
    with pytest.raises(ValueError, match=r"depth is 4 for side 8. Rule: .*Nearest good value: 3"):
        build_model("cnn", {"side": 8, "depth": 4})


def test_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patch is 3.*Nearest good value: 4"):
        DigitsViT(patch=3)


def test_other_modules_have_no_architecture() -> None:
    assert architecture_of(nn.Linear(2, 2)) is None
