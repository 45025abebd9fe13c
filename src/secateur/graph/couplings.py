"""What couples channels: the operators that make tensors of different modules one group, read off the labelled runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from secateur.graph.capture import Place
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import Atoms

if TYPE_CHECKING:
    from secateur.graph.network import Graph

_CHANNEL_BY_CHANNEL = ("batch norm", "group norm", "weight norm", "element by element (_prelu_kernel)")


@dataclass(frozen=True, slots=True)
class Coupling:
    """One operator that makes channels go together, or lays those of several groups side by side.

    Attributes:
        what: "residual sum", "concat", "depthwise convolution", "input of a convolution" ...
        place: the operator, the module that was running, the line.
        groups: numbers of the groups whose channels take part.
        modules: whose tensors meet, in the order of the network.
        order: when it is called: in the eval run (0) or only in the train run (1), and the number of the operator.
    """

    what: str
    place: Place
    groups: tuple[int, ...]
    modules: tuple[str, ...]
    order: tuple[int, int]

    @property
    def own(self) -> bool:
        """A layer meets its own parameters."""
        return self.place.module in self.modules

    @property
    def reads(self) -> bool:
        """The channels meet the inputs of a layer's weight."""
        return self.what.startswith("input of a ") or (self.own and self.what == "summed over in a matrix product")

    @property
    def joins(self) -> bool:
        """More than a layer that reads its input or scales it channel by channel: this is what makes groups large."""
        layer = self.own and (self.what in _CHANNEL_BY_CHANNEL or self.what.startswith("bias of a "))
        return not self.reads and not layer


def couplings(graph: Graph) -> tuple[Coupling, ...]:
    """All couplings, in the order of the run; the same between the same groups at the same place counts once."""
    group_of = np.append(graph.solution.group_of, -1)[graph.solution.of_atom]  # by atom
    owners = [tensor.name.rpartition(".")[0] for tensor in graph.tensors]
    # (what, module, source, groups) -> operator, order, tensors. Train mode has other names for some operators.
    found: dict[tuple[str, str, str, tuple[int, ...]], tuple[str, tuple[int, int], set[int]]] = {}
    for flow in graph.flows:
        for what, index, atoms in _events(flow):
            node = flow.capture.nodes[index]
            groups = tuple(int(group) for group in np.unique(group_of[atoms]) if group >= 0)
            if groups:
                order = (int(flow.capture.training), index)
                key = (what, node.module, node.source, groups)
                tensors = found.setdefault(key, (node.op.rstrip("_"), order, set()))[2]
                tensors.update(graph.table.tensor[atoms].tolist())
    out = []
    for (what, module, source, groups), (operator, order, tensors) in found.items():
        modules = tuple(dict.fromkeys(owners[tensor] for tensor in sorted(tensors)))
        if modules != (module,) or not what.startswith("bias of a "):
            out.append(Coupling(what, Place(operator, module, source), groups, modules, order))
    return tuple(sorted(out, key=lambda coupling: coupling.order))


def _events(flow: Flow) -> Iterator[tuple[str, int, Atoms]]:
    """What was said, by which operator, and the atoms concerned."""
    for equality in flow.equalities:
        if not np.array_equal(equality.a, equality.b):
            yield equality.reason, equality.node, np.concatenate([equality.a, equality.b])
    # A concatenation equates nothing, but whoever reads its output reads all of its parts.
    for index, node in enumerate(flow.capture.nodes):
        out = node.outputs[0] if node.op in ("cat", "concat") else None
        if out is not None and len(list(node.inputs())) > 1:
            for track in flow.get(out)[argument(node, 1, "dim", 0)]:
                yield "concat", index, track.atoms[track.atoms >= 0]
