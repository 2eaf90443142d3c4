"""Magnitudes stand where the entries of the factors stand; what cannot be read is left out, never guessed."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flatwing import Chain, Pattern
from flatwing.report.folder import read_run
from flatwing.report.magnitudes import CELLS, FAINTEST, LEVELS, cells, data_uri, magnitudes, opened
from flatwing.report.record import Layer
from flatwing.structure import SparseProduct
from report.sample import result, tensors, write_run


def image(uri: str) -> np.ndarray:
    """Pixels (rows, columns, 4) from 0 to 1."""
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png")


@pytest.mark.parametrize("pattern", [(1, 3, 5, 1), (4, 2, 3, 1), (1, 2, 3, 5), (2, 3, 2, 4), (3, 2, 2, 3)])
def test_entries_stand_where_the_product_has_them(pattern: tuple[int, int, int, int]) -> None:
    a, b, c, d = pattern
    blocks = torch.rand(a * d, b, c) + 0.1
    dense = SparseProduct(Chain([Pattern(*pattern)]), [blocks]).dense().numpy()
    shown = cells(blocks.numpy(), pattern)
    np.testing.assert_array_equal(np.maximum(shown, 0), dense)
    np.testing.assert_array_equal(shown < 0, dense == 0)


def test_large_factor_keeps_the_largest_entry_of_each_cell() -> None:
    blocks = np.zeros((1, 300, 200), np.float32)
    blocks[0, 299, 0], blocks[0, 0, 199], blocks[0, 1, 198] = 5, 2, 1
    shown = cells(blocks, (1, 300, 200, 1))
    assert shown.shape == (75, 50)
    assert max(shown.shape) <= CELLS
    assert (shown[74, 0], shown[0, 49], shown.min()) == (5, 2, 0)


def test_depth_is_the_square_root_and_outside_is_transparent() -> None:
    pixels = image(data_uri(np.array([[1.0, 0.25, 0.0], [-1.0, -1.0, -1.0]])))
    assert pixels.shape == (2, 3, 4)
    np.testing.assert_allclose(pixels[0, :, 3], [1, FAINTEST + (1 - FAINTEST) / 2, FAINTEST], atol=1 / 255)
    np.testing.assert_array_equal(pixels[1, :, 3], 0)
    assert len({tuple(pixel) for pixel in pixels[0, :, :3]}) == 1


def test_zeros_and_all_levels() -> None:
    np.testing.assert_allclose(image(data_uri(np.zeros((2, 2))))[..., 3], FAINTEST, atol=1 / 255)
    opacity = image(data_uri(np.linspace(0, 1, 1000)[None] ** 2))[0, :, 3]
    assert len(set(opacity)) == LEVELS - 1
    assert (np.diff(opacity) >= 0).all()


def test_layers_of_both_kinds_are_found(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    assert run.model is not None
    with opened(run.model) as file:
        for layer, factors in ((run.record.layers[0], 3), (run.record.layers[1], 2)):
            images = magnitudes(file, layer)
            assert images is not None
            assert len(images) == factors
            assert all(image(uri)[..., 3].max() == 1 for uri in images)
        assert magnitudes(file, run.record.layers[-1]) is None, "a dense layer"
        assert magnitudes(file, replace(run.record.layers[0], name="unknown")) is None


def layer_and_tensors(tmp_path: Path) -> tuple[Layer, dict[str, torch.Tensor]]:
    record = result(1)
    return read_run(write_run(tmp_path, record, bare=True)).record.layers[0], tensors(record["layers"][:1])


@pytest.mark.parametrize("change", ["shape", "integer", "missing", "quantized"])
def test_tensors_of_another_kind_are_left_out(tmp_path: Path, change: str) -> None:
    layer, stored = layer_and_tensors(tmp_path)
    key = f"{layer.name}.coupling"
    if change == "shape":
        stored[key] = stored[key][:, :4].contiguous()
    elif change == "integer":
        stored[key] = stored[key].to(torch.int8)
    else:
        value = stored.pop(key)
        if change == "quantized":
            stored |= {f"{key}.int8": value.to(torch.int8), f"{key}.scale": torch.ones(1)}  # not one scale per row
    save_file(stored, tmp_path / "m.safetensors")
    with opened(tmp_path / "m.safetensors") as file:
        assert magnitudes(file, layer) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_broken_values(tmp_path: Path, dtype: torch.dtype) -> None:
    layer, stored = layer_and_tensors(tmp_path)
    stored = {key: value.to(dtype) for key, value in stored.items()}
    stored[f"{layer.name}.left"][0, 0, 0] = float("nan")
    save_file(stored, tmp_path / "m.safetensors")
    with opened(tmp_path / "m.safetensors") as file:
        images = magnitudes(file, layer)
    assert images is not None
    assert len(images) == 3


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_file_that_is_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = write_run(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: "), opened(path):
        pass


def test_int8_is_read_with_its_scales(tmp_path: Path) -> None:
    layer, stored = layer_and_tensors(tmp_path)
    rounded: dict[str, torch.Tensor] = {}
    for key, tensor in stored.items():
        scale = tensor.abs().amax(-1) / 127
        values = (tensor / scale[..., None]).round()
        stored[key] = values * scale[..., None]
        rounded |= {f"{key}.int8": values.to(torch.int8), f"{key}.scale": scale}
    found = []
    for name, content in (("plain", stored), ("int8", rounded)):
        save_file(content, tmp_path / f"{name}.safetensors")
        with opened(tmp_path / f"{name}.safetensors") as file:
            found.append(magnitudes(file, layer))
    assert found[0] == found[1] is not None


def test_shared_bases_of_rank_one(tmp_path: Path) -> None:
    layer, _ = layer_and_tensors(tmp_path)
    (A, B), (m, n) = layer.blocks or (0, 0), layer.shape
    parts = {"left": (A, m // A, 1), "coupling": (A, B, 1), "right": (B, 1, n // B)}
    save_file({f"{layer.name}.{part}": torch.rand(size) for part, size in parts.items()}, tmp_path / "m.safetensors")
    with opened(tmp_path / "m.safetensors") as file:
        images = magnitudes(file, replace(layer, rank=1))
    assert images is not None
    assert (image(images[1])[..., 3] > 0).all(), "every pair of blocks is coupled"
