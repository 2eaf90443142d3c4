"""Layers a user puts in a network, and the verbs that put them there."""

from .adapter import StructuredAdapter as StructuredAdapter
from .base import LAYERS as LAYERS
from .base import StructuredLayer as StructuredLayer
from .base import layer_from_config as layer_from_config
from .blast import BlastLinear as BlastLinear
from .linear import StructuredLinear as StructuredLinear
from .names import LinearInfo as LinearInfo
from .names import linear_layers as linear_layers
from .names import matching as matching
from .names import replace_module as replace_module
from .sum import SumLinear as SumLinear
from .swap import compress_ as compress_
from .swap import densify_ as densify_
from .swap import pack_ as pack_
from .swap import unpack_ as unpack_
from .swap_report import SwapReport as SwapReport
from .swap_report import SwapRow as SwapRow
from .wellposed import LayerPair as LayerPair
from .wellposed import layer_pairs as layer_pairs
