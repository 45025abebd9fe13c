"""Elements picked by index tensors: fixed along the indexed dimensions, the others pass."""

from __future__ import annotations

from secateur.graph.capture import Node, Ref
from secateur.graph.flow import Flow
from secateur.graph.labels import Dim, copied
from secateur.graph.rules.table import rule


@rule("index")
def index(flow: Flow, node: Node) -> None:
    """x[:, i, j]: the indices are broadcast together; they stand where the first was if neighbours, else in front."""
    x, indices = node.args[0], list(node.args[1])
    layout = flow.get(x)
    indices += [None] * (len(layout) - len(indices))
    at = [d for d, item in enumerate(indices) if item is not None]
    if any(len(flow.shape(indices[d])) != 1 and _boolean(flow, node, d) for d in at):
        return flow.barrier("a mask over several dimensions")
    for d in at:
        flow.pin(layout[d], "picked by index along this dimension")
        for dim in flow.get(indices[d]):
            flow.pin(dim, "used as indices")
    rank = max(len(flow.shape(indices[d])) for d in at)
    picked: list[Dim] = [()] * rank
    rest = copied([dim for d, dim in enumerate(layout) if d not in at])
    front = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    flow.set(node.outputs[0], [*rest[:front], *picked, *rest[front:]])
    return None


def _boolean(flow: Flow, node: Node, d: int) -> bool:
    """A mask eats as many dimensions as it has: the ranks tell it from integer indices."""
    out = node.outputs[0]
    indices = [item for item in node.args[1] if isinstance(item, Ref)]
    rank = max(len(flow.shape(item)) for item in indices)
    return out is None or len(flow.shape(out)) != len(flow.shape(node.args[0])) - len(indices) + rank


@rule("index_select")
def index_select(flow: Flow, node: Node) -> None:
    x, at, indices = node.args[:3]
    out = copied(flow.get(x))
    d = at % len(out)
    flow.pin(out[d], "picked by index along this dimension")
    for dim in flow.get(indices):
        flow.pin(dim, "used as indices")
    out[d] = ()
    flow.set(node.outputs[0], out)


@rule("bucketize")
def bucketize(flow: Flow, node: Node) -> None:
    x, boundaries = node.args[:2]
    for dim in flow.get(boundaries):
        flow.pin(dim, "boundaries of buckets")
    flow.set(node.outputs[0], copied(flow.get(x), zero=False))


@rule("gather")
def gather(flow: Flow, node: Node) -> None:
    """Every element of the index tells a place along one dimension; in the others, x and index go side by side."""
    x, at, indices = node.args[:3]
    sizes, wanted = flow.shape(x), flow.shape(indices)
    layout, places = flow.get(x), flow.get(indices)
    out: list[Dim] = []
    for d in range(len(sizes)):
        if d == at % len(sizes) or sizes[d] != wanted[d]:
            flow.pin(layout[d], "gathered along this dimension")
            flow.pin(places[d], "gathered along this dimension")
            out.append(())
        else:
            out.append(flow.unify([layout[d], places[d]], [sizes[d]] * 2, "gathered side by side"))
    flow.set(node.outputs[0], copied(out, zero=False))
