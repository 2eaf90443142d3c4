"""Built-in data: matrices to try things on, digits, and a corpus of Python sources."""

from .corpus import chunks as chunks
from .corpus import python_sources as python_sources
from .corpus import windows as windows
from .digits import digit_images as digit_images
from .matrices import MATRICES as MATRICES
from .matrices import Example as Example
from .order import visits as visits
from .samples import Batch as Batch
from .samples import Rows as Rows
from .samples import Samples as Samples
from .samples import Windows as Windows
from .source import DATA as DATA
from .source import Dataset as Dataset
from .source import open_data as open_data
from .splits import Splits as Splits
