"""What a network costs before and after a plan, predicted without cutting."""

from secateur.costs.count import COLUMNS, Cost, CostModel, cost

__all__ = ["COLUMNS", "Cost", "CostModel", "cost"]
