"""Optimizers that theory designed: one line around any optimizer of PyTorch's kind."""

from typing import TYPE_CHECKING, Any

from .adam_mini import AdamMini as AdamMini
from .batch_size import BatchSizeSchedule as BatchSizeSchedule
from .block_rows import BlockRows as BlockRows
from .block_schedule import blockwise_schedule as blockwise_schedule
from .blocks import Blocks as Blocks
from .blocks import classify_blocks as classify_blocks
from .blockwise import blockwise_lr as blockwise_lr
from .degree import Homogeneity as Homogeneity
from .degree import degree_of as degree_of
from .degree import homogeneity as homogeneity
from .gradpower import GradPower as GradPower
from .groups import Groups as Groups
from .groups import group_by_name as group_by_name
from .groups import muon_groups as muon_groups
from .groups import weight_decay_groups as weight_decay_groups
from .homogeneous import PRGD as PRGD
from .homogeneous import log_margin_loss as log_margin_loss
from .ire import IRE as IRE
from .late import Late as Late
from .late import late as late
from .lite import LITE as LITE
from .lite_adam import LITEAdam as LITEAdam
from .margin import MaxMargin as MaxMargin
from .margin import dual_bound as dual_bound
from .margin import widest_margin as widest_margin
from .perturb import perturbed as perturbed
from .perturb import sam_backward as sam_backward
from .registry import METHODS as METHODS
from .registry import Method as Method
from .registry import list_optimizers as list_optimizers
from .sam import ASAM as ASAM
from .sam import SAM as SAM
from .sharpness import block_sharpness as block_sharpness
from .sharpness import ratios_of as ratios_of
from .shell import Shell as Shell
from .shell import Wrapper as Wrapper
from .tails import Tails as Tails
from .tails import diagnose as diagnose

if TYPE_CHECKING:
    from .max_margin import MaxMarginClassifier as MaxMarginClassifier

__all__ = [
    "ASAM",
    "IRE",
    "LITE",
    "METHODS",
    "PRGD",
    "SAM",
    "AdamMini",
    "BatchSizeSchedule",
    "BlockRows",
    "Blocks",
    "GradPower",
    "Groups",
    "Homogeneity",
    "LITEAdam",
    "Late",
    "MaxMargin",
    "MaxMarginClassifier",
    "Method",
    "Shell",
    "Tails",
    "Wrapper",
    "block_sharpness",
    "blockwise_lr",
    "blockwise_schedule",
    "classify_blocks",
    "degree_of",
    "diagnose",
    "dual_bound",
    "group_by_name",
    "homogeneity",
    "late",
    "list_optimizers",
    "log_margin_loss",
    "muon_groups",
    "perturbed",
    "ratios_of",
    "sam_backward",
    "weight_decay_groups",
    "widest_margin",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "MaxMarginClassifier":  # here, because scikit-learn is slow to import
        from .max_margin import MaxMarginClassifier

        return MaxMarginClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
