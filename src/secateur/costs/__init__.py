"""What a network costs before and after a plan, predicted without cutting; its latency, measured."""

from secateur.costs.count import COLUMNS, Cost, CostModel, cost
from secateur.costs.latency import LatencyModel, table_of
from secateur.costs.latency_table import LatencyTable
from secateur.costs.settle import fewest
from secateur.costs.stopwatch import Stopwatch, Timing, agreed

__all__ = [
    "COLUMNS", "Cost", "CostModel", "LatencyModel", "LatencyTable", "Stopwatch", "Timing",
    "agreed", "cost", "fewest", "table_of",
]  # fmt: skip
