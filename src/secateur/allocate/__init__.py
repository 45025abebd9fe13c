"""From scores to a plan: which units go, under a ratio or a budget, with floors and rounding."""

from secateur.allocate.allocation import Allocation
from secateur.allocate.choice import Selection, select, selection
from secateur.allocate.reasons import outcome, why_nothing
from secateur.allocate.steps import KINDS, schedule

__all__ = ["KINDS", "Allocation", "Selection", "outcome", "schedule", "select", "selection", "why_nothing"]
