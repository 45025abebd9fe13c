"""What a picture of the couplings shows: modules and joining operators in the order of the network, and the groups that
run through them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from secateur.graph import Coupling, Graph, output_dim

READS, JOINS, CARRIES, MAKES = "reads", "joins", "carries", "makes"

PINNED = "#9aa0a6"
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17a2b8", "#8c564b", "#e377c2", "#6b8e23", "#003f8a")


@dataclass
class Stop:
    """A module, or an operator between modules, where groups meet.

    Attributes:
        name: the module's name, or what the operator does and where.
        module: whether it is a module.
        section: the module that it is in.
        title: all that there is to say about it.
        marks: group number -> what it does with the group's channels: READS, JOINS, CARRIES (channel by channel) or
            MAKES them.
        notes: how a module joins channels itself.
    """

    name: str
    module: bool
    section: str
    title: str
    marks: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def stops(graph: Graph) -> list[Stop]:
    """Every module that has tensors and every operator that joins channels outside of one, as they are first called."""
    modules = dict(graph.model.named_modules())
    network = type(graph.model).__name__
    placed: list[tuple[tuple[int, int], Stop]] = []
    by_name: dict[str, Stop] = {}
    for name, order in _first_calls(graph).items():
        title = f"{name or network}: {type(modules[name]).__name__}"
        by_name[name] = Stop(name or network, True, name.rpartition(".")[0], title)
        placed.append((order, by_name[name]))
    _mark_members(graph, modules, by_name)
    for coupling in graph.couplings:
        if coupling.joins:
            layer = by_name.get(coupling.place.module)
            if layer is not None and not any(modules[coupling.place.module].children()):
                if coupling.what not in layer.notes:
                    layer.title += f"; {coupling.what}"
                    layer.notes.append(coupling.what)
                for group in coupling.groups:
                    layer.marks.setdefault(group, JOINS)
            else:
                placed.append((coupling.order, _operator(coupling, network)))
    return [stop for _, stop in sorted(placed, key=lambda item: item[0])]


def colours(graph: Graph, rows: list[Stop]) -> list[str]:
    """A colour per group: grey if pinned, else none that a group beside it has, as far as there are enough."""
    spans = []
    for number in range(len(graph.groups)):
        at = [place for place, row in enumerate(rows) if number in row.marks]
        spans.append((at[0], at[-1]))
    out: list[str] = []
    for number, (group, (first, last)) in enumerate(zip(graph.groups, spans, strict=True)):
        beside = {out[other] for other in range(number) if spans[other][0] <= last and first <= spans[other][1]}
        turned = [COLOURS[(number + i) % len(COLOURS)] for i in range(len(COLOURS))]
        free = [colour for colour in turned if colour not in beside]
        out.append(PINNED if group.pinned else (free or turned)[0])
    return out


def _first_calls(graph: Graph) -> dict[str, tuple[int, int]]:
    """Module -> run and number of the operator that first uses one of its tensors; those never used at the end."""
    calls: dict[str, tuple[int, int]] = {}
    for flow in graph.flows:
        names: dict[int, list[str]] = {}
        for name, value in flow.capture.names.items():
            names.setdefault(value, []).append(name.rpartition(".")[0])
        for index, node in enumerate(flow.capture.nodes):
            for ref in node.inputs():
                owners = names.get(ref.value, [])
                # A tied weight is used where its own module runs.
                for owner in [node.module] if node.module in owners else owners:
                    calls.setdefault(owner, (int(flow.capture.training), index))
    for number, name in enumerate(name for tensor in graph.tensors for name in (tensor.name, *tensor.aliases)):
        calls.setdefault(name.rpartition(".")[0], (2, number))
    return calls


def _mark_members(graph: Graph, modules: dict[str, nn.Module], by_name: dict[str, Stop]) -> None:
    """Who makes, reads and carries the channels of every group."""
    tensors = {tensor.name: tensor for tensor in graph.tensors}
    for number, group in enumerate(graph.groups):
        for tensor, dim in group.members:
            info = tensors[tensor]
            mark = CARRIES if len(info.shape) < 2 else MAKES if dim == output_dim(modules, tensor) else READS
            for name in (tensor, *info.aliases):
                marks = by_name[name.rpartition(".")[0]].marks
                if marks.get(number) != MAKES and (mark != CARRIES or number not in marks):
                    marks[number] = mark


def _operator(coupling: Coupling, network: str) -> Stop:
    name = f"{coupling.what} in {coupling.place.module or network}"
    marks = dict.fromkeys(coupling.groups, JOINS)
    return Stop(name, False, coupling.place.module, f"{name}: {coupling.place}", marks)
