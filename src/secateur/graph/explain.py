"""Why is this channel where it is? What a parameter, module or group is coupled to, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from secateur.graph.couplings import Coupling

if TYPE_CHECKING:
    from secateur.graph.network import Graph, Group


class Counts(Protocol):
    """What a network costs; `secateur.Cost` is one."""

    @property
    def params(self) -> int: ...

    @property
    def macs(self) -> int: ...


class CostOf(Protocol):
    """What is left without the given units (bool per unit); `secateur.costs.CostModel` is one."""

    def __call__(self, removed: NDArray[np.bool_] | None = None, /) -> Counts: ...


def explain(graph: Graph, name: str, cost: CostOf | None = None) -> str:
    """The text of `Graph.explain`."""
    groups = list(graph.find(name))
    # A pinned group may bear the name of its tensor, of which another group has another dimension.
    groups += [group for group in graph.groups if group not in groups and any(t == name for t, _ in group.members)]
    return "\n".join(line for group in groups for line in _about(graph, group, cost))


def described(coupling: Coupling, graph: Graph, group: int) -> str:
    """A coupling as one of its groups sees it: "concat in decoder (unet.py:65) beside encoder.stage1.conv2"."""
    beside = [graph.groups[other].name for other in coupling.groups if other != group]
    if coupling.reads:
        told = f"read by {coupling.place.where.removeprefix(' in ')}"
    elif coupling.joins and not beside and len(coupling.modules) > 1:
        told = f"{coupling.what} of {' and '.join(coupling.modules)}{coupling.place.where}"
    else:
        told = f"{coupling.what}{coupling.place.where}"
    return told + (f" beside {', '.join(beside)}" if beside else "")


def _about(graph: Graph, group: Group, cost: CostOf | None) -> Iterator[str]:
    state = "prunable" if len(group) > 1 else "it stays, since one unit must"
    yield f"{group.name}: {len(group)} unit{'s'[: len(group) > 1]}, {f'pinned: {group.why}' if group.why else state}"
    slices = Counter((graph.tensors[t].name, d) for t, d, _ in graph.slots(group.units[0]))
    tensors = [
        f"{tensor} dim {dim}" + (f", {count} slices a unit" if count > 1 else "")
        for (tensor, dim), count in slices.items()
    ]
    number = graph.groups.index(group)
    coupled = [described(coupling, graph, number) for coupling in graph.couplings if number in coupling.groups]
    for heading, lines in (("share", [_share(graph, group, cost)]), ("tensors", tensors), ("coupled", coupled)):
        for index, line in enumerate(lines):
            yield f"    {'' if index else heading:9}{line}"


def _share(graph: Graph, group: Group, cost: CostOf | None) -> str:
    """What would go with the whole group and with one of its units."""
    one, whole = np.zeros(graph.units, dtype=bool), np.zeros(graph.units, dtype=bool)
    one[group.units[0]] = whole[list(group.units)] = True
    counts: list[tuple[str, int, int, int]]
    if cost is None:
        counts = [("parameters", _parameters(graph, None), _parameters(graph, one), _parameters(graph, whole))]
    else:
        total, few, rest = cost(), cost(one), cost(whole)
        counts = [("parameters", total.params, few.params, rest.params), ("MACs", total.macs, few.macs, rest.macs)]
    shares = " and ".join(f"{100 * (1 - less / full):.1f} % of the {what}" for what, full, _, less in counts if full)
    units = " and ".join(f"{full - less:,} {what}" for what, full, less, _ in counts)
    return f"{shares}; one unit: {units}"


def _parameters(graph: Graph, removed: NDArray[np.bool_] | None) -> int:
    """How many trainable parameters there are without the given units."""
    slices = {} if removed is None else graph.removed_slices(removed)
    trainable = {name for name, parameter in graph.model.named_parameters() if parameter.requires_grad}
    total = 0
    for number, tensor in enumerate(graph.tensors):
        if tensor.name in trainable:
            gone = slices.get(number, {})
            total += int(np.prod([size - len(gone.get(dim, ())) for dim, size in enumerate(tensor.shape)]))
    return total
