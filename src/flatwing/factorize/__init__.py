"""A matrix in, sparse factors and a certificate out."""

from .api import factorize as factorize
from .certificate import Certificate as Certificate
from .choose import Choice as Choice
from .choose import choose as choose
from .factorization import Factorization as Factorization
from .factorization import SplitReport as SplitReport
from .order import ORDERS as ORDERS
from .solvers import SOLVERS as SOLVERS
from .solvers import BlockSolver as BlockSolver
from .solvers import Truncation as Truncation
