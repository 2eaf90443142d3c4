"""flatwing: fast sparse structure in matrices and networks, with proof of how good it is."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .factorize import Certificate as Certificate
from .factorize import Choice as Choice
from .factorize import Factorization as Factorization
from .factorize import choose as choose
from .factorize import factorize as factorize
from .nn import StructuredLinear as StructuredLinear
from .nn import compress_ as compress_
from .nn import densify_ as densify_
from .structure import Chain as Chain
from .structure import Pattern as Pattern
from .structure import SparseProduct as SparseProduct

if TYPE_CHECKING:
    from .compress import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The room `compress` and its `load` on first use: their imports cost as much as all others together."""
    if name in ("compress", "load"):
        room = import_module(".compress", __name__)
        return room if name == "compress" else room.load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
