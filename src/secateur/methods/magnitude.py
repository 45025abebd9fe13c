"""Filter norms: remove the filters of smallest sum of absolute weights (L1), or of smallest Euclidean length (L2).

Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv:1608.08710), section 3.1: s_j = sum |F_ij|. L2
is the same with the Euclidean length.

Deviation: the paper ranks within a layer; under `scope="global"` layers are compared with each other, so by default the
    norm is that of an average element of the filter (`normalise`): the mean absolute weight, the root mean square.
    That does not favour wide layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.graph import Graph
from secateur.methods.channels import filter_scores
from secateur.methods.protocol import Method, Scores


def filter_norm(filters: Tensor, order: int, normalise: bool) -> Tensor:
    """(filters, n elements) -> (filters): the norm of order p; normalised, it is divided by n ** (1 / p)."""
    norms = torch.linalg.vector_norm(filters, order, dim=1)
    return norms / filters.shape[1] ** (1 / order) if normalise else norms


@dataclass
class L1(Method):
    """Score of a unit: the L1 norm of its filters."""

    name = "l1"
    summary = "sum of absolute weights of a filter"
    paper = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"

    normalise: bool = field(
        default=True, metadata={"help": "divide by the filter's number of weights, so that layers compare"}
    )
    reduce: str = field(
        default="mean", metadata={"help": "how a unit's several filters are put together: mean, sum, max, min"}
    )

    def scores(self, graph: Graph) -> Scores:
        return filter_scores(graph, lambda filters: filter_norm(filters, 1, self.normalise), self.reduce)


@dataclass
class L2(Method):
    """Score of a unit: the L2 norm of its filters."""

    name = "l2"
    summary = "Euclidean length of a filter"
    paper = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"

    normalise: bool = field(
        default=True,
        metadata={"help": "divide by the square root of the filter's number of weights, so that layers compare"},
    )
    reduce: str = field(
        default="mean", metadata={"help": "how a unit's several filters are put together: mean, sum, max, min"}
    )

    def scores(self, graph: Graph) -> Scores:
        return filter_scores(graph, lambda filters: filter_norm(filters, 2, self.normalise), self.reduce)
