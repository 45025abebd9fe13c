"""Elements written or added at places that index tensors tell: fixed along the indexed dimensions, the others pass."""

from __future__ import annotations

import math

from secateur.graph.capture import Node, Ref
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import Dim, Layout, copied
from secateur.graph.rules.table import rule


def _finish(flow: Flow, node: Node, layout: Layout) -> None:
    x, out = node.args[0], node.outputs[0]
    if out == x:
        flow.write(x, layout)
    else:
        flow.set(out, layout)


def _spoilt(layout: Layout, value: object) -> Layout:
    """With a number written at some places, silent channels speak unless it is zero."""
    return copied(layout, zero=None if isinstance(value, (Ref, type(None))) or value == 0 else False)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(flow: Flow, node: Node) -> None:
    """x[i][index[i][j]][k] = source[i][j][k]: side by side but along the given dimension."""
    x, at = node.args[:2]
    indices, source = argument(node, 2, "index"), argument(node, 3, "src", argument(node, 3, "value"))
    refs = [ref for ref in (x, indices, source) if isinstance(ref, Ref)]
    rank = len(flow.shape(x))
    out: list[Dim] = []
    for d in range(rank):
        dims, sizes = [flow.get(ref)[d] for ref in refs], [flow.shape(ref)[d] for ref in refs]
        if d == at % rank or len(set(sizes)) > 1:
            for dim in dims:
                flow.pin(dim, "scattered along this dimension")
            out.append(())
        else:
            # Places that are computed from channels (of a pooling) go with them.
            out.append(flow.unify(dims, sizes, "scattered side by side", "never"))
            zero = all(track.zero for i in range(0, len(dims), 2) for track in dims[i])
            for track in out[-1]:
                track.own_zero = zero and all(dims[i] for i in range(0, len(dims), 2))
    _finish(flow, node, _spoilt(out, source))


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_", "index_fill",
      "index_fill_")  # fmt: skip
def index_write(flow: Flow, node: Node) -> None:
    """x[:, index] = source, for one dimension."""
    x, at, indices, source = node.args[:4]
    layout, shape = flow.get(x), flow.shape(x)
    for dim in flow.get(indices):
        flow.pin(dim, "used as indices")
    out = list(layout)
    if isinstance(source, Ref) and len(flow.shape(source)) == len(shape):
        others = flow.get(source)
        for d in range(len(shape)):
            if d != at % len(shape):
                out[d] = flow.unify([layout[d], others[d]], [shape[d]] * 2, "written side by side")
        flow.pin(others[at], "written by index along this dimension")
    flow.pin(layout[at], "written by index along this dimension")
    out[at] = ()
    _finish(flow, node, _spoilt(out, source))


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(flow: Flow, node: Node) -> None:
    """x[..., i, j, ...] = values; with a mask of x's own shape, one value at every place that it marks."""
    x, indices, values = node.args[0], list(node.args[1]), node.args[2]
    shape, single = flow.shape(x), math.prod(flow.shape(node.args[2])) == 1
    at = [d for d, item in enumerate(indices) if item is not None]
    if single and len(at) == 1 and flow.shape(indices[at[0]]) == shape:
        layout = flow.broadcast([x, indices[0]], shape, "masked", "never")
        return _finish(flow, node, layout)
    if any(len(flow.shape(indices[d])) != 1 for d in at) or at != list(range(at[0], at[-1] + 1)):
        return flow.barrier("written at places in several dimensions")
    for d in at:
        flow.pin(flow.get(x)[d], "written by index along this dimension")
        for dim in flow.get(indices[d]):
            flow.pin(dim, "used as indices")
    # The dimensions of what is picked: the indexed ones have become one.
    picked = [d for d in range(len(shape)) if d not in at[1:]]
    written, sizes = flow.get(values), flow.shape(values)
    out: list[Dim] = [() if d in at else dim for d, dim in enumerate(flow.get(x))]
    for place, d in enumerate(reversed(picked)):
        if place < len(sizes) and d not in at:
            dims, both = [flow.get(x)[d], written[-1 - place]], [shape[d], sizes[-1 - place]]
            out[d] = flow.unify(dims, both, "written side by side") if not single else copied([dims[0]], zero=False)[0]
    return _finish(flow, node, copied(out, zero=None if not single else False))
