"""Built-in data: matrices to try things on, digits, and a corpus of Python sources."""

from .corpus import chunks as chunks
from .corpus import python_sources as python_sources
from .corpus import windows as windows
from .digits import digit_images as digit_images
from .matrices import MATRICES as MATRICES
from .matrices import Example as Example
from .splits import Splits as Splits
