"""FPGM: remove the filters nearest the geometric median of their layer, which the others can replace.

He, Liu, Wang, Hu and Yang, Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration,
CVPR 2019 (arXiv:1811.00250), section 3.3: the filter that minimises the sum of the Euclidean distances to all filters
of its layer is the nearest to the geometric median; the filters of smallest sums go, the same share of every layer.

Choices: sums of different layers can't be compared: they grow with the number of filters, with their size, and with the
weights' scale, which a batch norm behind the layer takes out again. By default a sum is therefore divided by the mean
sum of its layer (`relative`): 1 is as replaceable as the layer's average, so that `scope="global"` takes about as much
of every layer, and a little more where filters are alike. The paper's even share is `scope="group"`. Channels that
several layers make together (a residual sum) have a score in each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from secateur.graph import Graph
from secateur.methods.channels import filter_scores
from secateur.methods.distances import distance_sums
from secateur.methods.protocol import Method, Scores


@dataclass
class FPGM(Method):
    """Score of a unit: the distances of its filters to all others of their layers."""

    name = "fpgm"
    summary = "sum of a filter's distances to the other filters of its layer"
    paper = "He et al., Filter Pruning via Geometric Median for Deep CNNs Acceleration, CVPR 2019"

    relative: bool = field(
        default=True, metadata={"help": "divide by the mean of the layer's scores, so that layers compare"}
    )
    reduce: str = field(
        default="mean", metadata={"help": "how a unit's several filters are put together: mean, sum, max, min"}
    )

    def scores(self, graph: Graph) -> Scores:
        def score(filters: Tensor) -> Tensor:
            sums = distance_sums(filters)
            mean = sums.mean()
            return sums / mean if self.relative and mean > 0 else sums

        return filter_scores(graph, score, self.reduce)
