"""The same elements in another shape or order: views, permutations, expansion, pixel shuffle."""

from __future__ import annotations

import math

import numpy as np

from secateur.graph.capture import Node
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import FREE, Atoms, Dim, Layout, Track, copied
from secateur.graph.rules.table import rule


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Which dimensions of a reshaped tensor hold the elements of which dimensions of the original, in smallest blocks.

    (8, 6, 5) -> (8, 30) gives [([0], [0]), ([1, 2], [1])]; (8, 12) -> (8, 3, 4) gives [([0], [0]), ([1], [1, 2])].
    Dimensions of size one belong to no block.
    """
    a = [d for d, n in enumerate(before) if n != 1]
    b = [d for d, n in enumerate(after) if n != 1]
    out: list[tuple[list[int], list[int]]] = []
    while a or b:
        left, right = ([a.pop(0)] if a else []), ([b.pop(0)] if b else [])
        m, n = math.prod(before[d] for d in left), math.prod(after[d] for d in right)
        while m != n:
            if m < n and a:
                left.append(a.pop(0))
                m *= before[left[-1]]
            elif b:
                right.append(b.pop(0))
                n *= after[right[-1]]
            else:
                break
        out.append((left, right))
    return out


def _split(flow: Flow, track: Track, sizes: list[int]) -> list[Track | None]:
    """A track of merged size told as one track per new dimension; at most one of them gets it.

    Where the labels vary along several of the new dimensions (channels split into parts), only one of them can shrink:
    the i-th of each part go together. Which one is a choice; by default the largest, the last of equals.
    """
    table = track.atoms.reshape(sizes)
    varying = [d for d in range(len(sizes)) if (table != np.take(table, [0], axis=d)).any()]
    if not varying:  # the same everywhere (FREE)
        return [track.view(np.broadcast_to(table.flat[0], (n,)).copy()) for n in sizes]
    if len(varying) == 1:
        keep = varying[0]
    else:
        order = sorted(varying, key=lambda d: (-sizes[d], -d))
        keep = order[flow.choose(len(order), track.atoms, tuple(sizes))]
    parts: Atoms = np.moveaxis(table, keep, -1).reshape(-1, sizes[keep])
    if len(varying) > 1:
        parts = flow.together(parts, "split into parts by a reshape")[None]
    return [track.view(parts[0]) if d == keep else None for d in range(len(sizes))]


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "flatten", "unflatten", "view_as",
      "squeeze_", "unsqueeze_", "reshape_as")  # fmt: skip
def view(flow: Flow, node: Node) -> None:
    x, out = node.args[0], node.outputs[0]
    if out is None:
        return
    if out == x:
        return flow.barrier(f"{node.op} changes the shape in place")
    before, after = flow.shape(x), flow.shape(out)
    if 0 in before:
        return flow.set(out, [()] * len(after))
    layout = flow.get(x)
    result: list[list[Track]] = [[] for _ in after]
    for left, right in blocks(before, after):
        sizes = [before[d] for d in left]
        for i, d in enumerate(left):
            for track in layout[d]:
                inner, outer = math.prod(sizes[i + 1 :]), math.prod(sizes[:i])
                merged = track
                if inner > 1 or outer > 1:
                    merged = track.view(np.tile(np.repeat(track.atoms, inner), outer))
                if len(right) == 1:
                    result[right[0]].append(merged)
                else:
                    for place, part in zip(right, _split(flow, merged, [after[k] for k in right]), strict=True):
                        if part is not None:
                            result[place].append(part)
    flow.set(out, [_without_free(dim) for dim in result])
    return None


def _without_free(tracks: list[Track]) -> Dim:
    """FREE tracks of merged dimensions say nothing beside others."""
    spoken = [track for track in tracks if not track.all_free]
    return tuple(spoken or tracks[:1])


@rule("permute", "transpose", "transpose_", "t", "t_", "movedim", "swapaxes", "numpy_T", "mT")
def permute(flow: Flow, node: Node) -> None:
    layout = flow.get(node.args[0])
    order = list(range(len(layout)))
    if node.op == "permute":
        order = [d % len(layout) for d in node.args[1]]
    elif node.op in ("transpose", "transpose_"):
        a, b = (d % len(layout) for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    elif len(layout) >= 2 and node.op in ("t", "t_", "numpy_T", "mT"):
        order = [*order[:-2], order[-1], order[-2]] if node.op == "mT" else order[::-1]
    elif node.op in ("movedim", "swapaxes"):
        return flow.barrier(f"no rule for {node.op}")
    flow.set(node.outputs[0], [layout[d] for d in order])
    return None


@rule("as_strided", "as_strided_")
def as_strided(flow: Flow, node: Node) -> None:
    """The same elements under other strides, which matter to no channel, if the shape stays and nothing is left out."""
    x, out = node.args[0], node.outputs[0]
    if flow.shape(x) != tuple(node.args[1]) or argument(node, 3, "storage_offset") or 0 in node.args[2]:
        return flow.barrier("elements picked by strides")
    if out != x:
        flow.set(out, flow.get(x))
    return None


@rule("expand", "expand_as")
def expand(flow: Flow, node: Node) -> None:
    """A dimension of one spread over n: every index shows the same element, so it follows whatever it meets."""
    x, out = node.args[0], node.outputs[0]
    if out is None:
        return
    before, after = flow.shape(x), flow.shape(out)
    layout: Layout = [()] * (len(after) - len(before)) + flow.get(x)
    sizes = [1] * (len(after) - len(before)) + list(before)
    flow.set(
        out,
        [dim if n == m else (Track(np.full(m, FREE)),) for dim, n, m in zip(layout, sizes, after, strict=True)],
    )


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, node: Node) -> None:
    """(N, c r r, H, W) -> (N, c, H r, W r): the r r channels of one output channel go together."""
    layout, factor = flow.get(node.args[0]), int(node.args[1])
    for dim in layout[-2:]:
        flow.pin(dim, "pixel shuffle works along this dimension")
    out = [Track(flow.together(t.atoms.reshape(-1, factor * factor).T, "pixel shuffle"), t.zero) for t in layout[-3]]
    flow.set(node.outputs[0], [*layout[:-3], tuple(out), (), ()])


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, node: Node) -> None:
    """(N, c, H r, W r) -> (N, c r r, H, W)."""
    layout, factor = flow.get(node.args[0]), int(argument(node, 1, "downscale_factor"))
    for dim in layout[-2:]:
        flow.pin(dim, "pixel unshuffle works along this dimension")
    out = tuple(Track(np.repeat(t.atoms, factor * factor), t.zero) for t in layout[-3])
    flow.set(node.outputs[0], [*layout[:-3], out, (), ()])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, node: Node) -> None:
    """(N, g n, ...) -> (N, n g, ...): the i-th channels of all groups come to stand together, and go together."""
    layout, groups = flow.get(node.args[0]), int(node.args[1])
    out = []
    for track in layout[1]:
        table = track.atoms.reshape(groups, -1)
        flow.together(table, "shuffled between groups")
        out.append(Track(table.T.reshape(-1), track.zero))
    flow.set(node.outputs[0], [*copied(layout[:1]), tuple(out), *copied(layout[2:])])


@rule("im2col")
def unfold(flow: Flow, node: Node) -> None:
    """(N, C, H, W) -> (N, C kh kw, L): every channel becomes as many as a patch has pixels."""
    layout, kernel = flow.get(node.args[0]), list(node.args[1])
    for dim in layout[-2:]:
        flow.pin(dim, "unfolded along this dimension")
    out = tuple(Track(np.repeat(t.atoms, kernel[0] * kernel[1]), t.zero) for t in layout[-3])
    flow.set(node.outputs[0], [*copied(layout[:-3]), out, ()])


@rule("col2im")
def fold(flow: Flow, node: Node) -> None:
    """(N, C kh kw, L) -> (N, C, H, W): the pixels of a patch go together."""
    layout, kernel = flow.get(node.args[0]), list(node.args[2])
    flow.pin(layout[-1], "folded along this dimension")
    out = tuple(
        Track(flow.together(t.atoms.reshape(-1, kernel[0] * kernel[1]).T, "folded"), t.zero) for t in layout[-2]
    )
    flow.set(node.outputs[0], [*copied(layout[:-2]), out, (), ()])
