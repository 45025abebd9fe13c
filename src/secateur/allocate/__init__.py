"""From scores to a plan: which units go, under a ratio or a budget, with floors and rounding."""

from secateur.allocate.allocation import Allocation
from secateur.allocate.choice import Selection, select, selection
from secateur.allocate.guard import Guard
from secateur.allocate.reasons import outcome, why_nothing
from secateur.allocate.sensitivity import Curve, sensitivity
from secateur.allocate.steps import KINDS, schedule

__all__ = [
    "KINDS", "Allocation", "Curve", "Guard", "Selection",
    "outcome", "schedule", "select", "selection", "sensitivity", "why_nothing",
]  # fmt: skip
