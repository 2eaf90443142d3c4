"""Checkpoints on disk: what is read, what is refused, and how much memory it takes."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatwing.compress.checkpoint import Checkpoint
from flatwing.compress.header import read_header, write_header

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.linspace(-1, 1, 8).reshape(4, 2).bfloat16(),
    "c.bias": torch.tensor(3.0, dtype=torch.float16),
}


def write(folder: Path, shards: dict[str, dict[str, torch.Tensor]], *, config: Any = {"model_type": "x"}) -> Path:  # noqa: B006
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    if set(shards) != {"model.safetensors"}:
        names = {name: file for file, tensors in shards.items() for name in tensors}
        index(folder, names)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def sharded(folder: Path) -> Path:
    one, two = {k: TENSORS[k] for k in ("a.weight", "c.bias")}, {"b.weight": TENSORS["b.weight"]}
    return write(folder, {"model-00001-of-00002.safetensors": one, "model-00002-of-00002.safetensors": two})


@pytest.mark.parametrize("make", [sharded, lambda path: write(path, {"model.safetensors": TENSORS})])
def test_all_tensors_come_back_with_their_dtype(tmp_path: Path, make: Any) -> None:
    checkpoint = Checkpoint.open(make(tmp_path / "m"))
    assert sorted(checkpoint.names) == sorted(TENSORS)
    assert checkpoint.config == {"model_type": "x"}
    assert checkpoint.total_bytes == 24 + 16 + 2
    for name, tensor in TENSORS.items():
        info = checkpoint.info(name)
        assert (info.dtype, info.shape, info.nbytes) == (tensor.dtype, tuple(tensor.shape), tensor.nbytes)
        read = checkpoint.tensor(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_one_file_needs_no_config_and_keeps_its_metadata(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"by": "hand"})
    checkpoint = Checkpoint.open(tmp_path / "a.safetensors")
    assert checkpoint.config is None
    assert checkpoint.metadata == {"by": "hand"}
    assert checkpoint.files == (tmp_path / "a.safetensors",)


def test_a_tensor_is_its_own_memory(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    tensor = Checkpoint.open(tmp_path / "a.safetensors").tensor("a.weight")
    tensor.zero_()
    assert load_file(tmp_path / "a.safetensors")["a.weight"].sum() == 15


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tensor 'z'.*\.names"):
        Checkpoint.open(write(tmp_path, {"model.safetensors": TENSORS})).tensor("z")


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing config\.json.*Rule.*model\.safetensors"):
        Checkpoint.open(write(tmp_path, {"model.safetensors": TENSORS}, config=None))


@pytest.mark.parametrize(("kind", "opens"), [("module", True), ("weights", True), ("transformers", False)])
def test_flatwing_json_says_whether_a_config_is_needed(tmp_path: Path, kind: str, opens: bool) -> None:
    write(tmp_path, {"model.safetensors": TENSORS}, config=None)
    (tmp_path / "flatwing.json").write_text(json.dumps({"architecture": {"kind": kind}}))
    if opens:
        assert Checkpoint.open(tmp_path).flatwing == {"architecture": {"kind": kind}}
    else:
        with pytest.raises(ValueError, match=r"missing config\.json"):
            Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", '{"a": \ud800'.encode("utf-8", "surrogatepass").decode("latin1")])
def test_unreadable_config(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"model.safetensors": TENSORS})
    (tmp_path / "config.json").write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=r"config\.json.*Rule: a JSON object"):
        Checkpoint.open(tmp_path)


class Trap:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl"])
def test_pickles_are_refused_and_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(pickle.dumps(Trap()))
    for path in (folder, folder / name):
        with pytest.raises(ValueError, match=rf"'{name}' is a pickle.*Rule: safetensors only\. Convert"):
            Checkpoint.open(path)
    assert not (tmp_path / "sprung").exists()


def test_index_naming_a_pickle(tmp_path: Path) -> None:
    write(tmp_path, {"model.safetensors": TENSORS})
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    index(tmp_path, dict.fromkeys(TENSORS, "pytorch_model.bin"))
    with pytest.raises(ValueError, match="is a pickle"):
        Checkpoint.open(tmp_path)


def test_safetensors_beside_a_pickle_are_read(tmp_path: Path) -> None:
    write(tmp_path, {"model.safetensors": TENSORS})
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert len(Checkpoint.open(tmp_path).names) == 3


@pytest.mark.parametrize("name", ["../x.safetensors", "sub/../../x.safetensors", "ABSOLUTE", "C:\\x.safetensors", ""])
def test_index_leaving_the_directory(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "m")
    save_file({"a.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    index(folder, {"a.weight": str(tmp_path / "x.safetensors") if name == "ABSOLUTE" else name})
    with pytest.raises(ValueError, match=r"lies outside of .*Rule: all files"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "model-00002-of-00002.safetensors"])
def test_symlink_leaving_the_directory(tmp_path: Path, file: str) -> None:
    folder = sharded(tmp_path / "m")
    outside = tmp_path / "x.safetensors"
    save_file({"b.weight": torch.ones(1)}, outside)
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(outside)
    with pytest.raises(ValueError, match="lies outside of"):
        Checkpoint.open(folder)


def test_the_cache_of_hugging_face_is_made_of_links(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "models--x" / "snapshots" / "abc", {"model.safetensors": TENSORS})
    (tmp_path / "models--x" / "blobs").mkdir()
    (snapshot / "model.safetensors").rename(tmp_path / "models--x" / "blobs" / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert len(Checkpoint.open(snapshot).names) == 3


def test_shard_missing(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names 'model-00002-of-00002.safetensors', which is missing.*Download"):
        Checkpoint.open(folder)


def test_tensor_missing_from_its_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    save_file({"a.weight": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"'c.bias' is in 'model-00001-of-00002.safetensors', which does not hold it"):
        Checkpoint.open(folder)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    save_file({"b.weight": torch.ones(1), "a.weight": torch.ones(1)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"'a.weight' is in 'model-00001.*' and in 'model-00002.*one shard only"):
        Checkpoint.open(folder)


def test_tensor_that_the_index_does_not_know(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    save_file({"b.weight": torch.ones(1), "new": torch.ones(1)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"does not say that 'new' is in"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("weight_map", [{}, [], {"a": 1}, None, "x"])
def test_index_without_names(tmp_path: Path, weight_map: Any) -> None:
    folder = sharded(tmp_path)
    index(folder, weight_map)
    with pytest.raises(ValueError, match=r'has no "weight_map"'):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    file = write(tmp_path, {"model.safetensors": TENSORS}) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"model\.safetensors' is not a readable safetensors file: it (has|is truncated)"
    ):
        Checkpoint.open(tmp_path)


def header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\xff" * 64, "announce a header of 18446744073709551615 bytes"),
        (header(b"\xff\xfe{}"), "header is not JSON"),
        (header(b"[" * 100_000), "header is not JSON"),
        (header(b"[]"), "a list, not an object"),
        (header(b'{"a":1}'), "'a' is described by a int"),
        (header(b'{"a":{},"a":{}}'), "'a' stands in it twice"),
        (header(b'{"__metadata__":{"a":1}}'), "metadata is not an object of texts"),
        (header(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"1"), "dtype 'F4', which torch cannot read"),
        (header(b'{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', b"1"), "not lists of sizes"),
        (header(b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', b"1"), "not lists of sizes"),
        (header(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}', b"1"), "needs 2 bytes"),
        (header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"12"), "begin at byte"),
        (header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"12"), "1 bytes follow the last tensor"),
        (
            header(
                b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
                b"123",
            ),
            "begin at byte",
        ),
    ],
)
def test_garbage(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        Checkpoint.open(tmp_path / "a.safetensors")


def test_empty_directory_missing_path_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor .*Check the path"):
        Checkpoint.open(tmp_path)
    with pytest.raises(ValueError, match=r"there is no .*Rule: a model directory"):
        Checkpoint.open(tmp_path / "none")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"a\.txt' is not a checkpoint"):
        Checkpoint.open(tmp_path / "a.txt")
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"Name one file: .*other\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
)
def test_nan_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    good = torch.ones(3, 4, dtype=torch.float32)
    bad = good.clone()
    bad[1, 2] = float("nan")
    save_file({"fine": good.to(dtype), "sick": bad.to(dtype), "whole": torch.ones(2).int()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"'sick' in 'a.safetensors' has 1 values that are NaN or Inf"):
        Checkpoint.open(tmp_path / "a.safetensors").require_finite()


def test_infinity_behind_the_first_slab_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatwing.compress.checkpoint.SLAB", 64)
    values = torch.zeros(100)
    save_file({"long": values}, tmp_path / "a.safetensors")
    checkpoint, seen = Checkpoint.open(tmp_path / "a.safetensors"), []
    checkpoint.require_finite(lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
    assert torch.equal(torch.cat(list(checkpoint.slabs("long"))), values)
    values[99] = float("inf")
    save_file({"long": values}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="'long'"):
        Checkpoint.open(tmp_path / "a.safetensors").require_finite()


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    first = Checkpoint.open(tmp_path / "a.safetensors").fingerprint
    assert first == Checkpoint.open(tmp_path / "a.safetensors").fingerprint
    os.utime(tmp_path / "a.safetensors", ns=(1, 1))
    assert first != Checkpoint.open(tmp_path / "a.safetensors").fingerprint


def test_headers_agree_with_the_library(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"a": "é"})
    tensors, metadata = read_header(tmp_path / "a.safetensors")
    ours = write_header([(t.name, t.dtype, t.shape) for t in tensors.values()], metadata)
    assert (tmp_path / "a.safetensors").read_bytes().startswith(ours)
