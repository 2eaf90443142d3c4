"""Processes forked from one that has imported torch: ranks of a process group, and scripts, without seconds of imports.

Each worker of the tests has one such server, which itself computes nothing: what is forked from it has one thread, the
environment of the test, and none of the checks of shapes that tests have.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch
import torch.distributed as dist

from flatwing.train.distributed import leave

# numba is not among them: it reads its settings from the environment when it is imported
IMPORTED_ONCE = [
    "distributed", "torch", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict",
    "torch._functorch.aot_autograd", "torch._dynamo", "pytest", "flatwing.compress", "flatwing.nn", "flatwing.optim",
    "flatwing.train",
]  # fmt: skip
PATIENCE = 200.0  # seconds until processes that hang are killed


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """What `function(rank, world, *arguments)` returns on each of `world` ranks, a function of a test module.

    Results must be what `torch.save` can write with tensors, numbers, strings and containers of them.
    An error on a rank fails the test with that rank's traceback. The ranks talk by gloo and meet in a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ) | {"GLOO_SOCKET_IFNAME": "lo"}
        codes = _together(_rank, [(rank, world, folder, environment, function, arguments) for rank in range(world)])
        if any(codes):  # who failed first is told first: others fail as they miss it
            told = sorted(Path(folder).glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)
            raise RuntimeError("\n".join([f"ranks ended with {codes}", *(path.read_text() for path in told)]))
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def run_python(
    code: str, *arguments: str, world: int | None = None, environment: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """What `python -c code arguments` would do with more variables in its environment.

    With `world`, that many do it at once, as torchrun starts them: with its variables, and a store that is held here.
    Their output is returned in one, and the exit code of one that failed.
    """
    told, store = [dict(os.environ) | dict(environment or {}) for _ in range(world or 1)], None
    if world is not None:
        store = dist.TCPStore(  # type: ignore[reportPrivateImportUsage]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        for rank, mine in enumerate(told):
            mine |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}", "MASTER_ADDR": "127.0.0.1"}
            mine |= {"MASTER_PORT": f"{store.port}", "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_RESTART_COUNT": "0"}
            mine |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    with tempfile.TemporaryDirectory() as folder:
        script, *outputs = (Path(folder) / name for name in ("script.py", "out", "err"))
        script.write_text(textwrap.dedent(code))
        codes = _together(_script, [(mine, str(script), arguments, outputs) for mine in told])
        return CompletedProcess([script], max(codes, key=abs), *(path.read_text() for path in outputs))


def _together(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[int]:
    """The exit codes of one process for each tuple of arguments; that of one that was killed is negative."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    processes = [context.Process(target=target, args=mine) for mine in arguments]
    latest = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, latest - time.monotonic()))
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    return [process.exitcode or 0 for process in processes]


def _rank(
    rank: int,
    world: int,
    folder: str,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    _settle(environment)
    torch.manual_seed(0)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
        torch.save(function(rank, world, *arguments), Path(folder) / f"{rank}.pt")
        dist.barrier()
    except BaseException:
        (Path(folder) / f"{rank}.txt").write_text(f"rank {rank}: {traceback.format_exc()}")
        leave(1)
    dist.destroy_process_group()
    leave()


def _script(environment: dict[str, str], script: str, arguments: tuple[str, ...], outputs: list[Path]) -> None:
    _settle(environment)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv[1:] = arguments
    code: object = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code if isinstance(code, int) else 1)


def _settle(environment: dict[str, str]) -> None:
    """The environment of the test, not that of the first one, in which the server was started."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
