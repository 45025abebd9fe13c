"""Convolutions of any rank: plain, grouped, depthwise, transposed."""

from __future__ import annotations

import numpy as np

from secateur.graph.capture import Node
from secateur.graph.flow import Dim, Flow, Layout, Track
from secateur.graph.rules.table import rule


@rule("convolution", "_convolution", "mkldnn_convolution")
def convolution(flow: Flow, node: Node) -> None:
    """input (N, I, ...), weight (O, I / groups, ...) or transposed (I, O / groups, ...), bias (O)."""
    x, weight, bias = node.args[:3]
    transposed, groups = bool(node.args[6]), int(node.args[8])
    data, kernel = flow.get(x), flow.get(weight)
    for dim in data[2:]:
        flow.pin(dim, "a convolution slides along this dimension")
    for dim in kernel[2:]:
        for track in dim:
            flow.structural.append(track.atoms)
        flow.pin(dim, "dimension of a kernel")
    into = flow.single(kernel[0 if transposed else 1], "merged dimensions in a convolution's weight")
    out_of = flow.single(kernel[1 if transposed else 0], "merged dimensions in a convolution's weight")
    source = flow.single(data[1], "merged dimensions reach a convolution")
    if groups == 1:
        _meet(flow, source, into, "input of a convolution")
        out: Dim = (Track(out_of.atoms.copy(), out_of.zero),) if out_of else ()
    else:
        out = _grouped(flow, groups, transposed, flow.shape(x)[1], source, into, out_of)
    if bias is not None:
        size = flow.shape(node.outputs[0])[1]  # type: ignore[arg-type]
        out = flow.unify([out, flow.get(bias)[0]], [size, size], "bias of a convolution")
    # A sample of zeros stays zeros only without a bias.
    batch: Layout = [tuple(Track(t.atoms, t.zero and bias is None) for t in data[0])]
    flow.set(node.outputs[0], [*batch, out, *[()] * (len(data) - 2)])


def _meet(flow: Flow, a: Track | None, b: Track | None, reason: str) -> None:
    """Two dimensions that are summed over together; one without labels can't shrink and pins the other."""
    if a is not None and b is not None:
        flow.equate(a.atoms, b.atoms, reason)
        if not (a.zero or b.zero):
            flow.pin(a, f"{reason}: neither the channel nor its weights are zero when silenced")
    else:
        for track in (a, b):
            if track is not None:
                flow.pin(track, f"{reason} that is fixed")


def _grouped(
    flow: Flow, groups: int, transposed: bool, channels: int, source: Track | None, into: Track | None, out_of: Track | None
) -> Dim:
    """Grouped convolution: `groups` convolutions side by side, of `channels / groups` inputs each.

    One input per group (depthwise): group by group is removed, with its input and its outputs. Otherwise the number of groups stays,
    and all lose equally many: the i-th inputs of all groups go together, and so do the i-th outputs.
    """
    per_group = channels // groups
    multiplier = None if out_of is None else (len(out_of.atoms) if transposed else len(out_of.atoms) // groups)
    if per_group == 1 and (not transposed or multiplier in (None, 1)):
        first = into if transposed else out_of  # weight's dimension 0: (groups * multiplier)
        if first is None:
            if source is not None:
                flow.pin(source, "depthwise convolution with a fixed weight")
            return ()
        table = first.atoms.reshape(groups, -1)
        flow.follow("groups", groups, first, table.shape[1])
        for column in table.T:
            if source is None:
                flow.pin(column, "depthwise convolution of a fixed input")
            else:
                flow.equate(source.atoms, column, "depthwise convolution")
        return (Track(first.atoms.copy(), first.zero),)
    if transposed:
        # weight (I, O / groups): every input has its own row; the outputs' columns are shared by the groups.
        _meet(flow, source, into, "input of a grouped transposed convolution")
        if into is not None:
            flow.together(into.atoms.reshape(groups, -1), "groups of a convolution")
        return (Track(np.tile(out_of.atoms, groups), out_of.zero),) if out_of else ()
    if source is None:
        _meet(flow, None, into, "input of a grouped convolution")
    else:
        first_of_each = flow.together(source.atoms.reshape(groups, -1), "groups of a convolution")
        _meet(flow, Track(first_of_each, source.zero), into, "input of a grouped convolution")
    if out_of is None:
        return ()
    flow.together(out_of.atoms.reshape(groups, -1), "groups of a convolution")
    return (Track(out_of.atoms.copy(), out_of.zero),)
