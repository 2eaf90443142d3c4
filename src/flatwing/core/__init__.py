"""What every room needs and no room owns: argument checks, files, registries, divisors."""

from .check import as_matrix as as_matrix
from .check import as_permutation as as_permutation
from .check import from_numpy as from_numpy
from .compile_time import compiling as compiling
from .compile_time import source_digest as source_digest
from .files import replacing as replacing
from .files import require_writable as require_writable
from .json_text import parse_json as parse_json
from .limits import require_number as require_number
from .limits import require_whole as require_whole
from .numbers import divisors as divisors
from .numbers import nearest_divisor as nearest_divisor
from .registry import Registry as Registry
from .threads import threads_for as threads_for
from .threads import using_threads as using_threads
