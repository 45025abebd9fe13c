"""Prune in one call, or along somebody's own training loop, at once or in steps."""

from secateur.pruner.loop import Pruner
from secateur.pruner.one_cut import Criterion, prune, score
from secateur.pruner.result import Result

__all__ = ["Criterion", "Pruner", "Result", "prune", "score"]
