"""Where a network stands that is cut in steps: every share is a share of the network before the first of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from secateur.graph import Graph
from secateur.plan import Plan, units_of


@dataclass(frozen=True)
class Progress:
    """A network on its way, and where it began.

    Attributes:
        original: the graph of the network before anything was cut.
        plan: what was removed from it so far.
        now: the graph of the network as it is, with the weights that count.
    """

    original: Graph
    plan: Plan
    now: Graph

    @classmethod
    def beginning(cls, graph: Graph) -> Progress:
        """Nothing was cut yet."""
        return cls(graph, Plan({}), graph)

    @cached_property
    def gone(self) -> NDArray[np.bool_]:
        """bool per unit of the original: removed so far."""
        return units_of(self.original, self.plan)

    def in_original(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of the units there are now as scores of the original's: +inf where nothing is known.

        What is gone gets a finite score, since it counts among what can be removed; so does the last unit of a group
        that was cut down to it, which can't go any more.
        """
        out = np.full(self.original.units, -np.inf)
        now, before = self._links
        np.maximum.at(out, before, scores[now])  # a unit counts as much as the most important of what it became
        out[np.isneginf(out)] = np.inf
        groups = self.original.solution.group_of
        cut, left = (
            np.bincount(groups[units], minlength=groups.max(initial=0) + 1) for units in (self.gone, ~self.gone)
        )
        out[self.gone | ((cut > 0) & (left == 1))[groups]] = 0.0
        return out

    def in_now(self, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool per unit that there is now, from bool per unit of the original."""
        out = np.zeros(self.now.units, dtype=bool)
        now, before = self._links
        out[now[removed[before]]] = True
        return out

    @cached_property
    def _links(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which unit of now is which of the original: they hold slices of the same tensors."""
        by_name = {tensor.name: tensor for tensor in self.original.tensors}
        pairs = [np.zeros(0, dtype=np.int64)]
        for tensor in self.now.tensors:
            origin = by_name.get(tensor.name)
            for dim, first in enumerate(tensor.first):
                if origin is None or first < 0 or origin.first[dim] < 0:
                    continue
                known = tensor.name in self.plan.shapes
                index = self.plan.kept(tensor.name, dim) if known else np.arange(tensor.shape[dim])
                now = self.now.solution.of_atom[first + np.arange(len(index))]
                before = self.original.solution.of_atom[origin.first[dim] + index]
                pairs.append((now * self.original.units + before)[(now >= 0) & (before >= 0)])
        now, before = np.divmod(np.unique(np.concatenate(pairs)), max(1, self.original.units))
        return now, before
