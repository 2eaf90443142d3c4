"""flatwing: fast sparse structure in matrices and networks, with proof of how good it is."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.machine import __version__ as __version__
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

ROOMS = ("compress", "data", "optim", "train")  # imported on first use: each takes time that others need not spend


def __getattr__(name: str) -> Any:
    """The rooms that are imported on first use, and `load` of `compress`."""
    if name in ROOMS:
        return import_module(f".{name}", __name__)
    if name == "load":
        return import_module(".compress", __name__).load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
