"""Weights-only compression: what is written, that it is what it says, and that nothing is lost on the way."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatwing.compress import weights as module
from flatwing.compress.checkpoint import Checkpoint
from flatwing.compress.load import load
from flatwing.compress.weights import compress_weights
from flatwing.report.folder import read_run

SIZES = {"layers.0.up": (64, 32), "layers.0.down": (32, 64), "layers.1.up": (64, 32), "layers.1.down": (32, 64)}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = {"embed.weight": torch.randn(100, 32), "norm.weight": torch.ones(32), "lm_head.weight": torch.randn(100, 32)}
    for name, (m, n) in SIZES.items():
        made[f"{name}.weight"] = torch.randn(m, n) / n**0.5
        made[f"{name}.bias"] = torch.randn(m)
    return {name: tensor.to(dtype) for name, tensor in made.items()} | {"steps": torch.tensor(3)}


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    save_file(tensors(dtype), folder / "net.safetensors")
    return folder / "net.safetensors"


def directory(folder: Path) -> Path:
    """A Hugging Face style directory in two shards, with what usually lies beside the weights."""
    folder.mkdir()
    whole = tensors()
    names = sorted(whole)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, own in shards.items():
        save_file({name: whole[name] for name in own}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in shards.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"architectures": ["XForCausalLM"],   "model_type": "x"}')
    for name in ("tokenizer.json", "generation_config.json", "LICENSE"):
        (folder / name).write_text(name)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "stolen.txt").symlink_to(Path(__file__))
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_layers_become_factors_and_the_rest_stays(tmp_path: Path) -> None:
    source, out = plain(tmp_path), tmp_path / "out"
    result = compress_weights(source, out, budget=0.5)
    before, after = load_file(source), load_file(out / "model.safetensors")
    description = json.loads((out / "flatwing.json").read_text())
    assert description["architecture"] == {"kind": "weights"}
    assert set(description["layers"]) == set(SIZES)
    replaced = {f"{name}.weight" for name in SIZES}
    for name in before.keys() - replaced:
        assert torch.equal(before[name], after[name]), name
    assert not replaced & after.keys()
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "flatwing.json",
        "model.safetensors",
        "result.json",
    ]
    assert result == json.loads((out / "result.json").read_text())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


def test_flatwing_load_gives_the_network_with_the_errors_it_promised(tmp_path: Path) -> None:
    source, out = plain(tmp_path), tmp_path / "out"
    compress_weights(source, out, budget=0.5)
    before = load_file(source)

    def network() -> torch.nn.Module:
        def block() -> torch.nn.Module:
            return torch.nn.ModuleDict({"up": torch.nn.Linear(32, 64), "down": torch.nn.Linear(64, 32)})

        net = torch.nn.Module()
        net.embed, net.norm = torch.nn.Embedding(100, 32), torch.nn.Module()
        net.norm.weight = torch.nn.Parameter(torch.empty(32))
        net.lm_head = torch.nn.Linear(32, 100, bias=False)
        net.layers = torch.nn.ModuleList([block(), block()])
        net.register_buffer("steps", torch.tensor(0))
        return net

    model = load(out, model=network())
    layers = json.loads((out / "flatwing.json").read_text())["layers"]
    for name, (_, n) in SIZES.items():
        W, layer = before[f"{name}.weight"], model.get_submodule(name)
        made = layer(torch.eye(n)).detach() - before[f"{name}.bias"]
        certificate = layers[name]["certificate"]
        assert float((made.mT - W).norm() / W.norm()) == pytest.approx(certificate["error"], abs=1e-5)
        assert 0 < certificate["lower_bound"] <= certificate["error"] < 1
        assert sum(p.numel() for p in layer.parameters()) - len(layer.bias) <= W.numel() / 2


def test_a_directory_keeps_its_shards_and_its_other_files(tmp_path: Path) -> None:
    source, out = directory(tmp_path / "m"), tmp_path / "out"
    result = compress_weights(source, out, budget=0.4)
    checkpoint = Checkpoint.open(out)
    assert [file.name for file in checkpoint.files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert checkpoint.metadata == {"format": "pt"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == checkpoint.total_bytes == result["metrics"]["compressed"]["bytes"]
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    architecture = json.loads((out / "flatwing.json").read_text())["architecture"]
    assert architecture == {"kind": "transformers", "class": "XForCausalLM"}
    assert {"tokenizer.json", "generation_config.json", "LICENSE"} <= {path.name for path in out.iterdir()}
    assert not (out / "pytorch_model.bin").exists()
    assert not (out / "stolen.txt").exists(), "a link that leaves the source is not followed"


def test_the_result_is_a_run_that_the_report_reads(tmp_path: Path) -> None:
    result = compress_weights(plain(tmp_path), tmp_path / "out", budget=0.5)
    run = read_run(tmp_path / "out")
    assert run.record.metrics["compressed"].bytes == (
        (tmp_path / "out" / "model.safetensors").stat().st_size
        - 8
        - int.from_bytes((tmp_path / "out" / "model.safetensors").read_bytes()[:8], "little")
    )
    assert {layer.name: layer.action for layer in run.record.layers} == {
        **dict.fromkeys(SIZES, "replaced"),
        "embed": "skipped",
        "lm_head": "skipped",
    }
    assert result["budget"]["dense"] == 4 * 2048
    assert result["budget"]["kept"] == sum(
        layer.parameters or 0 for layer in run.record.layers if layer.action == "replaced"
    )
    assert "without data" in " ".join(run.record.summary)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_stay_and_their_rounding_counts(tmp_path: Path, dtype: torch.dtype) -> None:
    result = compress_weights(plain(tmp_path, dtype), tmp_path / "out", budget=0.5, structures=["low_rank"])
    after = load_file(tmp_path / "out" / "model.safetensors")
    W = load_file(tmp_path / "net.safetensors")["layers.0.up.weight"].double()
    left, right = (after[f"layers.0.up.factors.{i}"] for i in (0, 1))
    assert left.dtype == right.dtype == dtype
    error = float((W - left[0].double() @ right[0].double()).norm() / W.norm())
    told = next(layer for layer in result["layers"] if layer["name"] == "layers.0.up")
    assert told["error"] == pytest.approx(error, rel=1e-9)


def test_the_structure_that_loses_least_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(1)
    parts = torch.randn(8, 8, 5), torch.randn(8, 8, 5), torch.randn(8, 5, 8)
    flat = torch.einsum("aik,abk,bkj->aibj", *parts).reshape(64, 64)  # its blocks share their bases
    thin = torch.randn(64, 3) @ torch.randn(3, 64)
    save_file({"flat.weight": flat, "thin.weight": thin}, tmp_path / "a.safetensors")
    layers = compress_weights(tmp_path / "a.safetensors", tmp_path / "out", budget=0.3)["layers"]
    found = {layer["name"]: layer["structure"].split("(")[0] for layer in layers}
    assert found == {"flat": "blast", "thin": "low_rank"}
    for layer in layers:
        assert layer["parameters"] <= 0.3 * 64 * 64


def test_stored_transposes_are_fitted_as_the_layer_sees_them(tmp_path: Path) -> None:
    W = torch.randn(32, 96)
    (tmp_path / "m").mkdir()
    save_file({"h.0.attn.c_attn.weight": W, "h.0.attn.c_attn.bias": torch.zeros(96)}, tmp_path / "m/model.safetensors")
    (tmp_path / "m/config.json").write_text('{"model_type": "gpt2"}')
    compress_weights(tmp_path / "m", tmp_path / "out", budget=0.6, structures=["low_rank"])
    entry = json.loads((tmp_path / "out/flatwing.json").read_text())["layers"]["h.0.attn.c_attn"]
    after = load_file(tmp_path / "out/model.safetensors")
    made = after["h.0.attn.c_attn.factors.0"][0] @ after["h.0.attn.c_attn.factors.1"][0]
    assert entry["transposed"] is True
    assert float((made.mT - W).norm() / W.norm()) == pytest.approx(entry["certificate"]["error"], abs=1e-5)


def test_nothing_changes_at_budget_one(tmp_path: Path) -> None:
    source = plain(tmp_path)
    result = compress_weights(source, tmp_path / "out", budget=1.0)
    before, after = load_file(source), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    kept = [layer for layer in result["layers"] if layer["action"] == "kept"]
    assert len(kept) == 4
    assert all("saves nothing" in layer["reason"] for layer in kept)


def test_what_is_kept_says_why(tmp_path: Path) -> None:
    huge = torch.full((32, 32), 3e4, dtype=torch.float16) * torch.eye(32)
    save_file({"zero.weight": torch.zeros(32, 32), "huge.weight": huge.half()}, tmp_path / "a.safetensors")
    layers = {x["name"]: x for x in compress_weights(tmp_path / "a.safetensors", tmp_path / "a", budget=0.5)["layers"]}
    assert (layers["zero"]["action"], layers["zero"]["reason"]) == ("kept", "it is zero")
    assert layers["huge"]["action"] == "replaced", "balanced factors stay far from the largest half"
    layers = compress_weights(tmp_path / "a.safetensors", tmp_path / "b", budget=0.01)["layers"]
    assert {layer["reason"] for layer in layers} == {"a share of 0.01 is too small for rank 1"}


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_impossible_budgets(tmp_path: Path, budget: float) -> None:
    with pytest.raises(ValueError, match=r"budget is .*Rule: a number, above 0 and at most 1"):
        compress_weights(plain(tmp_path), tmp_path / "out", budget=budget)
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    source, out = plain(tmp_path), tmp_path / "out"
    for given, match in (
        ({"structures": ["low_rnak"]}, "unknown structure 'low_rnak', did you mean 'low_rank'"),
        ({"structures": []}, "structures is empty"),
        ({"where": "*.nothing"}, r"where='\*\.nothing' matches none"),
    ):
        with pytest.raises(ValueError, match=match):
            compress_weights(source, out, budget=0.5, **given)
    for place in (tmp_path, source, source / "out"):
        with pytest.raises(ValueError, match=r"overlap\. Rule: separate places|does not exist"):
            compress_weights(source, place, budget=0.5, overwrite=True)
    compress_weights(source, out, budget=0.5)
    with pytest.raises(ValueError, match=r"is compressed already: it has a flatwing\.json"):
        compress_weights(out, tmp_path / "again", budget=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "out"]


def test_out_exists(tmp_path: Path) -> None:
    source, out = plain(tmp_path), tmp_path / "out"
    compress_weights(source, out, budget=0.5)
    before = digest(out)
    with pytest.raises(ValueError, match=r"out' exists\. Rule: nothing is overwritten"):
        compress_weights(source, out, budget=0.25)
    assert digest(out) == before
    compress_weights(source, out, budget=0.25, overwrite=True)
    assert digest(out) != before


def test_nan_is_named_and_out_stays(tmp_path: Path) -> None:
    source, out = plain(tmp_path), tmp_path / "out"
    compress_weights(source, out, budget=0.5)
    before = digest(out)
    sick = tensors()
    sick["layers.1.up.weight"][3, 4] = float("nan")
    save_file(sick, source)
    with pytest.raises(ValueError, match=r"'layers\.1\.up\.weight' in 'net\.safetensors' has 1 values that are NaN"):
        compress_weights(source, out, budget=0.25, overwrite=True)
    assert digest(out) == before


def test_full_disk_loses_nothing_and_the_same_call_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = plain(tmp_path), tmp_path / "out"
    compress_weights(source, tmp_path / "wanted", budget=0.5)
    calls: list[int] = []
    write = module.write_stream

    def full(*given: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(*given)

    monkeypatch.setattr(module, "write_stream", full)
    with pytest.raises(OSError, match="No space left"):
        compress_weights(source, out, budget=0.5)
    assert not out.exists()
    compress_weights(source, out, budget=0.5)
    assert len(calls) == 5, "two parts were finished, the other two were still to do"
    assert digest(out) == digest(tmp_path / "wanted")


def test_a_changed_source_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = plain(tmp_path), tmp_path / "out"
    monkeypatch.setattr(module, "assemble", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
    with pytest.raises(RuntimeError, match="stopped"):
        compress_weights(source, out, budget=0.5)
    monkeypatch.undo()
    save_file(tensors(), source)
    os.utime(source, ns=(1, 1))
    with pytest.raises(ValueError, match="unfinished work of other options: source was"):
        compress_weights(source, out, budget=0.5)


def test_threads_and_progress(tmp_path: Path) -> None:
    source, seen = plain(tmp_path), []
    compress_weights(source, tmp_path / "one", budget=0.5, progress=lambda *told: seen.append(told))
    assert seen == [("factorize", i, 4) for i in (1, 2, 3, 4)]
    torch.set_num_threads(3)
    try:
        compress_weights(source, tmp_path / "three", budget=0.5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert digest(tmp_path / "one") == digest(tmp_path / "three")


KILLS = int(os.environ.get("FLATWING_KILLS", "6"))  # more on demand


def child(source: Path, out: Path) -> int:
    """Start the run in a process of its own, which has all imports already; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            compress_weights(source, out, budget=0.5)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked, so that they start at once")
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    count, draw, finished, killed = 12, random.Random(0), [0], 0
    source, out = tmp_path / "a.safetensors", tmp_path / "out"
    save_file({f"layers.{i}.fc.weight": torch.randn(96, 96) for i in range(count)}, source)
    begin = time.perf_counter()
    compress_weights(source, tmp_path / "wanted", budget=0.5)
    each = (time.perf_counter() - begin) / count
    parts = tmp_path / "out.partial" / "parts"
    for number in range(KILLS):
        wanted = min(finished[-1] + draw.randrange(0, 3), count)
        pid, over = child(source, out), False
        while not over and len(list(parts.glob("[0-9]*"))) < wanted:  # let it finish a few parts
            time.sleep(0.001)
            over = os.waitpid(pid, os.WNOHANG)[0] != 0
        if not over:
            time.sleep(draw.uniform(0, 2 * each) if number else 0)
            os.kill(pid, signal.SIGKILL)
            killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        if out.exists():
            break
        finished.append(len(list(parts.glob("[0-9]*"))))
    if not out.exists() or (tmp_path / "out.partial").exists():
        assert os.waitpid(child(source, out), 0)[1] == 0
    assert finished == sorted(finished), "no finished part was lost"
    assert killed > 1
    assert finished[-1] > 0
    assert digest(out) == digest(tmp_path / "wanted")
    assert not (tmp_path / "out.partial").exists()


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1); from flatwing.compress.weights import compress_weights as c; "
        "peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]); "
        "c(sys.argv[1], sys.argv[3], budget=0.1, structures=['low_rank']); one = peak(); "
        "c(sys.argv[2], sys.argv[4], budget=0.1, structures=['low_rank']); print(peak() - one)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to read the peak")
    tensor = torch.randn(512, 512)
    for count in (2, 40):
        save_file({f"{i}.fc.weight": tensor + i for i in range(count)}, tmp_path / f"{count}.safetensors")
    paths = [str(tmp_path / name) for name in ("2.safetensors", "40.safetensors", "a", "b")]
    # glibc keeps what was freed, more or less by chance, unless tensors are mapped one by one
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True, env=environment
    )
    assert int(done.stdout) * 1024 < 15 * tensor.nbytes, "the larger model is 38 tensors larger"
