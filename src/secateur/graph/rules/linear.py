"""Matrix products: linear layers and products of two feature maps; embeddings."""

from __future__ import annotations

from secateur.graph.capture import Node, Ref
from secateur.graph.flow import Flow
from secateur.graph.labels import Dim, Layout, copied
from secateur.graph.rules.table import rule


def contract(flow: Flow, a: Dim, b: Dim, reason: str) -> None:
    """Sum over a pair of dimensions: removed elements must contribute nothing, so one factor has to be zero there."""
    for one, other in flow.matched([a, b], f"{reason} with a fixed size"):
        flow.meet(one, other, reason)
        if not (one.zero or other.zero):
            flow.pin(one, f"{reason} of elements that are not zero when silenced")


def product(flow: Flow, a: Ref, b: Ref) -> Layout:
    """(..., n, k) @ (..., k, m), the leading dimensions equal."""
    left, right = flow.get(a), flow.get(b)
    contract(flow, left[-1], right[-2], "summed over in a matrix product")
    sizes = list(zip(flow.shape(a), flow.shape(b), strict=True))
    lead = [flow.unify([left[d], right[d]], sizes[d], "batch of a matrix product", "any") for d in range(len(left) - 2)]
    return [*copied(lead), *copied([left[-2], right[-1]])]


@rule("mm", "bmm")
def matmul(flow: Flow, node: Node) -> None:
    flow.set(node.outputs[0], product(flow, node.args[0], node.args[1]))


@rule("_cdist_forward", "_euclidean_dist")
def distances(flow: Flow, node: Node) -> None:
    """(..., n, k) and (..., m, k) -> (..., n, m): where both are silent, they are not apart."""
    a, b = node.args[:2]
    left, right = flow.get(a), flow.get(b)
    for one, other in flow.matched([left[-1], right[-1]], "compared along a dimension with a fixed size"):
        flow.meet(one, other, "compared along a dimension")
        if not (one.zero and other.zero):
            flow.pin(one, "compared along a dimension whose elements are not zero when silenced")
    sizes = list(zip(flow.shape(a), flow.shape(b), strict=True))
    lead = [flow.unify([left[d], right[d]], sizes[d], "batch of distances", "never") for d in range(len(left) - 2)]
    flow.set(node.outputs[0], copied([*lead, left[-2], right[-2]], zero=False))


@rule("mv", "dot", "vdot")
def vectors(flow: Flow, node: Node) -> None:
    left, right = flow.get(node.args[0]), flow.get(node.args[1])
    contract(flow, left[-1], right[0], "summed over in a product")
    flow.set(node.outputs[0], copied(left[:-1]))


@rule("addmm", "baddbmm")
def add_product(flow: Flow, node: Node) -> None:
    """bias + a @ b, the bias broadcast."""
    bias, a, b = node.args[:3]
    result = product(flow, a, b)
    shape = flow.shape(node.outputs[0])  # type: ignore[arg-type]
    offset = [()] * (len(shape) - len(flow.shape(bias))) + flow.get(bias)
    sizes = [1] * (len(shape) - len(flow.shape(bias))) + list(flow.shape(bias))
    flow.set(
        node.outputs[0],
        [flow.unify([result[d], offset[d]], [shape[d], sizes[d]], "bias of a linear layer") for d in range(len(shape))],
    )


@rule("_trilinear")
def trilinear(flow: Flow, node: Node) -> None:
    """The product of three tensors, each with dimensions of one put in at given places, summed over some."""
    refs, summed = node.args[:3], [*node.args[6]]
    layouts, shapes = [[*flow.get(ref)] for ref in refs], [list(flow.shape(ref)) for ref in refs]
    for layout, shape, places in zip(layouts, shapes, node.args[3:6], strict=True):
        for d in sorted(places):
            layout[d:d], shape[d:d] = [()], [1]
    out: list[Dim] = []
    for d in range(len(shapes[0])):
        dims, sizes = [layout[d] for layout in layouts], [shape[d] for shape in shapes]
        several = [size for size in sizes if size > 1]
        real = [(dim, size) for dim, size in zip(dims, sizes, strict=True) if size > 1 or not several]
        unified = flow.unify([dim for dim, _ in real], [size for _, size in real], "trilinear product", "any")
        if d in summed:
            for track in unified:
                if not track.zero:
                    flow.pin(track, "summed over in a trilinear product")
        else:
            out.append(unified)
    flow.set(node.outputs[0], out)


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def embedding_bag(flow: Flow, node: Node) -> None:
    """weight (vocabulary, width), indices -> (bags, width): sums, means or maxima of rows."""
    weight, *others = node.refs
    vocabulary, width = flow.get(weight)
    for track in vocabulary:
        flow.structural.append(track.atoms)
    flow.pin(vocabulary, "vocabulary of an embedding")
    for ref in others:
        for dim in flow.get(ref):
            flow.pin(dim, "indices of an embedding")
    for out in node.outputs:
        if out is not None:
            lead = [()] * (len(flow.shape(out)) - 1)
            channels = flow.shape(out)[-1:] == flow.shape(weight)[-1:]
            flow.set(out, copied([*lead, width]) if lead and channels else [()] * len(flow.shape(out)))


@rule("embedding")
def embedding(flow: Flow, node: Node) -> None:
    """weight (vocabulary, width), indices (...) -> (..., width)."""
    weight, indices = node.args[:2]
    vocabulary, width = flow.get(weight)
    for track in vocabulary:
        flow.structural.append(track.atoms)
    flow.pin(vocabulary, "vocabulary of an embedding")
    for dim in flow.get(indices):
        flow.pin(dim, "indices of an embedding")
    flow.set(node.outputs[0], [*[()] * len(flow.shape(indices)), *copied([width])])
