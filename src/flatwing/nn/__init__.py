"""Layers a user puts in a network, and the verbs that put them there."""

from .base import LAYERS as LAYERS
from .base import StructuredLayer as StructuredLayer
from .base import layer_from_config as layer_from_config
from .blast import BlastLinear as BlastLinear
from .linear import StructuredLinear as StructuredLinear
from .sum import SumLinear as SumLinear
