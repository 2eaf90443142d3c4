"""Optimizers that theory designed: one line around any optimizer of PyTorch's kind."""

from .blocks import Blocks as Blocks
from .blocks import classify_blocks as classify_blocks
from .registry import METHODS as METHODS
from .registry import Method as Method
from .registry import list_optimizers as list_optimizers
from .shell import Shell as Shell
from .shell import Wrapper as Wrapper
