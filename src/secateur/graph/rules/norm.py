"""Normalisation: per channel (exact), over groups of channels (whole groups), over channels (pinned)."""

from __future__ import annotations

from secateur.graph.capture import Node, Ref
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import Track, copied
from secateur.graph.operators import BATCH_NORMS
from secateur.graph.rules.table import rule


@rule(*BATCH_NORMS, "_native_batch_norm_legit_functional")
def batch_norm(flow: Flow, node: Node) -> None:
    """Channel by channel: weight, bias and running statistics go with dimension 1 of the input."""
    x = node.args[0]
    layout, size = flow.get(x), flow.shape(x)[1]
    weight, *others = (a if isinstance(a, Ref) else None for a in node.args[1:5])
    channel = layout[1]
    for ref in (weight, *others):
        if ref is not None:
            channel = flow.unify([channel, flow.get(ref)[0]], [size, size], "batch norm", "all")
    if "with_update" in node.op or any(a is True for a in node.args[3:6]):  # training: over the batch and space
        for dim in (layout[0], *layout[2:]):
            flow.pin(dim, "normalised over by a batch norm")
    out = copied(layout, zero=False)
    silent = _silent(flow, x, weight, others[0])
    out[1] = tuple([track.copy(silent) for track in channel])
    flow.set(node.outputs[0], out)
    for extra in node.outputs[1:]:  # the batch's statistics
        if extra is not None:
            same = flow.shape(extra) == (size,)
            flow.set(extra, copied([channel], zero=False) if same else [()] * len(flow.shape(extra)))


def _silent(flow: Flow, x: Ref, weight: Ref | None, bias: Ref | None) -> bool:
    """Whether x_hat * weight + bias is zero for silenced channels."""

    def zero(ref: Ref, dim: int) -> bool:
        return all(track.zero for track in flow.get(ref)[dim])

    return (zero(x, 1) or (weight is not None and zero(weight, 0))) and (bias is None or zero(bias, 0))


@rule("native_layer_norm")
def layer_norm(flow: Flow, node: Node) -> None:
    """Mean and variance over the last dimensions change with every channel that goes."""
    x, shape = node.args[0], node.args[1]
    layout = flow.get(x)
    kept = len(layout) - len(shape)
    for dim in layout[kept:]:
        flow.pin(dim, "normalised over by a layer norm")
    for ref in node.args[2:4]:
        if isinstance(ref, Ref):
            for dim in flow.get(ref):
                flow.pin(dim, "normalised over by a layer norm")
    flow.set(node.outputs[0], [*copied(layout[:kept], zero=False), *[()] * len(shape)])
    for extra in node.outputs[1:]:
        if extra is not None:
            flow.set(extra, [()] * len(flow.shape(extra)))


@rule("native_group_norm")
def group_norm(flow: Flow, node: Node) -> None:
    """Statistics over the channels of a group: only whole groups can go, and then the module's num_groups goes down."""
    x, weight, bias = (a if isinstance(a, Ref) else None for a in node.args[:3])
    assert x is not None
    groups = int(node.args[6])
    layout, size = flow.get(x), flow.shape(x)[1]
    channel = layout[1]
    for ref in (weight, bias):
        if ref is not None:
            channel = flow.unify([channel, flow.get(ref)[0]], [size, size], "group norm")
    for track in channel:
        flow.together(track.atoms.reshape(groups, -1).T, "normalised together by a group norm")
        if groups == 1:
            flow.pin(track, "normalised over by a group norm with one group")
        elif not flow.follow("num_groups", groups, track, size // groups, weight):
            flow.pin(track, "group norm with num_groups written in the code")
    for dim in layout[2:]:
        flow.pin(dim, "normalised over by a group norm")
    out = copied(layout, zero=False)
    silent = _silent(flow, x, weight, bias)
    out[1] = tuple([track.copy(silent) for track in channel])
    flow.set(node.outputs[0], out)
    for extra in node.outputs[1:]:  # (samples, groups)
        if extra is not None:
            flow.set(extra, [(), tuple(Track(t.atoms.reshape(groups, -1)[:, 0]) for t in channel)])


@rule("_weight_norm_interface")
def weight_norm(flow: Flow, node: Node) -> None:
    """v * (g / |v|), the norm over all dimensions but one: slices of zero along the others leave it as it is."""
    v, g = node.args[:2]
    d = argument(node, 2, "dim", 0) % len(flow.shape(v))
    directions, lengths = flow.get(v), flow.get(g)
    for other, dim in enumerate(directions):
        if other != d and not all(track.zero for track in dim):
            flow.pin(dim, "normalised over by weight norm")
    out = copied(directions)
    size = flow.shape(v)[d]
    out[d] = flow.unify([directions[d], lengths[d]], [size, flow.shape(g)[d]], "weight norm", "never")
    flow.pin(out[d], "weight norm divides by the length of a silenced filter, zero")
    flow.set(node.outputs[0], out)
    flow.set(node.outputs[1], copied(lengths, zero=False))
