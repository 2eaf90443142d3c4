"""Factorization: what `factorize` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, final

from typing_extensions import TypeVar

from ..structure import Chain, MaskedProduct, SparseProduct
from .certificate import Certificate

Product = TypeVar("Product", SparseProduct, MaskedProduct, default=SparseProduct)


@final
@dataclass(frozen=True, slots=True)
class SplitReport:
    """One cut: where, into what, and the error it made; errors are relative to the Frobenius norm of the matrix."""

    position: int
    rank: int
    blocks: int
    block_shape: tuple[int, int]
    redundant: bool
    error: float
    """Error that the truncation at this cut made."""
    matrix_error: float | None
    """Smallest error of any product that restricts the matrix at this cut alone; None where no proof needed it."""


@final
@dataclass(frozen=True, slots=True)
class Factorization(Generic[Product]):
    """What `factorize` returns: the product, what is proved about it, and the story of its cuts."""

    product: Product
    certificate: Certificate
    splits: tuple[SplitReport, ...]
    order: tuple[int, ...]
    """The cuts that restrict something, in the order in which they were made."""
    permutation: str
    """Name of the order of rows and columns that was used."""
    notes: tuple[str, ...]
    """What the caller should know, such as a change of precision."""
    certificates: tuple[Certificate, ...]
    """One certificate per matrix of a batch (a tuple of one for a single matrix)."""

    def in_found_order(self) -> Factorization[Product]:
        """The same, with certificates that say that the order of rows and columns was chosen among others."""
        each = tuple(replace(one, order="found") for one in self.certificates)
        return replace(self, certificate=replace(self.certificate, order="found"), certificates=each)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: everything but the values of the factors."""
        return {
            "shape": list(self.product.shape),
            **_structure(self.product),
            "order": list(self.order),
            "perm": self.permutation,
            "certificate": self.certificate.to_dict(),
            "splits": [asdict(split) for split in self.splits],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        described = _structure(self.product)
        share = f"{described['density']:.1%} of dense"
        if isinstance(self.product, SparseProduct):
            return f"{self.product.chain}, {self.product.chain.nnz} parameters ({share}): {self.certificate}"
        sizes = " @ ".join("x".join(map(str, shape)) for shape in described["factors"])
        return f"{sizes} on fixed supports, {self.product.nnz} parameters ({share}): {self.certificate}"


def _structure(product: SparseProduct | MaskedProduct) -> dict[str, Any]:
    if isinstance(product, SparseProduct):
        chain = product.chain
        return {
            "chain": str(chain),
            "patterns": [list(pattern) for pattern in chain],
            "dense": chain == Chain.dense(*chain.shape),
            "parameters": product.nnz,
            "density": chain.density,
            "flops": chain.flops,
        }
    m, n = product.shape
    factors = [list(support.shape) for support in product.supports]
    sizes = {"parameters": product.nnz, "density": product.nnz / (m * n), "flops": 2 * product.nnz}
    return {"factors": factors, **sizes}
