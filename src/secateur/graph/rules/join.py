"""Concatenation, stacking, padding, repetition."""

from __future__ import annotations

import numpy as np

from secateur.graph.capture import Node, Ref
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import FIXED, FREE, Dim, Layout, Track, copied
from secateur.graph.rules.table import rule


def chain(flow: Flow, dims: list[Dim], sizes: list[int]) -> Dim:
    """Dimensions laid end to end."""
    if not any(dims):
        return ()
    parts, zero = [], True
    for dim, size in zip(dims, sizes, strict=True):
        track = flow.single(dim, "merged dimensions are concatenated")
        parts.append(track.atoms if track is not None else np.full(size, FIXED))
        zero = zero and track is not None and (track.zero or not track.live)
    return (Track(np.concatenate(parts), zero),)


@rule("cat", "concat")
def cat(flow: Flow, node: Node) -> None:
    refs: list[Ref] = [ref for ref in node.args[0] if flow.shape(ref) != (0,)]
    rank = len(flow.shape(refs[0]))
    at = argument(node, 1, "dim", 0) % rank
    layouts = [flow.get(ref) for ref in refs]
    shapes = [flow.shape(ref) for ref in refs]
    out: Layout = []
    for d in range(rank):
        dims, sizes = [layout[d] for layout in layouts], [shape[d] for shape in shapes]
        out.append(chain(flow, dims, sizes) if d == at else flow.unify(dims, sizes, "side by side in a concatenation"))
    flow.set(node.outputs[0], out)


@rule("stack")
def stack(flow: Flow, node: Node) -> None:
    refs: list[Ref] = list(node.args[0])
    shape = flow.shape(refs[0])
    at = argument(node, 1, "dim", 0) % (len(shape) + 1)
    layouts = [flow.get(ref) for ref in refs]
    out = [
        flow.unify([layout[d] for layout in layouts], [shape[d]] * len(refs), "side by side in a stack")
        for d in range(len(shape))
    ]
    flow.set(node.outputs[0], [*out[:at], (), *out[at:]])


@rule("repeat")
def repeat(flow: Flow, node: Node) -> None:
    x, times = node.args[0], list(node.args[1])
    shape = flow.shape(x)
    layout = [()] * (len(times) - len(shape)) + flow.get(x)
    sizes = [1] * (len(times) - len(shape)) + list(shape)
    out: Layout = []
    for dim, size, n in zip(layout, sizes, times, strict=True):
        if size == 1 and n > 1:  # one value spread over n: it follows whatever it meets
            out.append((Track(np.full(n, FREE)),))
        else:
            out.append(tuple(Track(np.tile(track.atoms, n), track.zero) for track in dim))
    flow.set(node.outputs[0], out)


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d")  # fmt: skip
def pad(flow: Flow, node: Node) -> None:
    """Pads from the last dimension backwards; what is added to a labelled dimension is fixed."""
    x, amounts = node.args[0], list(node.args[1])
    out = copied(flow.get(x))
    for i in range(len(amounts) // 2):
        d, (before, after) = len(out) - 1 - i, amounts[2 * i : 2 * i + 2]
        if before == after == 0:
            continue
        if before < 0 or after < 0 or node.op != "constant_pad_nd":
            flow.pin(out[d], "padded or cropped along this dimension")
            out[d] = ()
        else:
            out[d] = tuple(Track(np.pad(t.atoms, (before, after), constant_values=FIXED), t.zero) for t in out[d])
    flow.set(node.outputs[0], out)
