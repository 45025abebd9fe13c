"""Random scores: the control that every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from secateur.graph import Graph
from secateur.methods.protocol import Method, Scores


@dataclass
class Random(Method):
    """Score of a unit: a uniform random number, the same for the same seed."""

    name = "random"
    summary = "uniform random scores, the control"

    seed: int = field(default=0, metadata={"help": "seed of the draw"})

    def scores(self, graph: Graph) -> Scores:
        values = np.random.default_rng(self.seed).random(graph.units)
        return np.where(graph.prunable, values, np.inf)
