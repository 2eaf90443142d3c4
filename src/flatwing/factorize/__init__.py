"""A matrix in, sparse factors and a certificate out."""

from .api import factorize as factorize
from .blast import Blast as Blast
from .blast import fit_blast as fit_blast
from .certificate import Certificate as Certificate
from .choose import Choice as Choice
from .choose import choose as choose
from .factorization import Factorization as Factorization
from .factorization import SplitReport as SplitReport
from .fixed import factorize_fixed as factorize_fixed
from .metric import Metric as Metric
from .order import ORDERS as ORDERS
from .projections import PROJECTIONS as PROJECTIONS
from .projections import Projection as Projection
from .proximal import palm as palm
from .schemes import SCHEMES as SCHEMES
from .schemes import Scheme as Scheme
from .schemes import hierarchical as hierarchical
from .solvers import SOLVERS as SOLVERS
from .solvers import BlockSolver as BlockSolver
from .solvers import Truncation as Truncation
from .weighted import WeightedFit as WeightedFit
from .weighted import factorize_weighted as factorize_weighted
