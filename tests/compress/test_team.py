"""Work shared out over processes that torchrun started: the same bytes for any number, errors told to all."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distributed import run_python
from flatwing.compress.team import Team

RUN = r"""
import sys
from flatwing.compress.weights import compress_weights
told = []
for out in sys.argv[2:]:
    compress_weights(sys.argv[1], out, budget=0.5, progress=lambda *t: told.append(t))
sys.stdout.write(f"finished {len(told)}\n")  # in one piece: the ranks share one pipe
"""


def torchrun(ranks: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Torchrun itself; `run_python` starts ranks as it does, in less time."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("source") / "a.safetensors"
    save_file({f"layers.{i}.fc.weight": torch.randn(64, 32 + 16 * (i % 3)) for i in range(9)}, path)
    return path


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from flatwing.compress.weights import compress_weights

    out = tmp_path_factory.mktemp("wanted") / "out"
    compress_weights(source, out, budget=0.5)
    return digest(out)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_same_bytes_for_any_number_of_ranks(tmp_path: Path, source: Path, wanted: dict[str, str], ranks: int) -> None:
    arguments = (str(source), str(tmp_path / "out"), str(tmp_path / "second"))
    if ranks == 2:
        script = tmp_path / "run.py"
        script.write_text(RUN)
        done = torchrun(ranks, script, *arguments)
    else:
        done = run_python(RUN, *arguments, world=ranks)
    assert done.returncode == 0, done.stderr
    shares = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("finished")]
    assert len(shares) == ranks, done.stdout + done.stderr
    assert sum(shares) == 18, "each of nine layers was fitted once for each of two outputs"
    assert digest(tmp_path / "out") == digest(tmp_path / "second") == wanted


def test_an_error_stops_all_and_is_told(tmp_path: Path, source: Path) -> None:
    sick = {f"layers.{i}.fc.weight": torch.randn(32, 32) for i in range(4)}
    sick["layers.3.fc.weight"][0, 0] = float("nan")
    save_file(sick, tmp_path / "sick.safetensors")
    done = run_python(RUN, str(tmp_path / "sick.safetensors"), str(tmp_path / "out"), world=2)
    assert done.returncode != 0
    assert "'layers.3.fc.weight' in 'sick.safetensors' has 1 values that are NaN or Inf" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_torchrun_a_store_is_held_by_the_first(tmp_path: Path, source: Path, wanted: dict[str, str]) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    port = str(20000 + os.getpid() % 20000)
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(source), str(tmp_path / "out")]
    members = [subprocess.Popen(command, env={**shared, "RANK": str(rank)}) for rank in (1, 0)]
    assert [member.wait(timeout=120) for member in members] == [0, 0]
    assert digest(tmp_path / "out") == wanted


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "0")])
def test_a_broken_environment_is_told(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ValueError, match=r"RANK=.* and WORLD_SIZE=.*Rule: 0 <= RANK < WORLD_SIZE"):
        Team.from_environment()


def test_alone_an_error_is_raised_as_it_is() -> None:
    team = Team.of(0, 1)
    with pytest.raises(ZeroDivisionError, match="division"):
        team.together("work", lambda: print(1 / 0))
    assert [team.tally(), team.tally()] == [1, 2]
    assert team.agree("todo", True)
