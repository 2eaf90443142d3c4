"""Handwritten digits, 8 x 8 pixels: small real images that come with scikit-learn."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int

from .splits import check_split, stratified


def digit_images(split: str = "train", seed: int = 0) -> tuple[Float[torch.Tensor, "n 64"], Int[torch.Tensor, " n"]]:
    """Images as rows of 64 pixels in [0, 1], float32, and their labels 0..9, of one split of the 1797 digits.

    70 % of each class are "train", 10 % "valid", 20 % "test", drawn by `seed`. `x.reshape(-1, 1, 8, 8)` are the images.
    Raises `ValueError` for an unknown split. Source: scikit-learn's load_digits (UCI, Alpaydin and Kaynak 1998).

    >>> x, y = digit_images("test")
    >>> x.shape, y.unique().tolist()
    (torch.Size([359, 64]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    check_split(split)
    from sklearn.datasets import load_digits  # here, because importing it is slow

    images, labels = load_digits(return_X_y=True)
    y = torch.tensor(labels, dtype=torch.int64)
    order = stratified(y, seed)[split]
    return torch.tensor(images, dtype=torch.float32)[order] / 16, y[order]
