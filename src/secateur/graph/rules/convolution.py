"""Convolutions of any rank: plain, grouped, depthwise, transposed."""

from __future__ import annotations

import numpy as np

from secateur.graph.capture import Node, Ref
from secateur.graph.flow import Flow
from secateur.graph.labels import FREE, Dim, Track
from secateur.graph.operators import CONVOLUTIONS
from secateur.graph.rules.table import rule


@rule(*CONVOLUTIONS)
def convolution(flow: Flow, node: Node) -> None:
    """input (N, I, ...), weight (O, I / groups, ...) or transposed (I, O / groups, ...), bias (O)."""
    x, weight, bias = node.args[:3]
    transposed, groups = bool(node.args[6]), int(node.args[8])
    data, kernel = flow.get(x), flow.get(weight)
    still = _still(flow, node)
    for dim, passes in zip(data[2:], still, strict=True):
        if not passes:
            flow.pin(dim, "a convolution slides along this dimension")
    for dim in kernel[2:]:
        for track in dim:
            flow.structural.append(track.atoms)
        flow.pin(dim, "dimension of a kernel")
    out_of = flow.single(kernel[1 if transposed else 0], "merged dimensions in a convolution's weight")
    if groups == 1:
        for source, into in _beside(flow, data[1], kernel[0 if transposed else 1]):
            _meet(flow, source, into, "input of a convolution")
        out: Dim = (out_of.copy(),) if out_of else ()
    else:
        into = flow.single(kernel[0 if transposed else 1], "merged dimensions in a convolution's weight")
        source = flow.single(data[1], "merged dimensions reach a convolution")
        out = _grouped(flow, groups, transposed, x, weight, source, into, out_of)
    if bias is not None:
        size = flow.shape(node.outputs[0])[1]  # type: ignore[arg-type]
        out = flow.unify([out, flow.get(bias)[0]], [size, size], "bias of a convolution")
    # A sample, or a place, of zeros stays zeros only without a bias.
    batch, *places = [tuple([Track(t.atoms, t.zero and bias is None) for t in dim]) for dim in (data[0], *data[2:])]
    flow.set(node.outputs[0], [batch, out, *(dim if passes else () for dim, passes in zip(places, still, strict=True))])


def _still(flow: Flow, node: Node) -> list[bool]:
    """Per dimension of space: the convolution takes every place for itself (a kernel of one, moved by one)."""
    space = flow.shape(node.args[1])[2:]
    strides, paddings, beyond = ([*node.args[i]] for i in (3, 4, 7))
    # One number may stand for all dimensions.
    strides, paddings, beyond = (item * len(space) if len(item) == 1 else item for item in (strides, paddings, beyond))
    return [
        (size, stride, padding, more) == (1, 1, 0, 0)
        for size, stride, padding, more in zip(space, strides, paddings, beyond, strict=True)
    ]


def _beside(flow: Flow, a: Dim, b: Dim) -> list[tuple[Track | None, Track | None]]:
    if a and b:
        return [(one, other) for one, other in flow.matched([a, b], "merged dimensions reach a convolution")]
    return [*((track, None) for track in a), *((None, track) for track in b)]


def _meet(flow: Flow, a: Track | None, b: Track | None, reason: str) -> None:
    """Two dimensions that are summed over together; one without labels can't shrink and pins the other."""
    if a is not None and b is not None:
        flow.meet(a, b, reason)
        if not (a.zero or b.zero):
            flow.pin(a, f"{reason}: neither the channel nor its weights are zero when silenced")
    else:
        for track in (a, b):
            if track is not None:
                flow.pin(track, f"{reason} that is fixed")


def _grouped(
    flow: Flow,
    groups: int,
    transposed: bool,
    x: Ref,
    weight: Ref,
    source: Track | None,
    into: Track | None,
    out_of: Track | None,
) -> Dim:
    """Grouped convolution: `groups` convolutions side by side, of `channels / groups` inputs each.

    One input per group (depthwise): group by group is removed, with its input and its outputs. Otherwise the number of
    groups stays, and all lose equally many: the i-th inputs of all groups go together, and so do the i-th outputs.
    """
    if flow.shape(x)[1] == groups:
        return _depthwise(flow, groups, transposed, weight, source, into, out_of)
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
    return (out_of.copy(),)


def _depthwise(
    flow: Flow,
    groups: int,
    transposed: bool,
    weight: Ref,
    source: Track | None,
    into: Track | None,
    out_of: Track | None,
) -> Dim:
    """One input per group: weight (groups * multiplier, 1, ...) or transposed (groups, multiplier, ...).

    A number of groups that no module keeps is computed in the code, or written there, which the trial finds out.
    """
    first = into if transposed else out_of
    if first is None:
        if source is not None:
            flow.pin(source, "depthwise convolution with a fixed weight")
        return ()
    if transposed and out_of is not None:
        flow.pin(out_of, "outputs of every channel of a depthwise transposed convolution")
    each = len(first.atoms) // groups
    if (first.atoms >= 0).any():
        flow.follow("groups", groups, first, each, weight)
    if source is None:
        flow.pin(first, "depthwise convolution of a fixed input")
        return ()
    if each == 1:
        flow.meet(source, first, "depthwise convolution")
    else:
        for column in first.atoms.reshape(groups, -1).T:
            flow.equate(source.atoms, column, "depthwise convolution")
    # A filter that is made on the fly (FREE) follows the channels.
    out = first.atoms if first.whole else np.where(first.atoms == FREE, np.repeat(source.atoms, each), first.atoms)
    if transposed:
        out = np.repeat(out, flow.shape(weight)[1])
    return (Track(out, first.zero or source.zero),)
