"""Optimizers that theory designed: one line around any optimizer of PyTorch's kind."""

from .adam_mini import AdamMini as AdamMini
from .blocks import Blocks as Blocks
from .blocks import classify_blocks as classify_blocks
from .gradpower import GradPower as GradPower
from .groups import Groups as Groups
from .groups import group_by_name as group_by_name
from .groups import muon_groups as muon_groups
from .groups import weight_decay_groups as weight_decay_groups
from .ire import IRE as IRE
from .late import Late as Late
from .late import late as late
from .lite import LITE as LITE
from .perturb import perturbed as perturbed
from .perturb import sam_backward as sam_backward
from .registry import METHODS as METHODS
from .registry import Method as Method
from .registry import list_optimizers as list_optimizers
from .sam import ASAM as ASAM
from .sam import SAM as SAM
from .shell import Shell as Shell
from .shell import Wrapper as Wrapper
