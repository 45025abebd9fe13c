"""SFP, soft filter pruning: after every epoch the weakest filters are set to zero, and train on.

He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018 (arXiv:1808.06866),
section 3.2 and algorithm 1: the filters of smallest L2 norm in every layer, the same share of each.

Choices: the scale and bias of a filter's batch norm are set to zero with it, so that the channel is silent and its
removal exact. Channels that several layers make together (a residual sum) are one: the norm is that of all their
filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import MethodError
from secateur.graph import Graph
from secateur.methods.protocol import Method, Scores
from secateur.methods.soft import (
    chosen_from,
    chosen_state,
    fade,
    filter_norms,
    kept_of,
    share_between,
    weakest,
)


@dataclass
class SFP(Method):
    """The weakest filters of every layer are zero at the end of every epoch; those of the last one are removed."""

    name = "sfp"
    summary = "L2 norm of a filter, layer by layer; set to zero after every epoch, free to recover"
    paper = "He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018"
    needs_training = True
    decides = True

    ratio: float = field(default=0.3, metadata={"help": "share of every layer that goes, where no budget says it"})

    def __post_init__(self) -> None:
        share_between("ratio", self.ratio)
        self._kept: NDArray[np.int64] = np.zeros(0, np.int64)
        self._gone: NDArray[np.bool_] = np.zeros(0, bool)
        self._recovered = 0

    def start(self, graph: Graph) -> None:
        self._graph = graph
        self._kept, self._gone = kept_of(graph, self.ratio), np.zeros(graph.units, bool)

    def aim(self, kept: NDArray[np.int64]) -> None:
        self._kept = kept

    def after_epoch(self, epoch: int) -> None:
        now = weakest(self._graph, filter_norms(self._graph), self._kept)
        self._recovered = int((self._gone & ~now).sum())
        self._gone = now
        fade(self._graph, now, 0.0)

    def log(self) -> dict[str, float]:
        return {"zeroed": float(self._gone.sum()), "recovered": float(self._recovered)} if self._gone.any() else {}

    def scores(self, graph: Graph) -> Scores:
        return filter_norms(graph)

    def decided(self, graph: Graph) -> NDArray[np.bool_]:
        if not self._gone.any() and (self._kept < [len(group) for group in graph.groups]).any():
            raise MethodError("method sfp has set no filter to zero yet: call pruner.after_epoch(epoch) in your loop")
        return self._gone

    def state_dict(self) -> dict[str, Any]:
        return {**chosen_state(self._kept, self._gone), "recovered": self._recovered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept, self._gone = chosen_from(state)
        self._recovered = int(state["recovered"])
