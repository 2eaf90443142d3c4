"""SAM in the last part of training only: how flat, how good and how dear, on scikit-learn's digits.

    python benchmarks/late_sam.py                  # both settings, 10 seeds: some minutes on one thread
    python benchmarks/late_sam.py --setting small  # one of them; the results of the other are kept

Two settings, each with ReLU, SGD with momentum 0.9 and weight decay 5e-4 at a constant learning rate, and SAM with
rho 0.2 from the step that `late` names. "small" was chosen after "large" had been seen, on two of its ten seeds, as one
where full SAM is settled at the end of training. Seeds set the split, the weights and the order of the images, and
are the same for all shares, so differences to SGD are paired. Sharpness is the largest eigenvalue of the Hessian of the
loss on the training images, by Lanczos with 20 products. At a constant learning rate it jumps from one epoch to the
next, so a run's is the geometric mean over its last 10 epochs; the mean over seeds is geometric, too.
Writes benchmarks/results/late_sam.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from flatwing.core import replacing
from flatwing.core.machine import processor
from flatwing.optim import SAM, late

RESULT = Path(__file__).parent / "results" / "late_sam.json"
SHARES = (0.0, 0.05, 0.125, 0.25, 0.3, 0.5, 1.0)
RHO, BATCH, LAST = 0.2, 32, 10


@dataclass(frozen=True)
class Setting:
    """A network by its widths, the number of training images, the learning rate and the number of epochs."""

    widths: tuple[int, ...]
    train: int
    lr: float
    epochs: int


SETTINGS = {"large": Setting((64, 128, 128, 10), 600, 0.05, 200), "small": Setting((64, 32, 10), 200, 0.1, 150)}


@dataclass(frozen=True)
class Run:
    """What one training ended with: accuracy in per cent of test images, loss in nats, gradients taken.

    `sharpness` is the eigenvalue over the last epochs, `final` that after the last step.
    """

    accuracy: float
    loss: float
    sharpness: float
    final: float
    gradients: int


def train_digits(share: float, seed: int, setting: Setting) -> Run:
    """Train with SAM in the last `share` of the summed learning rate; 0 is SGD, 1 is SAM throughout."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    (x, test_x), (y, test_y) = (
        x[order].split([setting.train, len(x) - setting.train]),
        y[order].split([setting.train, len(y) - setting.train]),
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(setting.widths)]
        model = nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())))[:-1]
    base = torch.optim.SGD(model.parameters(), lr=setting.lr, momentum=0.9, weight_decay=5e-4)
    steps = setting.epochs * math.ceil(setting.train / BATCH)
    optimizer = late(SAM(base, rho=RHO), [setting.lr] * steps, share=share)
    gradients, eigenvalues = 0, []
    for epoch in range(setting.epochs):
        for rows in torch.randperm(setting.train, generator=generator).split(BATCH):

            def closure(rows: torch.Tensor = rows) -> torch.Tensor:
                nonlocal gradients
                gradients += 1
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
        if epoch >= setting.epochs - LAST:
            eigenvalues.append(sharpness(model, x, y))
    with torch.no_grad():
        accuracy = 100 * float((model(test_x).argmax(1) == test_y).double().mean())
        loss = float(F.cross_entropy(model(x), y))
    return Run(accuracy, loss, statistics.geometric_mean(eigenvalues), eigenvalues[-1], gradients)


def sharpness(model: nn.Module, x: torch.Tensor, y: torch.Tensor, products: int = 20) -> float:
    """The largest eigenvalue of the Hessian of the mean loss, by Lanczos with full reorthogonalisation."""
    params = list(model.parameters())
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True)
    flat = torch.cat([g.flatten() for g in grads])
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(flat), generator=generator)
    basis, diagonal, off = [v / v.norm()], [], []
    for _ in range(products):
        hv = torch.autograd.grad(flat, params, basis[-1], retain_graph=True)
        w = torch.cat([each.flatten() for each in hv])
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # once is not enough in float32
            q = torch.stack(basis)
            w = w - q.T @ (q @ w)
        off.append(float(w.norm()))
        if off[-1] < 1e-6 * max(abs(d) for d in diagonal):
            break
        basis.append(w / off[-1])
    middle = torch.tensor(diagonal, dtype=torch.float64)
    side = torch.tensor(off[: len(diagonal) - 1], dtype=torch.float64)
    return float(torch.linalg.eigvalsh(torch.diag(middle) + torch.diag(side, 1) + torch.diag(side, -1))[-1])


def mean(values: list[float]) -> dict[str, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": statistics.mean(values), "error": error}


def summary(runs: dict[float, list[Run]]) -> list[dict[str, Any]]:
    """One row per share: means over seeds, standard errors, and the paired difference in accuracy to SGD."""
    rows: list[dict[str, Any]] = []
    for share, many in runs.items():
        logs = mean([math.log(run.sharpness) for run in many])
        paired = [run.accuracy - plain.accuracy for run, plain in zip(many, runs[0.0], strict=True)]
        against = [math.log(run.sharpness / full.sharpness) for run, full in zip(many, runs[1.0], strict=True)]
        ratio = mean(against)
        rows.append(
            {
                "share": share,
                "gradients": many[0].gradients,
                "gradients_of_full_sam": many[0].gradients / runs[1.0][0].gradients,
                "accuracy": mean([run.accuracy for run in many]),
                "accuracy_over_sgd": mean(paired),
                "train_loss": mean([run.loss for run in many]),
                "sharpness": {"geometric_mean": math.exp(logs["mean"]), "error_of_log": logs["error"]},
                "sharpness_of_full_sam": {"ratio": math.exp(ratio["mean"]), "error_of_log": ratio["error"]},
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print one line per share."""
    print("share  gradients  accuracy  over SGD       train loss  sharpness  of full SAM's")
    for row in rows:
        over, ratio, loss = row["accuracy_over_sgd"], row["sharpness_of_full_sam"], row["train_loss"]
        print(
            f"{row['share']:5.3f}  {row['gradients']:9d}  {row['accuracy']['mean']:8.2f}  "
            f"{over['mean']:+.2f} ± {over['error']:.2f}   {loss['mean']:10.4f}  "
            f"{row['sharpness']['geometric_mean']:9.3f}  x {ratio['ratio']:.2f} (log ± {ratio['error_of_log']:.2f})"
        )


def main() -> None:
    """Run all shares and seeds, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=list(SETTINGS), action="append")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.setting or SETTINGS:
        begin = time.perf_counter()
        runs = {s: [train_digits(s, seed, SETTINGS[name]) for seed in range(arguments.seeds)] for s in SHARES}
        rows = summary(runs)
        print(name, SETTINGS[name])
        show(rows)
        content[name] = {
            "setting": vars(SETTINGS[name]),
            "seeds": arguments.seeds,
            "torch": torch.__version__,
            "machine": processor(),
            "seconds": round(time.perf_counter() - begin, 1),
            "rows": rows,
            "runs": {str(share): [vars(run) for run in many] for share, many in runs.items()},
        }
        with replacing(arguments.out) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
