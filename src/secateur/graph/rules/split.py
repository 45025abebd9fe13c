"""Parts of a tensor: slices, splits, chunks, single indices."""

from __future__ import annotations

from secateur.graph.capture import Node
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import Track, copied
from secateur.graph.rules.table import rule


@rule("slice")
def slice_(flow: Flow, node: Node) -> None:
    x, out = node.args[0], node.outputs[0]
    if out is None:
        return
    shape = flow.shape(x)
    d = argument(node, 1, "dim", 0) % len(shape)
    size = shape[d]
    first, last = argument(node, 2, "start"), argument(node, 3, "end")
    start, stop, step = slice(first, last, argument(node, 4, "step", 1)).indices(size)
    layout = list(flow.get(x))
    if (start, stop, step) != (0, size, 1):
        if step != 1:
            flow.sliced(x, d, start, stop, step)
        elif not all(_follows(track, first, last, start, stop) for track in layout[d]):
            flow.sliced(x, d, start, stop)
        layout[d] = tuple(track.view(track.atoms[start:stop:step]) for track in layout[d])
    flow.set(out, layout)


def _follows(track: Track, first: int | None, last: int | None, start: int, stop: int) -> bool:
    """A slice stays right when channels go: it has none, or none stand between its ends and where these count from."""
    live = track.atoms >= 0
    if not live[start:stop].any():  # FREE: about to be written into
        return True
    begin = live[start:] if first is not None and first < 0 else live[:start]
    end = live[stop:] if last is None or last < 0 or last >= len(live) else live[:stop]
    return not (begin.any() or end.any())


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def split(flow: Flow, node: Node) -> None:
    """Equal parts lose equally many: the i-th of each go together. Unequal sizes are in the code and can't follow."""
    x = node.args[0]
    shape = flow.shape(x)
    d = argument(node, 2, "dim", 0) % len(shape)
    parts = [out for out in node.outputs if out is not None]
    sizes = [flow.shape(out)[d] for out in parts]
    layout = flow.get(x)
    if len(parts) > 1:
        for track in layout[d]:
            if len(set(sizes)) == 1 and sizes[0] > 0:
                flow.together(track.atoms.reshape(len(parts), -1), f"{node.op} into equal parts")
            else:
                flow.pin(track, f"{node.op} into unequal parts {sizes}")
    start = 0
    for out, size in zip(parts, sizes, strict=True):
        piece: tuple[Track, ...] = tuple(track.view(track.atoms[start : start + size]) for track in layout[d])
        flow.set(out, [*layout[:d], piece, *layout[d + 1 :]])
        start += size


@rule("select", "unbind")
def single_index(flow: Flow, node: Node) -> None:
    """One index, or each for itself: the dimension disappears."""
    x = node.args[0]
    d = argument(node, 1, "dim", 0) % len(flow.shape(x))
    layout = flow.get(x)
    flow.pin(layout[d], f"{node.op} along this dimension")
    for out in node.outputs:
        if out is not None:
            flow.set(out, [*layout[:d], *layout[d + 1 :]])
            flow.places[out.value] = [*flow.places.get(x.value, ()), *layout[d]]


@rule("glu")
def glu(flow: Flow, node: Node) -> None:
    """First half times the sigmoid of the second: the i-th of each go together."""
    layout = list(flow.get(node.args[0]))
    d = argument(node, 1, "dim", -1) % len(layout)
    half = []
    for track in layout[d]:
        table = track.atoms.reshape(2, -1)
        half.append(Track(flow.together(table, "halves of a gated linear unit"), track.zero))
    flow.set(node.outputs[0], [*copied(layout[:d]), tuple(half), *copied(layout[d + 1 :])])
