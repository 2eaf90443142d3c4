"""Bad models, data, budgets and outputs are refused in one line before any work, and nothing is lost."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flatwing.compress import compress
from flatwing.compress.work import Work
from flatwing.train import ByteLM, DigitsMLP

QUICK: dict[str, Any] = {"structures": ["low_rank"], "landmarks": False, "curve": False, "timing": 0.01}
DATA = torch.rand(60, 64, generator=torch.Generator().manual_seed(0))


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refused(folder: Path, message: str, *args: Any, **options: Any) -> None:
    """The call is refused in one line, and the folder is exactly as before."""
    before = tree(folder)
    with pytest.raises(ValueError, match=message) as caught:
        compress(*args, **(QUICK | {"budget": 0.5} | options))
    assert "\n" not in str(caught.value)
    assert tree(folder) == before


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory as transformers writes it, in two shards; its architecture is never built here."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate(("a.weight", "b.weight"), start=1):
        save_file({name: torch.ones(4, 4)}, folder / f"model-0000{number}-of-00002.safetensors")
    index(folder, {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"})
    (folder / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    return folder


def index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncated(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])


def outside(folder: Path) -> None:
    save_file({"a.weight": torch.ones(4, 4)}, folder.parent / "stolen.safetensors")
    index(folder, {"a.weight": "../stolen.safetensors"})


def pickled(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def unknown(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["BertForSequenceClasification"]}')


def nameless(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def not_a_number(folder: Path) -> None:
    save_file({"b.weight": torch.full((4, 4), torch.nan)}, folder / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_config, "missing config.json"),
        (truncated, "model-00002-of-00002.safetensors"),
        (outside, "lies outside of"),
        (pickled, "is a pickle, which can run code"),
        (unknown, "did you mean 'BertForSequenceClassification'"),
        (nameless, "names no architecture"),
        (not_a_number, "'b.weight' in .* NaN or Inf"),
    ],
)
def test_bad_directory(source: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(source)
    refused(source.parent, message, source, source.parent / "out")


def test_missing_model(tmp_path: Path) -> None:
    refused(tmp_path, "there is no .*nowhere", tmp_path / "nowhere", tmp_path / "out")
    refused(tmp_path, "give a model or an example", None, tmp_path / "out")
    refused(tmp_path, "give a model or an example", DigitsMLP(width=8), tmp_path / "out", example="digits")
    refused(tmp_path, "unknown example 'digit', did you mean 'digits'", None, tmp_path / "out", example="digit")


def test_weight_of_a_module_that_is_not_finite(tmp_path: Path) -> None:
    model = DigitsMLP(width=8)
    with torch.no_grad():
        model.layers[1].weight[0, 0] = torch.inf  # type: ignore[index,union-attr]
    refused(tmp_path, r"'layers.1.weight' holds NaN or infinity", model, tmp_path / "out", calibration=DATA)


def test_bad_calibration(tmp_path: Path) -> None:
    model, text = (
        nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)),
        ByteLM(width=16, depth=1, heads=2, context=16, vocab=100),
    )
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "rows.jsonl").write_text('{"content": "' + "some text " * 30 + '"}\n')
    (tmp_path / "umlaut.txt").write_text("zzzz" * 100)
    np.savez(tmp_path / "flat.npz", x=np.ones(64, np.float32))
    np.savez(tmp_path / "narrow.npz", x=np.ones((9, 3), np.float32))
    np.savez(tmp_path / "nan.npz", x=np.full((9, 64), np.nan, np.float32))
    np.savez(tmp_path / "names.npz", left=np.ones((9, 64), np.float32), right=np.ones((9, 64), np.float32))
    np.savez(tmp_path / "ids.npz", input_ids=np.full((9, 16), 100))
    out = tmp_path / "out"
    for name, message in (
        ("empty.txt", "'empty.txt' is empty"),
        ("rows.jsonl", "has no text 'text'; its texts are: content. Write --field content"),
        ("umlaut.txt", "has tokens 122 to 122, the network knows 0 to 99"),
        ("ids.npz", "has tokens 100 to 100, the network knows 0 to 99"),
        ("nowhere.txt", "there are no calibration data"),
    ):
        refused(tmp_path, message, text, out, calibration=tmp_path / name)
    for name, message in (
        ("flat.npz", r"has shape \(64,\). Rule: \(rows, ...\)"),
        ("narrow.npz", "cannot take the calibration data of narrow.npz"),
        ("nan.npz", "holds NaN or infinity"),
        ("names.npz", "It has left, right. Name one with --field"),
    ):
        refused(tmp_path, message, model, out, calibration=tmp_path / name)
    refused(tmp_path, r"has shape \(2, 64\)", model, out, calibration=DATA[:2])
    refused(tmp_path, "0 batches. Rule: at least 3", model, out, calibration=[])
    refused(tmp_path, "there are no default data for Sequential", nn.Sequential(nn.Linear(4, 4)), out)


@pytest.mark.parametrize("budget", [0.0, 1.5, -0.5, float("nan"), float("inf")])
def test_impossible_share(tmp_path: Path, budget: float) -> None:
    refused(tmp_path, "budget is .* a share of the dense cost", DigitsMLP(width=8), tmp_path / "out", budget=budget)


def test_share_below_rank_one(tmp_path: Path) -> None:
    refused(tmp_path, "budget", DigitsMLP(width=8), tmp_path / "out", budget=0.001, calibration=DATA)
    done = compress(DigitsMLP(width=8), tmp_path / "out", budget=0.9, calibration=DATA, **QUICK)
    assert done.run == tmp_path / "out"  # the refused run is not in the way


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loss": 0.1}, "both of budget and max_loss"),
        ({"unit": "params"}, "unit='params'. Rule: one of parameters"),
        ({"structures": ["low_rnk"]}, "unknown structure 'low_rnk', did you mean 'low_rank'"),
        ({"optimizer": "AdanW"}, "did you mean 'AdamW'"),
        ({"heal": -1}, "heal is -1. Rule: a whole number"),
        ({"quantize": "int3"}, "quantize='int3'"),
        ({"quantize": "int8", "densify": True}, "exclude each other"),
        ({"where": "*.mpl.*"}, "matches none of the .* linear layers"),
        ({"skip": "layer.0"}, "skip='layer.0' matches none .* nearest names: layers.0"),
        ({"skip": "*"}, "there is no layer to compress"),
        ({"task": "language"}, "task='language'. Rule: one of"),
        ({"samples": 0}, "samples is 0. Rule: a whole number"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    refused(tmp_path, message, DigitsMLP(width=8), tmp_path / "out", **options)


def test_output_in_the_way(tmp_path: Path) -> None:
    model, out = DigitsMLP(width=8), tmp_path / "out"
    refused(tmp_path, "the folder .* does not exist", model, tmp_path / "a" / "out")
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    refused(tmp_path, "exists. Rule: nothing is overwritten", model, out)
    refused(tmp_path, "is not a directory that flatwing wrote", model, out, overwrite=True)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        refused(tmp_path, "is in the way", model, tmp_path / "other", overwrite=overwrite)
    (tmp_path / "file").write_text("precious")
    refused(tmp_path, "is not a directory that flatwing wrote", model, tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("writer", ["work.save_file", "save.write_stream", "record.write_lines"])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    """Wherever the disk fills up, OUT is absent, and the run goes on when there is room."""
    model, out = DigitsMLP(width=8), tmp_path / "out"

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"flatwing.compress.{writer}", fail)
        with pytest.raises(OSError, match="No space left"):
            compress(model, out, budget=0.5, calibration=DATA, **QUICK)
    assert not out.exists()
    compress(model, out, budget=0.5, calibration=DATA, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_file(out / "model.safetensors")


def test_disk_full_while_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = DigitsMLP(width=8), tmp_path / "out"
    compress(model, out, budget=1.0, calibration=DATA, **QUICK)
    before = tree(out)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flatwing.compress.record.write_report", fail)
    with pytest.raises(OSError, match="No space left"):
        compress(model, out, budget=0.5, calibration=DATA, overwrite=True, **QUICK)
    assert tree(out) == before


def test_output_over_what_is_read(tmp_path: Path) -> None:
    """MODEL or the data in OUT would be removed with it, even if OUT looks like one of ours."""
    home, text = tmp_path / "home", "some text " * 100
    model, data = home / "model", home / "data.txt"
    model.mkdir(parents=True)
    save_file({"a.weight": torch.ones(4, 4)}, model / "model.safetensors")
    (model / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    for file, content in ((home / "flatwing.json", "{}"), (model / "flatwing.json", "{}"), (data, text)):
        file.write_text(content)
    (tmp_path / "link").symlink_to(model)
    for given, out in (
        (model, home), (model, model), (model, model / "out"), (tmp_path / "link", home), (str(model), home),
        (tmp_path / "out.partial" / "replaced", tmp_path / "out"),
    ):  # fmt: skip
        refused(tmp_path, "and the model .* overlap", given, out, overwrite=True)
    for given, out in ((data, home), (home, home / "out")):
        refused(tmp_path, "and the calibration data .* overlap", DigitsMLP(width=8), out, calibration=given)


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_is_a_link(tmp_path: Path, overwrite: bool) -> None:
    model, message = DigitsMLP(width=8), "not a directory that flatwing wrote" if overwrite else "exists"
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "flatwing.json").write_text("{}")
    for name, target in (("link", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        refused(tmp_path, message, model, tmp_path / name, overwrite=overwrite, calibration=DATA)
        assert (tmp_path / name).is_symlink()
    (tmp_path / "out.partial").symlink_to(tmp_path / "real")
    refused(tmp_path, "is in the way", model, tmp_path / "out", overwrite=overwrite, calibration=DATA)


@pytest.mark.parametrize(
    "files",
    [
        {".env": "secret", "sub/.netrc": "secret"},
        {".notes-abcdefgh.txt": "mine"},
        {"options.json": '{"options": {"a": 1}}', "thesis.txt": "precious"},
        {"options.json": '{"a": 1}'},
        {"options.json": "[1]"},
        {"options.json": '{"format": "flatwing.work", "options": 3}'},
        {"options.json": "\udcff"},
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_another_kind_beside_the_output(tmp_path: Path, files: dict[str, str], overwrite: bool) -> None:
    for name, content in files.items():
        file = tmp_path / "out.partial" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode(errors="surrogateescape"))
    refused(tmp_path, "is in the way", DigitsMLP(width=8), tmp_path / "out", overwrite=overwrite, calibration=DATA)


def test_own_files_in_a_work_folder_stay(tmp_path: Path) -> None:
    """Of the work folder only what a run makes is removed."""
    folder = tmp_path / "out.partial"
    work = Work(tmp_path / "out", {"seed": 0}, overwrite=False)
    (folder / "sub").mkdir()
    for name in (".env", "notes.txt", "sub/.netrc"):
        (folder / name).write_text("mine")
    (folder / "layers" / ".0123-ab_01xyz.safetensors").write_text("half a layer")
    work.write("explored.json", {})
    Work(tmp_path / "out", {"seed": 0}, overwrite=False)
    assert sorted(tree(folder)) == [
        ".env", "explored.json", "layers", "notes.txt", "options.json", "sub", "sub/.netrc"
    ]  # fmt: skip
    work.discard()
    assert sorted(tree(folder)) == [".env", "notes.txt", "sub", "sub/.netrc"]
