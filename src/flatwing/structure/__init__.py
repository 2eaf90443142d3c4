"""Which entries of a factor may be non-zero, which factors may follow each other, and the products they make."""

from . import transforms as transforms
from .chain import Chain as Chain
from .masked import MaskedProduct as MaskedProduct
from .pattern import CONDITIONS as CONDITIONS
from .pattern import Pattern as Pattern
from .product import SparseProduct as SparseProduct
from .spec import FAMILIES as FAMILIES
from .support import Support as Support
from .tractable import Tractability as Tractability
from .tractable import tractability as tractability
from .wellposed import Verdict as Verdict
from .wellposed import wellposedness as wellposedness
