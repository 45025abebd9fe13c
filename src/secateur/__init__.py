"""Secateur makes convolutional networks smaller by removing whole channels, exactly.

unit     the smallest set of tensor slices that must be removed together (a channel with all that reads and writes it)
group    a family of interchangeable units
plan     the units to remove, as data: tensor names, dimensions, indices
pinned   can't be removed exactly; comes with a reason
budget   what may remain; a pruning ratio is what is removed
"""

from secateur.allocate import select
from secateur.cost import Cost, cost
from secateur.errors import SecateurError
from secateur.graph import Graph, Group, trace
from secateur.methods import Method, list_methods
from secateur.models import create_model, list_models
from secateur.plan import Plan
from secateur.pruner import Pruner, Result, prune, score
from secateur.surgery import Report, apply, load, save, verify

__version__ = "0.1.0"

__all__ = [
    "Cost", "Graph", "Group", "Method", "Plan", "Pruner", "Report", "Result", "SecateurError",
    "apply", "cost", "create_model", "list_methods", "list_models", "load", "prune",
    "save", "score", "select", "trace", "verify",
]  # fmt: skip
