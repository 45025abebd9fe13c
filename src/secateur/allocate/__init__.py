"""From scores to a plan: which units go, under a ratio or a budget, with floors and rounding."""

from secateur.allocate.allocation import Allocation
from secateur.allocate.choice import Selection, select, selection
from secateur.allocate.reasons import outcome, why_nothing

__all__ = ["Allocation", "Selection", "outcome", "select", "selection", "why_nothing"]
