"""Several ranks train as one process does, whatever shares the work, and go on where another number stopped."""

from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from torch import nn

from distributed import run_ranks
from flatwing.optim import IRE
from flatwing.train import DigitsMLP, fit
from flatwing.train.callbacks import Callback, Training
from flatwing.train.distributed import first_alone, whole, whole_weights
from flatwing.train.evaluate import measure
from flatwing.train.optimizers import make_optimizer
from flatwing.train.phases import MaskRefresh, SamPhase

X = torch.randn(60, 64, generator=torch.Generator().manual_seed(1))
Y = (X @ torch.randn(64, 10, generator=torch.Generator().manual_seed(2))).argmax(1)
STEPS = 6
BATCHES = [(X[:7], Y[:7]), (X[7:8], Y[7:8])]  # of the last batch most ranks have no row


def draw(step: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(60, (11 if step % 2 else 16,), generator=generator)  # 11: the ranks get different numbers


def mlp() -> DigitsMLP:
    torch.manual_seed(3)
    return DigitsMLP(width=12, depth=2)  # 12 rows: shards of 4 ranks are equal, those of the head (10) are not


class Stop(Callback):
    """Ends the run after a step, on rank 0 alone."""

    def __init__(self, after: int, rank: int) -> None:
        self.after, self.rank = after, rank

    def on_metric(self, training: Training, metric: dict[str, Any]) -> None:
        training.stop = self.rank == 0 and metric["step"] == self.after


def train(parallel: str, checkpoint: str | None = None, stop: int | None = None, rank: int = 0, **more: Any) -> Any:
    model = mlp()
    settings = {"steps": STEPS, "lr": 0.01, "micro_batch": 3, "clip": 0.5, "weight_decay": 0.1} | more
    metrics = fit(
        model,
        draw,
        fetch=lambda rows: (X[rows], Y[rows]),
        evaluate=lambda m: nn.functional.cross_entropy(m(X), Y).item(),
        every=3,
        parallel=parallel,
        checkpoint=checkpoint,
        **{"callbacks": [] if stop is None else [Stop(stop, rank)]} | settings,
    )
    weights = {name: tensor.detach() for name, tensor in whole_weights(model).items()}
    return weights, metrics


class Masks(Callback):
    """The masks of IRE at the end, whole."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_end(self, training: Training) -> None:
        assert isinstance(training.optimizer, IRE)
        self.found = [whole(mask) for mask in training.optimizer.masks().values()]


def train_ire(parallel: str, mask: str) -> Any:
    def ire(model: nn.Module) -> torch.optim.Optimizer:
        settings = {"kappa": 2.0, "interval": 2, "start": 1, "mask": mask}
        return make_optimizer(model, "AdamW", 0.01, 0.1, methods={"ire": settings})

    masks = Masks()
    # rank r draws the labels of its own rows, so sampled masks differ between numbers of ranks
    return *train(parallel, optimizer=ire, callbacks=[MaskRefresh(), SamPhase(0.1, share=0.5), masks]), masks.found


def several(rank: int, world: int, folder: str) -> dict[str, Any]:
    """All that is asked of a number of ranks, for starting them takes seconds."""
    found: dict[str, Any] = {}
    for parallel in ("ddp", "fsdp"):
        for optimizer in ("AdamW", "Muon"):
            found[f"{parallel} {optimizer}"] = train(parallel, optimizer=optimizer, keep="best")
        path = f"{folder}/{parallel}-{world}.safetensors"
        found[f"{parallel} stopped"] = train(parallel, path, stop=4, rank=rank)
        found[f"{parallel} bf16"] = train(parallel, precision="bf16")
        for mask in ("adam", "sampled"):
            found[f"{parallel} {mask}"] = train_ire(parallel, mask)
    found["resumed"] = train("fsdp", f"{folder}/one.safetensors")
    found["measured"] = [measure(mlp(), BATCHES)] * 2
    # its second moments have one number per row
    found["mini resumed"] = train("fsdp", f"{folder}/mini.safetensors", optimizer="AdamMini")
    train("fsdp", f"{folder}/mini-{world}.safetensors", stop=4, rank=rank, optimizer="AdamMini")
    return found


def begin_slowly(rank: int, world: int, folder: str) -> list[Any]:
    """What a rank sees after rank 0 did something that takes a while, and what it hears when that fails."""
    path, seen = Path(folder) / "made", []

    def work() -> None:
        sleep(0.5)
        path.write_text(f"by {rank}")

    first_alone(work)
    seen.append(path.read_text())

    def refuse() -> None:
        raise TypeError("it does not fit")

    try:
        first_alone(refuse)
    except (TypeError, ValueError) as error:
        seen += [type(error).__name__, str(error)]
    return seen


def test_rank_0_goes_first_and_all_hear_what_it_refuses(tmp_path: Path) -> None:
    first, second = run_ranks(begin_slowly, 2, str(tmp_path))
    assert first == ["by 0", "TypeError", "it does not fit"]
    assert second == ["by 0", "ValueError", "it does not fit"]


def test_ranks_train_as_one_process_and_share_checkpoints(tmp_path: Path) -> None:
    world = 4
    train("none", str(tmp_path / "one.safetensors"), stop=4)
    train("none", str(tmp_path / "mini.safetensors"), stop=4, optimizer="AdamMini")
    first, *others = run_ranks(several, world, str(tmp_path))
    for other in others:
        assert all(other[key][1] == first[key][1] for key in first)  # all ranks see the same metrics

    for optimizer in ("AdamW", "Muon"):
        expected = train("none", optimizer=optimizer, keep="best")
        for parallel in ("ddp", "fsdp"):
            # Muon's matrix sign is computed in bfloat16, which turns last bits of a gradient into its own last bits
            assert_close(first[f"{parallel} {optimizer}"], expected, 1e-3 if optimizer == "Muon" else 1e-5)
    expected = train("none")
    for parallel in ("ddp", "fsdp"):
        assert [m["step"] for m in first[f"{parallel} stopped"][1]] == [0, 1, 2, 3, 4]
        assert_close(train("none", str(tmp_path / f"{parallel}-{world}.safetensors")), expected, 1e-5)
        assert_close(first[f"{parallel} bf16"], train("none", precision="bf16"), 2e-2)
    assert_close(first["resumed"], expected, 1e-5)

    alone = measure(mlp(), BATCHES)
    assert first["measured"][0]["samples"] == alone["samples"] == 8
    for name in ("loss", "accuracy"):
        assert first["measured"][0][name] == pytest.approx(alone[name])

    expected = train("none", optimizer="AdamMini")
    assert_close(first["mini resumed"], expected, 1e-5)
    assert_close(train("none", str(tmp_path / f"mini-{world}.safetensors"), optimizer="AdamMini"), expected, 1e-5)

    expected = train_ire("none", "adam")
    assert 0 < sum(int(mask.sum()) for mask in expected[2]) < sum(mask.numel() for mask in expected[2])
    for parallel in ("ddp", "fsdp"):
        assert_close(first[f"{parallel} adam"], expected, 1e-5)
        for mine, mask in zip(first[f"{parallel} adam"][2], expected[2], strict=True):
            assert torch.equal(mine, mask)
    # drawn labels depend on the rank that draws them, not on what it shards
    assert_close(first["fsdp sampled"], first["ddp sampled"], 1e-5)
    for mine, mask in zip(first["fsdp sampled"][2], first["ddp sampled"][2], strict=True):
        assert torch.equal(mine, mask)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=tolerance)
    assert [m.keys() for m in found[1]] == [m.keys() for m in expected[1]]
    for mine, wanted in zip(found[1], expected[1], strict=True):
        assert mine == pytest.approx(wanted, rel=max(1e-4, tolerance), abs=max(1e-5, tolerance))
