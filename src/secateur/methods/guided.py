"""Find the scales that CAP guides: those next to a pooling, read off the traced graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import MethodError, nearest
from secateur.graph import Flow, Graph
from secateur.graph.capture import Node, Ref
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS

ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "silu",
    "gelu",
    "mish",
    "hardtanh",
    "hardswish",
    "relu6",
    "softplus",
    "tanh",
)
_TRANSPARENT = (
    *ACTIVATIONS, "native_dropout", "dropout", "clone", "detach", "alias", "_to_copy", "contiguous", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "upsample_bilinear2d", "upsample_nearest2d", "expand", "view", "unsqueeze",
    "squeeze", "_unsafe_view",
)  # fmt: skip
_POOLS = (
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool3d_with_indices",
    "avg_pool3d", "_adaptive_avg_pool3d", "avg_pool1d", "mean",
)  # fmt: skip
_GATES = ("sigmoid", "hardsigmoid", "_softmax")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a guided feature map can be read while training.

    Attributes:
        scale: name of the gamma that it guides.
        module: the module whose output is read.
        activation: what still has to be applied to that output; None if it is behind the activation already, or there
            is none.
    """

    scale: str
    module: str
    activation: Callable[[Tensor], Tensor] | None


class _Walk:
    """Who wrote and who reads every value of a recorded run."""

    def __init__(self, flow: Flow) -> None:
        self.nodes = flow.capture.nodes
        self.flow = flow
        self.writers: dict[int, list[int]] = {}
        self.readers: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for out in node.outputs:
                if out is not None:
                    self.writers.setdefault(out.value, []).append(i)
            for ref in node.inputs() if node.op != "detach" else ():  # autograd's own copies lead nowhere
                self.readers.setdefault(ref.value, []).append(i)

    def made_by(self, ref: Ref, before: int) -> int | None:
        """The last node that wrote a value before a given one."""
        return max((i for i in self.writers.get(ref.value, ()) if i < before), default=None)

    def back(self, ref: Ref, before: int) -> tuple[int, Node] | None:
        """The node that a value comes from, through operators that do not mix channels."""
        while True:
            at = self.made_by(ref, before)
            if at is None:
                return None
            node = self.nodes[at]
            if node.op.rstrip("_") not in _TRANSPARENT and node.op not in _TRANSPARENT:
                return at, node
            ref, before = next(node.inputs()), at

    def after(self, node: Node, at: int) -> tuple[int, Node] | None:
        """The first node that reads a node's first output."""
        out = node.outputs[0]
        i = min((j for j in self.readers.get(out.value, ()) if j > at), default=None) if out is not None else None
        return None if i is None else (i, self.nodes[i])

    def is_pool(self, node: Node) -> bool:
        """A pooling over space that keeps batch and channels."""
        if node.op not in _POOLS or node.outputs[0] is None:
            return False
        x, out = self.flow.shape(next(node.inputs())), self.flow.shape(node.outputs[0])
        return len(x) >= 3 and len(out) == len(x) and out[:2] == x[:2] and out != x

    def gates(self, at: int, node: Node, limit: int = 12) -> bool:
        """What a node makes ends in a gate (squeeze-and-excitation): a sigmoid within a few steps."""
        for _ in range(limit):
            following = self.after(node, at)
            if following is None:
                return False
            at, node = following
            if node.op.rstrip("_") in _GATES or node.op in _GATES:
                return True
            if node.op in ("cat", "add", "add_"):
                return False
        return False


