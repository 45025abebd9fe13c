"""Budgets: what is limited, and the fewest units whose removal meets the limits.

Counts follow from the graph. Latency is measured on networks that are really cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.allocate.order import Chunk, leaving
from secateur.costs import CostModel, LatencyModel, LatencyTable, fewest, table_of
from secateur.errors import BudgetError
from secateur.graph import Graph
from secateur.plan import plan_of
from secateur.surgery import apply


class Limits:
    """What is limited, the models that tell it, and how much of it there is."""

    def __init__(self, graph: Graph, budget: Mapping[str, float], table: LatencyTable | Path | str | None) -> None:
        counts = CostModel(graph)
        self.graph = graph
        self.latency = LatencyModel(graph, table_of(table)) if "latency" in budget else None
        self.models = {name: self.latency if self.latency and name == "latency" else counts for name in budget}
        self.whole = {name: float(model.total(name)) for name, model in self.models.items()}
        self.relative = {name for name, value in budget.items() if value <= 1}
        self.limits = {
            name: value * self.whole[name] if name in self.relative else value for name, value in budget.items()
        }

    def savings(self) -> NDArray[np.float64]:
        """Of what has to go, the share that every single unit saves; over all limits together."""
        out = np.zeros(self.graph.units)
        for name, limit in self.limits.items():
            excess = self.whole[name] - limit
            if excess > 0:
                out += self.models[name].saved(name) / excess
        return out

    def meet(
        self, gone: NDArray[np.bool_], fixed: list[Chunk], order: list[Chunk]
    ) -> tuple[NDArray[np.bool_], float | None]:
        """What is gone (bool per unit) or fixed, and the fewest further chunks whose removal meets every limit.

        Returns:
            bool per unit, and the latency in the units in which it was asked, if it is limited.

        Raises:
            BudgetError: even with all chunks gone, more remains.
        """
        counted = {name: limit for name, limit in self.limits.items() if name != "latency"}

        def removed(count: int) -> NDArray[np.bool_]:
            return gone | leaving(self.graph, [*fixed, *order[:count]])

        def total(name: str, count: int) -> float:
            return self.models[name].total(name, removed(count))

        least = {name: total(name, len(order)) for name in counted}
        short = {name: limit for name, limit in counted.items() if least[name] > limit}
        if short:
            raise BudgetError(
                "the budget is out of reach: "
                + "; ".join(
                    f"{name} {limit:,.0f} was asked, {least[name]:,} ({least[name] / self.whole[name]:.1%}) is the "
                    f"least that min_keep, round_to and what is pinned or protected allow"
                    for name, limit in short.items()
                )
            )
        count = fewest(lambda n: all(total(name, n) <= limit for name, limit in counted.items()), 0, len(order))
        if self.latency is None:
            return removed(count), None
        relative = "latency" in self.relative
        count, milliseconds = self.latency.meet(
            self.limits["latency"],
            relative,
            removed,
            lambda units: apply(self.graph.model, plan_of(self.graph, units)),
            count,
            len(order),
        )
        return removed(count), milliseconds / self.whole["latency"] if relative else milliseconds
