"""flatwing: fast sparse structure in matrices and networks, with proof of how good it is."""

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

__version__ = "0.1.0"