def places(
    graph: Graph,
    position: str | list[str] | tuple[str, ...],
    side: str = "after",
    pseudo: Mapping[str, str] | None = None,
) -> list[Place]:
    """The places that CAP's guiding module reads.

    Args:
        graph: the traced network.
        position: "adjacent" (next to a pooling, global pooling inside a gate excepted; in a network with a pyramid, one
            feature map that is pooled to several sizes side by side, next to the pyramid's poolings alone), "all", or
            names of batch norms or of modules that hold them.
        side: for "adjacent": "after", the first convolution block behind each pooling, as the paper's figure shows;
            "both", the block whose output is pooled as well.
        pseudo: convolutions that have a pseudo scale (see `pseudo_scales`), and its name: places like batch norms.

    Raises:
        MethodError: there is no such place; says what there is.
    """
    kinds = "batch norm or pseudo scale" if pseudo else "batch norm"
    if side not in ("after", "both"):
        raise MethodError(f"side {side!r}; {nearest(side, ('after', 'both'))}")
    if isinstance(position, str) and position not in ("adjacent", "all"):
        position = [position]
    flow = graph.flows[0]
    walk = _Walk(flow)
    by_value = {value: name for name, value in reversed(flow.capture.names.items())}
    found: dict[str, Place] = {}
    names: list[str] = []
    pooled: dict[str, dict[int, int]] = {}  # scale -> the poolings that it is next to, and what each of them pools
    for at, node in enumerate(walk.nodes):
        weight = node.args[1] if node.op in BATCH_NORMS and len(node.args) > 1 else None
        name = by_value.get(weight.value) if isinstance(weight, Ref) else None
        if name is None and node.op in CONVOLUTIONS:
            name = (pseudo or {}).get(node.module)
        if name is None:
            continue
        names.append(name)
        if isinstance(position, str):
            poolings = _poolings(walk, at, node, side) if position == "adjacent" else {}
            pooled.setdefault(name, {}).update(poolings)
            wanted = position == "all" or bool(poolings)
        else:
            wanted = any(name == p or name.startswith(f"{p}.") for p in position)
        place = _place(walk, at, node, name) if wanted else None
        if place is not None:
            found.setdefault(name, place)
    if not isinstance(position, str):
        for p in position:
            if not any(name == p or name.startswith(f"{p}.") for name in names):
                raise MethodError(
                    f"position {p!r} names no {kinds}; {nearest(p, [n.rpartition('.')[0] for n in names])}"
                )
    if not found:
        raise MethodError(
            f"no {kinds} of {type(graph.model).__name__} follows a pooling; name the layers to guide: "
            "position=[...], or position='all'"
        )
    pyramids = _pyramids(pooled[name] for name in found) if position == "adjacent" else set()
    if pyramids:
        return [place for name, place in found.items() if pyramids & set(pooled[name].values())]
    return list(found.values())


def _pyramids(pooled: Iterable[Mapping[int, int]]) -> set[int]:
    """The values that several poolings pool; from pooling -> value."""
    sources = {pooling: source for mine in pooled for pooling, source in mine.items()}
    return {source for source, count in Counter(sources.values()).items() if count > 1}


def _poolings(walk: _Walk, at: int, node: Node, side: str) -> dict[int, int]:
    """The pooling that this convolution, or the one before this norm, reads and, on side "both", the one that pools its
    output; each with the value that it pools."""
    found = {}
    convolution = (at, node) if node.op in CONVOLUTIONS else walk.back(node.args[0], at)
    if convolution is not None and convolution[1].op in CONVOLUTIONS:
        source = walk.back(convolution[1].args[0], convolution[0])
        if source is not None and walk.is_pool(source[1]):
            out = source[1].outputs[0]
            everywhere = out is not None and all(n == 1 for n in walk.flow.shape(out)[2:])
            if not (everywhere and walk.gates(at, node)):
                found[source[0]] = next(source[1].inputs()).value
    if side == "both":
        step: tuple[int, Node] | None = (at, node)
        while step is not None and (step[0] == at or step[1].op.rstrip("_") in ACTIVATIONS):
            step = walk.after(step[1], step[0])
        if step is not None and walk.is_pool(step[1]):
            found[step[0]] = next(step[1].inputs()).value
    return found


def _place(walk: _Walk, at: int, node: Node, name: str) -> Place | None:
    """The module whose output is the norm's (or convolution's), and the activation to apply to it; None if no module's
    output is."""
    following = walk.after(node, at)
    activation = following[1] if following is not None and following[1].op.rstrip("_") in ACTIVATIONS else None
    returned = {value for module, values in walk.flow.capture.calls if module == node.module for value in values}
    inside = activation is not None and activation.module == node.module
    last = activation if inside and activation is not None else node
    if last.outputs[0] is None or last.outputs[0].value not in returned:
        return None
    return Place(name, node.module, None if inside or activation is None else _applied(activation))


def _applied(node: Node) -> Callable[[Tensor], Tensor]:
    """The activation as a function that leaves its argument alone, with the settings that it was called with."""
    operator: Any = getattr(torch.ops.aten, node.op.rstrip("_"))
    settings = node.args[1:]
    return lambda x: operator(x, *settings, **node.kwargs)
