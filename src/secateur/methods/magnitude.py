"""L1 filter norm: remove the filters of smallest sum of absolute weights.

Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv:1608.08710), section 3.1: s_j = sum |F_ij|.

Deviation: the paper ranks within a layer; under `scope="global"` layers are compared with each other, so by default the
    norm is taken per
element of the filter (`normalise`), which does not favour wide layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.graph import Graph
from secateur.methods.channels import filter_scores
from secateur.methods.protocol import Method, Scores


def l1_norm(filters: Tensor) -> Tensor:
    """(filters, elements) -> (filters): sum of absolute values."""
    return torch.linalg.vector_norm(filters, 1, dim=1)


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
        def norm(filters: Tensor) -> Tensor:
            return l1_norm(filters) / (filters.shape[1] if self.normalise else 1)

        return filter_scores(graph, norm, self.reduce)
