"""Directories of Hugging Face, random weights: what comes out is what was returned, with and without flatwing."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import flatwing
from distributed import run_python
from flatwing.compress import Compression, compress
from flatwing.nn import StructuredLayer

transformers = pytest.importorskip("transformers")

QUICK: dict[str, Any] = {"samples": 12, "length": 12, "landmarks": False, "curve": False, "timing": 0.01}
FEW = ("low_rank", "monarch_2x2")
TOKENS = torch.arange(40).reshape(2, 20)


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    """Without the library's progress bars and remarks, which are not ours."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)


def llama(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Grouped queries, a head tied to the embedding, several shards, a file of a tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size="20KB")
    (folder / "special_tokens_map.json").write_text('{"pad_token":   "<pad>"}')
    return folder


def bert(folder: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """Layers of the Conv1D kind, which keep their matrices transposed."""
    config = transformers.GPT2Config(
        vocab_size=256, n_embd=32, n_layer=1, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


MAKERS = {"llama": llama, "bert": bert, "gpt2": gpt2}


def logits(model: nn.Module | None) -> torch.Tensor:
    assert model is not None
    assert not model.training
    with torch.no_grad():
        return model(TOKENS).logits.float()


def same_state(one: nn.Module | None, other: nn.Module) -> None:
    assert one is not None
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert {name: t.dtype for name, t in first.items()} == {name: t.dtype for name, t in second.items()}


def state_by_card(out: Path, into: Path) -> dict[str, torch.Tensor]:
    """What the code in the card makes, in a process in which flatwing cannot be imported."""
    block = re.findall(r"^```python\n(.*?)^```$", (out / "README.md").read_text(), re.M | re.S)[-1]
    code = "import sys, warnings\nwarnings.simplefilter('error')\n"
    code += "sys.modules |= {name: None for name in sys.modules if name.split('.')[0] == 'flatwing'}\n" + block
    code += "\nfrom safetensors.torch import save_file\nsave_file(plain_state(sys.argv[1]), sys.argv[2])\n"
    done = run_python(code, str(out), str(into))
    assert done.returncode == 0, done.stderr
    return load_file(into)


def by_card(out: Path, into: Path) -> nn.Module:
    """A model of transformers with the state that the card's code makes; only tied tensors may be missing."""
    config = transformers.AutoConfig.from_pretrained(out)
    model = getattr(transformers, config.architectures[0])(config)
    missing, unexpected = model.load_state_dict(state_by_card(out, into), strict=False)
    assert (set(missing) <= {"lm_head.weight"}, unexpected) == (True, [])
    return model.eval()


@pytest.mark.parametrize("name", MAKERS)
def test_end_to_end(tmp_path: Path, name: str) -> None:
    source, out = MAKERS[name](tmp_path / "source"), tmp_path / "out"
    done = compress(
        source, out, budget=0.5, heal=2, heal_lr=1e-3, structures=["low_rank", "monarch_2x2", "blast_4"], **QUICK
    )
    loaded = flatwing.load(out)
    same_state(done.model, loaded)
    torch.testing.assert_close(logits(loaded), logits(done.model), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(by_card(out, tmp_path / "plain.safetensors")), logits(loaded), rtol=0, atol=1e-5)
    assert any(isinstance(module, StructuredLayer) for module in loaded.modules())
    assert (logits(loaded) - logits(type(loaded).from_pretrained(source).eval())).abs().max() > 1e-4
    metrics = done.metrics
    assert metrics["healed"]["linear_parameters"] <= 0.5 * metrics["before"]["linear_parameters"]
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    if name == "llama":
        assert len(list(source.glob("*.safetensors"))) > 1
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight  # type: ignore[union-attr]
        for file in ("special_tokens_map.json", "generation_config.json"):
            assert (out / file).read_bytes() == (source / file).read_bytes()


def test_densified_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    source = gpt2(tmp_path / "source")
    settings = QUICK | {"budget": 0.5, "structures": FEW}
    structured = compress(source, tmp_path / "structured", **settings)
    dense = compress(source, tmp_path / "dense", densify=True, **settings)
    before = load_file(tmp_path / "structured" / "model.safetensors")
    assert any("factors" in key or "coupling" in key for key in before)
    kind = type(structured.model)
    ordinary, report = kind.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert (set(report["missing_keys"]), set(report["unexpected_keys"])) == (set(), set())
    for model in (dense.model, ordinary.eval(), flatwing.load(tmp_path / "dense")):
        torch.testing.assert_close(logits(model), logits(structured.model), rtol=0, atol=1e-5)
    assert "ordinary checkpoint" in (tmp_path / "dense" / "README.md").read_text()


def test_half_precision_stays(tmp_path: Path) -> None:
    source, out = llama(tmp_path / "source", torch.bfloat16), tmp_path / "out"
    done = compress(source, out, budget=0.5, heal=2, heal_lr=1e-3, structures=FEW, **QUICK)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    same_state(done.model, flatwing.load(out))
    again = compress(out, tmp_path / "dense", budget=1.0, densify=True, structures=FEW, **QUICK)
    assert {tensor.dtype for tensor in load_file(tmp_path / "dense" / "model.safetensors").values()} == {torch.bfloat16}
    assert again.model is not None


def test_int8(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = compress(gpt2(tmp_path / "source"), out, budget=0.5, quantize="int8", structures=FEW, **QUICK)
    state = load_file(out / "model.safetensors")
    assert any(tensor.dtype == torch.int8 for tensor in state.values())
    same_state(done.model, flatwing.load(out))
    torch.testing.assert_close(logits(by_card(out, tmp_path / "p.safetensors")), logits(done.model), rtol=0, atol=1e-5)
    assert done.metrics["quantized"]["bytes"] == sum(tensor.nbytes for tensor in state.values())


def test_int8_of_half_precision_is_what_was_returned(tmp_path: Path) -> None:
    done = compress(
        llama(tmp_path / "source", torch.bfloat16), tmp_path / "out", budget=0.5, quantize="int8", structures=FEW,
        **QUICK,
    )  # fmt: skip
    same_state(done.model, flatwing.load(tmp_path / "out"))


def test_everything_kept_is_everything_equal(tmp_path: Path) -> None:
    source = llama(tmp_path / "source")
    done: Compression = compress(source, tmp_path / "out", budget=1.0, heal=2, heal_lr=1e-3, structures=FEW, **QUICK)
    wanted = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    torch.testing.assert_close(logits(flatwing.load(tmp_path / "out")), logits(wanted), rtol=0, atol=1e-6)
    assert done.metrics["healed"] is None
    assert {row["action"] for row in done.layers} == {"kept", "skipped"}
    assert "nothing is lost" in done.summary[0]


def test_network_of_transformers_from_python(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertForSequenceClassification(config)  # never saved: its config names no architecture
    tokens = torch.randint(64, (12, 8))
    done = compress(model, tmp_path / "out", budget=0.5, calibration=tokens, structures=FEW, **QUICK)
    same_state(done.model, flatwing.load(tmp_path / "out"))
