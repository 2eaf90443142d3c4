"""The backends; importing this module registers them in the order in which they are listed."""

from . import reference as reference  # isort: skip
from . import bmm as bmm  # isort: skip
from . import dense as dense  # isort: skip
from . import numba_cpu as numba_cpu  # isort: skip
from . import panels as panels  # isort: skip
from . import triton_gpu as triton_gpu  # isort: skip
