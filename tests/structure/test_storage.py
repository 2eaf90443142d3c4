import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flatwing import Chain, SparseProduct
from flatwing.structure import storage
from strategies import draw_product

CHAIN = Chain.monarch(6, 8, blocks=2)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


def same(first: SparseProduct, second: SparseProduct) -> bool:
    perms = ((first.perm_in, second.perm_in), (first.perm_out, second.perm_out))
    return (
        first.chain == second.chain
        and first.dtype == second.dtype
        and all(torch.equal(v, w) for v, w in zip(first.factors, second.factors, strict=True))
        and all(p is q or (p is not None and q is not None and torch.equal(p, q)) for p, q in perms)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("perms", [False, True])
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_round_trip(tmp_path: Path, dtype: torch.dtype, perms: bool, batch: tuple[int, ...]) -> None:
    working = dtype if dtype.itemsize > 2 else torch.float32
    product = draw_product(CHAIN, dtype=working, perms=perms, batch=batch).to(dtype)
    product.save(tmp_path / "p.safetensors")
    assert same(SparseProduct.load(str(tmp_path / "p.safetensors")), product)
    assert os.listdir(tmp_path) == ["p.safetensors"]


@pytest.mark.parametrize("view", ["T", "H", "conj", "expanded", "with gradients"])
def test_views_are_written_as_they_read(tmp_path: Path, view: str) -> None:
    product = draw_product(CHAIN, dtype=torch.complex128, perms=True)
    if view == "expanded":  # one storage for many blocks, and for both factors
        block = torch.randn(2, 2).expand(4, 2, 2)
        product = SparseProduct(Chain.butterfly(8), [block] * 3)
    elif view == "with gradients":
        product = SparseProduct(CHAIN, [w.requires_grad_() for w in product.factors])
    else:
        product = product.conj() if view == "conj" else getattr(product, view)
    product.save(tmp_path / "p.safetensors")
    assert same(SparseProduct.load(tmp_path / "p.safetensors"), product)


def test_file_is_plain_for_other_readers(tmp_path: Path) -> None:
    draw_product(CHAIN, dtype=torch.complex64, perms=True).save(tmp_path / "p.safetensors")
    with safe_open(tmp_path / "p.safetensors", framework="np") as file:
        assert sorted(file.keys()) == ["factor.0", "factor.1", "perm_in", "perm_out"]
        assert file.get_tensor("factor.0").shape == (2, 3, 2, 2)
        assert file.metadata()["format"] == "flatwing.product"
        assert Chain.from_json(file.metadata()["chain"]) == CHAIN


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(
            ValueError, match=r"there is no file '.*'\. Rule: a safetensors file written by product\.save"
        ):
            SparseProduct.load(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "p.safetensors"
    draw_product(CHAIN).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(
        ValueError, match=r"is not a readable safetensors file \(.*\); it may be truncated.*Write it again"
    ):
        SparseProduct.load(path)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04 a zip file, say", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"],
    ids=["zip", "header too long", "header of another kind"],
)
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        SparseProduct.load(tmp_path / "p")


FACTORS = {f"factor.{i}": w for i, w in enumerate(draw_product(CHAIN).factors)}
METADATA = {"format": "flatwing.product", "version": "1", "chain": CHAIN.to_json(), "complex": "no"}
HUGE = json.dumps({"format": "flatwing.chain", "version": 1, "patterns": [[10**15, 10**15, 10**15, 1]]})


def load_with(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> SparseProduct:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return SparseProduct.load(path)


def test_the_file_below_is_good_without_changes(tmp_path: Path) -> None:
    assert same(load_with(tmp_path / "p", FACTORS, METADATA), draw_product(CHAIN))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": "other"},
            r"is a safetensors file but not a product \(format 'other'\)\. Rule: format 'flatwing\.prod",
        ),
        ({"version": "2"}, r"has version '2' of the format, this flatwing reads '1'\. Update flatwing"),
        ({"chain": ""}, r"holds no product: this is not the JSON of a chain"),
        ({"chain": "[" * 50_000}, r"holds no product: this is not the JSON of a chain"),
        ({"chain": CHAIN.T.to_json()}, r"holds no product: factor 0 of pattern .* has shape"),
        (
            {"chain": Chain.butterfly(8).to_json()},
            r"holds no product: it has no tensor 'factor\.2', which its chain .* needs",
        ),
        ({"chain": HUGE}, r"holds no product: factor 0 of pattern .* has shape"),
        ({"complex": "yes"}, r"holds no product: .*size 2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_metadata_that_do_not_fit(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_with(tmp_path / "p", FACTORS, METADATA | changes)


def test_foreign_file_without_metadata(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is a safetensors file but not a product \(format None\)"):
        SparseProduct.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor.1": torch.ones(2, 4, 3)}, r"holds no product: factor 1 of pattern .* has shape \(2, 4, 3\)"),
        ({"factor.0": torch.ones(3)}, r"holds no product: factor 0 of pattern .* has shape \(3,\)"),
        ({"factor.1": FACTORS["factor.1"].float()}, r"holds no product: factor 1 is torch\.float32"),
        ({name: w.long() for name, w in FACTORS.items()}, r"holds no product: factors have dtype torch\.int64"),
        ({"perm_in": torch.zeros(8, dtype=torch.int64)}, r"holds no product: perm_in must hold each of 0\.\.7"),
        ({"perm_out": torch.arange(5)}, r"holds no product: perm_out must be a permutation of 0\.\.5"),
        (
            {"factor.1": None},
            r"holds no product: it has no tensor 'factor\.1', which its chain .* needs\. Write it again",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tensors_that_do_not_fit(tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {name: w for name, w in (FACTORS | changes).items() if w is not None}
    with pytest.raises(ValueError, match=message):
        load_with(tmp_path / "p", tensors, METADATA)


def test_failure_in_the_middle_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.safetensors"
    old = draw_product(CHAIN)
    old.save(path)

    def half_written(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(storage, "save_file", half_written)
    with pytest.raises(OSError, match="no space left on device"):
        draw_product(CHAIN, seed=1).save(path)
    assert same(SparseProduct.load(path), old)
    assert os.listdir(tmp_path) == ["p.safetensors"]


def test_output_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*: the folder '.*missing' does not exist"):
        draw_product(CHAIN).save(tmp_path / "missing" / "p.safetensors")
    with pytest.raises(ValueError, match=r"cannot write .*: it is a folder"):
        draw_product(CHAIN).save(tmp_path)
