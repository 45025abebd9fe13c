"""Operators over space, channel by channel: pooling, unpooling, resizing."""

from __future__ import annotations

from secateur.graph.capture import Node
from secateur.graph.flow import Flow
from secateur.graph.labels import Layout, copied
from secateur.graph.rules.table import rule

_RANK = {"1d": 1, "2d": 2, "3d": 3}


def _space(flow: Flow, node: Node, layout: Layout, rank: int) -> Layout:
    """The leading dimensions pass; the last `rank` are space."""
    kept = len(layout) - rank
    for dim in layout[kept:]:
        flow.pin(dim, f"{node.op} works along this dimension")
    return [*layout[:kept], *[()] * rank]


_POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
          "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
          "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d")  # fmt: skip
_RESIZES = ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
            "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa")  # fmt: skip


@rule(*_POOLS, *_RESIZES)
def pool(flow: Flow, node: Node) -> None:
    """Values and, for max-pooling, the indices carry the same channels. Averages and maxima of zeros are zero."""
    rank = next(r for name, r in _RANK.items() if name in node.op)
    layout = _space(flow, node, flow.get(node.args[0]), rank)
    for i, out in enumerate(node.outputs):
        flow.set(out, copied(layout, zero=None if i == 0 else False))  # behind the values: the places of the maxima


@rule("max_unpool2d", "max_unpool3d")
def unpool(flow: Flow, node: Node) -> None:
    """A value goes where its channel's index says: values and indices must lose the same channels."""
    x, indices = node.args[:2]
    rank = 2 if "2d" in node.op else 3
    shape = flow.shape(x)
    values = _space(flow, node, flow.get(x), rank)
    places = _space(flow, node, flow.get(indices), rank)
    lead = len(shape) - rank
    out = [
        flow.unify([values[d], places[d]], [shape[d]] * 2, "max-unpooling with shared indices", "any")
        for d in range(lead)
    ]
    flow.set(node.outputs[0], [*out, *[()] * rank])


@rule("grid_sampler_2d", "grid_sampler_3d")
def sample(flow: Flow, node: Node) -> None:
    x, grid = node.args[:2]
    for dim in flow.get(grid):
        flow.pin(dim, "a sampling grid")
    out = copied(_space(flow, node, flow.get(x), len(flow.shape(x)) - 2))
    flow.set(node.outputs[0], [(), *out[1:]])
