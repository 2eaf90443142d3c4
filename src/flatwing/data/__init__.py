"""Built-in data: matrices to try things on."""

from .matrices import MATRICES as MATRICES
from .matrices import Example as Example
