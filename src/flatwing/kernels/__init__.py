"""Factors times a batch, fast: one operation, many backends, and a plan that says which one and why."""

from . import backends as backends  # isort: skip  # registers them
from .advice import Advice as Advice
from .advise import advise as advise
from .api import explain as explain
from .api import list_backends as list_backends
from .api import multiply as multiply
from .backend import BACKENDS as BACKENDS
from .packed import Packed as Packed
from .plan import Plan as Plan

__all__ = ["BACKENDS", "Advice", "Packed", "Plan", "advise", "explain", "list_backends", "multiply"]
