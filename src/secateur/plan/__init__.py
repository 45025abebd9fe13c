"""Decide first, cut later: a plan is data."""

from secateur.plan.plan import Plan, plan_of, units_of

__all__ = ["Plan", "plan_of", "units_of"]
