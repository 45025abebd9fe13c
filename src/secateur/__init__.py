"""Secateur makes convolutional networks smaller by removing whole channels, exactly.

unit     the smallest set of tensor slices that must be removed together (a channel with all that reads and writes
         it)
group    a family of interchangeable units
plan     the units to remove, as data: tensor names, dimensions, indices
pinned   can't be removed exactly; comes with a reason
budget   what may remain; a pruning ratio is what is removed
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.allocate import Guard, schedule, select, sensitivity
    from secateur.costs import Cost, cost
    from secateur.errors import SecateurError
    from secateur.graph import Graph, Group, trace
    from secateur.heatmaps import grad_cam
    from secateur.methods import Method, list_methods
    from secateur.models import create_model, list_models
    from secateur.plan import Plan
    from secateur.pruner import Pruner, Result, prune, score
    from secateur.surgery import Compensated, Report, apply, compensate, fold_constants, load, save, verify

__version__ = "0.1.0"

__all__ = [
    "Compensated", "Cost", "Graph", "Group", "Guard", "Method", "Plan", "Pruner", "Report", "Result", "SecateurError",
    "apply", "compensate", "cost", "create_model", "fold_constants", "grad_cam", "list_methods", "list_models", "load",
    "prune", "save", "schedule", "score", "select", "sensitivity", "trace", "verify",
]  # fmt: skip

# Where each public name lives; it is imported when it is first asked for, so that `secateur --help` needs no torch.
_HOMES = {
    "allocate": ("Guard", "schedule", "select", "sensitivity"),
    "costs": ("Cost", "cost"),
    "errors": ("SecateurError",),
    "graph": ("Graph", "Group", "trace"),
    "heatmaps": ("grad_cam",),
    "methods": ("Method", "list_methods"),
    "models": ("create_model", "list_models"),
    "plan": ("Plan",),
    "pruner": ("Pruner", "Result", "prune", "score"),
    "surgery": ("Compensated", "Report", "apply", "compensate", "fold_constants", "load", "save", "verify"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"secateur.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
