"""A product in a safetensors file: the values as tensors, the chain and a format version in the metadata."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core import replacing
from .chain import Chain
from .product import SparseProduct

FORMAT, VERSION = "flatwing.product", "1"


def save_product(product: SparseProduct, path: str | os.PathLike[str]) -> None:
    """`SparseProduct.save`. Complex values are stored as pairs of reals, which every safetensors reader knows."""
    tensors = {}
    for i, factor in enumerate(product.factors):
        factor = factor.detach().resolve_conj()
        tensors[f"factor.{i}"] = (torch.view_as_real(factor) if factor.is_complex() else factor).contiguous()
    for name, perm in (("perm_in", product.perm_in), ("perm_out", product.perm_out)):
        if perm is not None:
            tensors[name] = perm.contiguous()
    # views of one storage (a product and its transpose, say) are written as separate tensors
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "chain": product.chain.to_json(),
        "complex": "yes" if product.factors[0].is_complex() else "no",
    }
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"could not write {str(path)!r}: {error}") from error


def load_product(path: str | os.PathLike[str]) -> SparseProduct:
    """`SparseProduct.load`. Only tensors are read, nothing is executed."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}. Rule: a safetensors file written by product.save(path).")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"{str(path)!r} is a safetensors file but not a product (format {metadata.get('format')!r}). "
                    f"Rule: format {FORMAT!r}, as product.save(path) writes."
                )
            if metadata.get("version") != VERSION:
                raise ValueError(
                    f"{str(path)!r} has version {metadata.get('version')!r} of the format, this flatwing reads "
                    f"{VERSION!r}. Update flatwing."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is not a readable safetensors file ({error}); it may be truncated. "
            "Rule: a file written by product.save(path). Write it again."
        ) from error
    try:
        chain = Chain.from_json(metadata.get("chain", ""))
        missing = [f"factor.{i}" for i in range(len(chain)) if f"factor.{i}" not in tensors]
        if missing:
            raise ValueError(f"it has no tensor {missing[0]!r}, which its chain {chain} needs.")
        factors = [tensors[f"factor.{i}"] for i in range(len(chain))]
        if metadata.get("complex") == "yes":
            factors = [torch.view_as_complex(factor) for factor in factors]
        return SparseProduct(chain, factors, tensors.get("perm_in"), tensors.get("perm_out"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} holds no product: {error} Write it again.") from error
