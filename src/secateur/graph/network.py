"""The graph of a network: which channels go together, which can't go, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from secateur.errors import ModelError, nearest
from secateur.graph.attributes import Number, output_dim, values_after
from secateur.graph.capture import Place
from secateur.graph.couplings import Coupling, couplings
from secateur.graph.explain import CostOf, explain
from secateur.graph.flow import Flow
from secateur.graph.inside import named_modules_of
from secateur.graph.units import AtomTable, TensorInfo, Units


@dataclass(frozen=True, slots=True)
class Group:
    """A family of interchangeable units: all channels of one chain.

    Attributes:
        name: the module that makes these channels.
        units: unit ids.
        members: the (tensor name, dimension) pairs that every unit has slices in.
        pinned: None, or why these units are never removed.
        place: of a pinned group the operator that forbids it, if one does.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
        >>> for group in secateur.trace(net, torch.zeros(1, 3, 8, 8)).groups:
        ...     print(group.name, len(group), group.pinned)  # doctest: +ELLIPSIS
        0 8 None
        0.weight 3 input of a convolution that is fixed in 0 ...
        1 2 output of the network
    """

    name: str
    units: tuple[int, ...]
    members: tuple[tuple[str, int], ...]
    pinned: str | None
    place: Place | None = None

    @property
    def why(self) -> str | None:
        """Why it is pinned, with the operator, module and source line where the reason does not name them itself."""
        if self.pinned is None or self.place is None or self.pinned.endswith(self.place.where):
            return self.pinned
        return f"{self.pinned}: {self.place}"

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True, eq=False)
class Graph:
    """What `trace` found out about a network.

    Attributes:
        model: the network that was traced; its tensors are read when scores are computed.
        example_inputs: what it was run on.
        flows: the labelled runs, the first in eval mode.
        table: every atom's tensor, dimension and index.
        solution: units and groups as arrays.
        numbers: module attributes that depend on channel counts.
        notes: what could not be traced as wished.

    Examples:
        >>> import torch, secateur
        >>> conv = torch.nn.Conv2d
        >>> net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.ReLU(), conv(8, 4, 3), conv(4, 2, 1))
        >>> graph = secateur.trace(net, torch.zeros(1, 3, 8, 8))
        >>> graph.units, [group.name for group in graph.groups if group.pinned is None]
        (17, ['0', '2'])
        >>> # What goes with the second unit, a channel of the first convolution:
        >>> [(graph.tensors[tensor].name, dim, index) for tensor, dim, index in graph.slots(1)]
        [('0.weight', 0, 1), ('0.bias', 0, 1), ('2.weight', 1, 1)]
    """

    model: nn.Module
    example_inputs: Any
    flows: tuple[Flow, ...]
    table: AtomTable
    solution: Units
    numbers: tuple[Number, ...]
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Number of units; their ids are 0 .. units - 1, the units of a group one after the other."""
        return len(self.solution)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every parameter and buffer, in the order in which forward uses them."""
        return self.table.tensors

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups, in the order of the network."""
        ends = np.searchsorted(self.solution.group_of, np.arange(len(self.solution.reasons) + 1))
        modules, shapes = dict(named_modules_of(self.model)), {tensor.name: tensor for tensor in self.tensors}
        groups, used = [], Counter[str]()
        for number, reason in enumerate(self.solution.reasons):
            units = tuple(range(int(ends[number]), int(ends[number + 1])))
            slots = dict.fromkeys((self.tensors[t].name, d) for t, d, _ in self.slots(units[0]))
            members = tuple(slots)
            name = _name(members, shapes, modules)
            used[name] += 1
            name = name if used[name] == 1 else f"{name}#{used[name]}"
            groups.append(Group(name, units, members, reason, self.solution.places[number]))
        return tuple(groups)

    def slots(self, unit: int) -> list[tuple[int, int, int]]:
        """The slices of a unit: (tensor number, dimension, index)."""
        atoms = self.solution.atoms[self.solution.start[unit] : self.solution.start[unit + 1]]
        return list(
            zip(
                self.table.tensor[atoms].tolist(),
                self.table.dim[atoms].tolist(),
                self.table.index[atoms].tolist(),
                strict=True,
            )
        )

    @cached_property
    def prunable(self) -> NDArray[np.bool_]:
        """bool per unit: not pinned, and not alone in its group, which would leave nothing."""
        free = np.array([reason is None for reason in self.solution.reasons], dtype=bool)
        sizes = np.bincount(self.solution.group_of, minlength=len(free))
        return (free & (sizes > 1))[self.solution.group_of] if self.units else np.zeros(0, dtype=bool)

    @cached_property
    def residual(self) -> NDArray[np.bool_]:
        """bool per unit: it takes part in a sum of two feature maps (a residual connection)."""
        marks = np.zeros(self.units, dtype=bool)
        for flow in self.flows:
            for atoms in flow.summed:
                units = self.solution.of_atom[atoms]
                marks[units[units >= 0]] = True
        return marks

    def removed_atoms(self, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool per atom, from bool per unit."""
        return (self.solution.of_atom >= 0) & removed[self.solution.of_atom]

    def removed_slices(self, removed: NDArray[np.bool_]) -> dict[int, dict[int, NDArray[np.int64]]]:
        """What goes: tensor number -> dimension -> sorted indices."""
        atoms = np.flatnonzero(self.removed_atoms(removed))
        out: dict[int, dict[int, NDArray[np.int64]]] = {}
        if not len(atoms):
            return out
        slot = self.table.tensor[atoms].astype(np.int64) * 16 + self.table.dim[atoms]
        # Atoms are numbered by tensor, dimension, index.
        for part in np.split(atoms, np.flatnonzero(np.diff(slot)) + 1):
            tensor, dim = int(self.table.tensor[part[0]]), int(self.table.dim[part[0]])
            out.setdefault(tensor, {})[dim] = self.table.index[part].astype(np.int64)
        return out

    def numbers_after(self, removed: NDArray[np.bool_]) -> dict[str, dict[str, int]]:
        """Module -> attribute -> value, for those that change."""
        return values_after(self.numbers, self.removed_atoms(removed))

    @cached_property
    def couplings(self) -> tuple[Coupling, ...]:
        """Every operator that makes channels go together, in the order in which they are called."""
        return couplings(self)

    def find(self, name: str) -> tuple[Group, ...]:
        """The groups that a group's, parameter's or module's name stands for.

        Of a module without parameters, such as a ReLU, those whose channels run through it.

        Raises:
            ModelError: nothing in the network has this name, or what has it holds no channels.
        """
        exact = tuple(g for g in self.groups if g.name == name)
        if exact:
            return exact
        tensor = next((t.name for t in self.tensors if name in t.aliases), name)
        prefix = f"{name}." if name else ""
        found = tuple(g for g in self.groups if any(t == tensor or t.startswith(prefix) for t, _ in g.members))
        found = found or self._running_through(name)
        if not found:
            modules = {n for n, _ in named_modules_of(self.model) if n}
            tensors = {n for t in self.tensors for n in (t.name, *t.aliases)}
            known = {g.name for g in self.groups} | modules | tensors
            network = type(self.model).__name__
            if name in known:
                raise ModelError(
                    f"{name!r} of {network} holds no channels, and none run through it; "
                    "expected the name of a group, or of a parameter or module that has or makes channels"
                )
            raise ModelError(f"nothing in {network} is called {name!r}; {nearest(name, known, shown=12)}")
        return found

    def _running_through(self, module: str) -> tuple[Group, ...]:
        """The groups whose channels the operators of a module pass on."""
        numbers = set[int]()
        for flow in self.flows:
            for node in flow.capture.nodes:
                if f"{node.module}.".startswith(f"{module}."):
                    tracks = [t for out in node.outputs if out is not None for dim in flow.get(out) for t in dim]
                    for track in tracks:
                        units = self.solution.of_atom[track.atoms[track.atoms >= 0]]
                        numbers.update(self.solution.group_of[units[units >= 0]].tolist())
        return tuple(self.groups[number] for number in sorted(numbers))

    def explain(self, name: str, cost: CostOf | None = None) -> str:
        """What a parameter, module or group is coupled to, through which operators, its share, and why it is pinned.

        Args:
            name: of a parameter, module or group; a near miss is answered with the nearest name there is.
            cost: a `secateur.costs.CostModel` of this graph, for the share of the MACs beside that of the parameters.

        Raises:
            ModelError: as for `find`.

        Examples:
            >>> import torch, secateur
            >>> conv = torch.nn.Conv2d
            >>> net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.ReLU(), conv(8, 8, 3, groups=8), conv(8, 2, 1))
            >>> graph = secateur.trace(net, torch.zeros(1, 3, 16, 16))
            >>> # 1 is the ReLU: told is what runs through it.
            >>> print(graph.explain("1"))  # doctest: +ELLIPSIS
            0: 8 units, prunable
                share    99.4 % of the parameters; one unit: 40 parameters
                tensors  0.weight dim 0
                         0.bias dim 0
                         2.weight dim 0
                         2.bias dim 0
                         3.weight dim 1
                coupled  depthwise convolution of 0 and 2 in 2 ...
                         read by 3 ...
            >>> graph.explain("0.wieght")  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            secateur.errors.ModelError: nothing in Sequential is called '0.wieght'; known: ... did you mean '0.weight'?
        """
        return explain(self, name, cost)

    def __str__(self) -> str:
        rows = [(g.name, str(len(g)), str(len(g.members)), _state(g)) for g in self.groups]
        head = ("group", "units", "members", "state")
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)) + f"  {row[3]}"
            for row in [head, *rows]
        ]
        free = int(self.prunable.sum())
        lines.append(f"{self.units} units in {len(self.groups)} groups; {free} prunable")
        for flow in self.flows[:1]:
            lines.extend(f"no rule for {where}" for where in flow.unknown.values())
        return "\n".join([*lines, *self.notes])


def _state(group: Group) -> str:
    if group.pinned:
        return f"pinned: {group.pinned}"
    return "prunable" if len(group) > 1 else "a single unit, which stays"


def _name(
    members: Sequence[tuple[str, int]], shapes: Mapping[str, TensorInfo], modules: Mapping[str, nn.Module]
) -> str:
    """The module whose weight makes these channels; else the first tensor."""
    for tensor, dim in members:
        if len(shapes[tensor].shape) >= 2 and dim == output_dim(modules, tensor):
            return tensor.rpartition(".")[0] or tensor
    return members[0][0]
