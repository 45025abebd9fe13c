"""BN-Scale: rank channels by |gamma| of their batch norm straight after normal training.

The naive baseline of He et al., CAP (WACV 2021), section 4.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.graph import Graph
from secateur.methods.protocol import Method, Scores
from secateur.methods.scales import scale_scores


@dataclass
class BNScale(Method):
    """Score of a unit: the smallest |gamma| among its batch norms; units without one stay."""

    name = "bn_scale"
    summary = "|gamma| of the batch norm, after normal training"
    paper = "baseline in He et al., CAP: Context-Aware Pruning for Semantic Segmentation, WACV 2021, section 4.5"

    protect_residual: bool = field(
        default=True, metadata={"help": "keep channels that take part in a residual sum, as the paper does"}
    )
    reduce: str = field(
        default="min", metadata={"help": "how a unit's several scales are put together: mean, sum, max, min"}
    )

    def scores(self, graph: Graph) -> Scores:
        return scale_scores(graph, self.reduce, self.protect_residual)
