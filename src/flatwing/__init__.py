"""flatwing: fast sparse structure in matrices and networks, with proof of how good it is."""

from .structure import Chain as Chain
from .structure import Pattern as Pattern
from .structure import SparseProduct as SparseProduct

__version__ = "0.1.0"
