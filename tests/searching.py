"""What general-purpose optimizers reach, as landmarks and as weights that were trained."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from flatwing.data import digit_images


def least(parts: Sequence[torch.Tensor], errors: Callable[[], torch.Tensor]) -> float:
    """The smallest of the `errors` (starts,) that L-BFGS reaches in all `parts`, with one start for each entry."""
    optimizer = torch.optim.LBFGS(parts, max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = errors().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(errors().detach().min())


def trained_on_digits(model: nn.Module, steps: int, lr: float = 3e-3, batch: int = 64) -> nn.Module:
    """The model after some steps of AdamW on random batches, drawn by the global generator; in evaluation mode."""
    x, y = digit_images("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
