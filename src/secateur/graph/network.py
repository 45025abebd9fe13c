"""The graph of a network: which channels go together, which can't go, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from secateur.errors import ModelError, nearest
from secateur.graph.attributes import Number
from secateur.graph.flow import Flow
from secateur.graph.units import AtomTable, TensorInfo, Units


@dataclass(frozen=True, slots=True)
class Group:
    """A family of interchangeable units: all channels of one chain.

    Attributes:
        name: the module that makes these channels.
        units: unit ids.
        members: the (tensor name, dimension) pairs that every unit has slices in.
        pinned: None, or why these units are never removed.
    """

    name: str
    units: tuple[int, ...]
    members: tuple[tuple[str, int], ...]
    pinned: str | None

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
        groups, used = [], Counter[str]()
        for number, reason in enumerate(self.solution.reasons):
            units = tuple(range(int(ends[number]), int(ends[number + 1])))
            slots = dict.fromkeys((self.tensors[t].name, d) for t, d, _ in self.slots(units[0]))
            members = tuple(slots)
            name = _name(members, {t.name: t for t in self.tensors})
            used[name] += 1
            groups.append(Group(name if used[name] == 1 else f"{name}#{used[name]}", units, members, reason))
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
        gone = self.removed_atoms(removed)
        out: dict[str, dict[str, int]] = {}
        for number in self.numbers:
            atoms = number.atoms[number.atoms >= 0]
            lost = int(gone[atoms].sum())
            if lost:
                value = (len(number.atoms) - lost) * number.times // number.each
                out.setdefault(number.module, {})[number.attribute] = value
        return out

    def find(self, name: str) -> tuple[Group, ...]:
        """The groups that a group's, parameter's or module's name stands for.

        Raises:
            ModelError: nothing in the network has this name.
        """
        exact = tuple(g for g in self.groups if g.name == name)
        if exact:
            return exact
        prefix = f"{name}." if name else ""
        found = tuple(g for g in self.groups if any(t == name or t.startswith(prefix) for t, _ in g.members))
        if not found:
            known = {g.name for g in self.groups} | {n for n, _ in self.model.named_modules() if n}
            raise ModelError(f"nothing in {type(self.model).__name__} is called {name!r}; {nearest(name, known)}")
        return found

    def explain(self, name: str) -> str:
        """What a parameter, module or group is coupled to, and why it is pinned."""
        lines = []
        for group in self.find(name):
            state = f"{len(group)} units, prunable" if _state(group) == "prunable" else _state(group)
            lines.append(f"{group.name}: {state}")
            counts = Counter((self.tensors[t].name, d) for t, d, _ in self.slots(group.units[0]))
            for (tensor, dim), count in counts.items():
                each = f", {count} slices a unit" if count > 1 else ""
                lines.append(f"    {tensor} dim {dim}{each}")
        return "\n".join(lines)

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


def _name(members: Sequence[tuple[str, int]], tensors: dict[str, TensorInfo]) -> str:
    """The module whose weight makes these channels; else the first tensor."""
    for tensor, dim in members:
        if dim == 0 and len(tensors[tensor].shape) >= 2:
            return tensor.rpartition(".")[0] or tensor
    return members[0][0]
