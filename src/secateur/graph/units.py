"""From equalities between atoms to units and groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from secateur.graph.capture import Place
from secateur.graph.labels import FIXED, Atoms, Equality, Layout, Pin, Track


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A parameter or buffer of the network.

    Attributes:
        name: its first name; `aliases` are the others where it is tied.
        shape: its shape.
        parameter: a parameter rather than a buffer.
        saved: it is in the state dict.
        first: its first atom in each dimension, -1 for those that can't shrink: of size one, or a kernel's.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    parameter: bool
    first: tuple[int, ...]
    saved: bool = True


@dataclass(frozen=True)
class AtomTable:
    """Where every atom lives: its tensor (number in `tensors`), dimension and index."""

    tensors: tuple[TensorInfo, ...]
    tensor: NDArray[np.int32]
    dim: NDArray[np.int32]
    index: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tensor)

    @cached_property
    def _ranges(self) -> list[list[Atoms | None]]:
        return [
            [np.arange(first, first + n) if first >= 0 else None for first, n in zip(t.first, t.shape, strict=True)]
            for t in self.tensors
        ]

    def layouts(self) -> Iterator[tuple[TensorInfo, Layout]]:
        """A fresh layout of every tensor; silenced slices of what is in the state dict are zero by definition."""
        for tensor, ranges in zip(self.tensors, self._ranges, strict=True):
            yield tensor, [() if atoms is None else (Track(atoms, tensor.saved),) for atoms in ranges]


def number_atoms(
    named: Sequence[tuple[str, tuple[str, ...], tuple[int, ...], bool]],
    channels: Mapping[str, int],
    unsaved: Collection[str] = (),
) -> AtomTable:
    """One atom for every index of every dimension of every tensor (name, aliases, shape, parameter), in order.

    Args:
        named: the tensors.
        channels: of some, how many dimensions are channels; the others are a kernel's and never shrink.
        unsaved: the names that are not in the state dict.
    """
    tensors, columns, at = [], [], 0
    for number, (name, aliases, shape, parameter) in enumerate(named):
        first = []
        for dim, size in enumerate(shape):
            if size > 1 and dim < channels.get(name, len(shape)):
                columns.append((number, dim, size))
                first.append(at)
                at += size
            else:
                first.append(-1)
        tensors.append(TensorInfo(name, aliases, shape, parameter, tuple(first), name not in unsaved))
    sizes = np.array([c[2] for c in columns], dtype=np.int64)
    return AtomTable(
        tuple(tensors),
        np.repeat(np.array([c[0] for c in columns], dtype=np.int32), sizes),
        np.repeat(np.array([c[1] for c in columns], dtype=np.int32), sizes),
        (np.arange(at) - np.repeat(np.cumsum(sizes) - sizes, sizes)).astype(np.int32),
    )


@dataclass(frozen=True)
class Units:
    """The solution.

    Attributes:
        of_atom: int64 per atom, its unit or -1.
        group_of: int64 per unit.
        reasons: per group, None or why it is pinned.
        places: per group, None or the operator that pins it.
        atoms, start: the atoms of unit u are atoms[start[u]:start[u + 1]].
    """

    of_atom: NDArray[np.int64]
    group_of: NDArray[np.int64]
    reasons: tuple[str | None, ...]
    places: tuple[Place | None, ...]
    atoms: NDArray[np.int64]
    start: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.group_of)


def solve(table: AtomTable, equalities: Sequence[Equality], pins: Sequence[Pin], structural: Sequence[Atoms]) -> Units:
    """Connected components of the equalities, ordered by their first atom, gathered into groups of equal signature.

    A component made of nothing but buffers and of dimensions that are no channels (kernels) is no unit.
    """
    n = len(table)
    distinct = {(id(pair.a), id(pair.b)): pair for pair in equalities}.values()  # the same in train mode, mostly
    a, b = _joined([pair.a for pair in distinct]), _joined([pair.b for pair in distinct])
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(n, n))
    count, component = connected_components(graph, directed=False)

    channel = np.array([t.parameter for t in table.tensors], dtype=bool)[table.tensor] if n else np.zeros(0, bool)
    for atoms in structural:
        channel[atoms[atoms >= 0]] = False
    is_unit = np.zeros(count, dtype=bool)
    is_unit[component[channel]] = True

    reason = np.full(count, len(pins), dtype=np.int64)  # the first pin of a component gives its reason
    pinned = _joined([pin.atoms for pin in pins[::-1]])  # of several, the last that is written counts
    reason[component[pinned]] = np.repeat(np.arange(len(pins))[::-1], [len(pin.atoms) for pin in pins[::-1]])
    texts = [pin.reason for pin in pins]
    # Pins with the same words are the same reason.
    words: dict[str, int] = {}
    same = np.array([words.setdefault(text, i) for i, text in enumerate(texts)] + [len(pins)], dtype=np.int64)
    cause, reason = reason, same[reason]

    signature = _signature(table, component, count)
    first = np.full(count, n, dtype=np.int64)
    first[component[::-1]] = np.arange(n)[::-1]
    chosen = np.flatnonzero(is_unit)
    chosen = chosen[np.argsort(first[chosen], kind="stable")]
    # A group: equal signature, equal reason. Numbered by first appearance.
    kinds = np.unique(signature[chosen], return_inverse=True)[1].astype(np.int64) * (len(pins) + 1) + reason[chosen]
    _, example, kind = np.unique(kinds, return_index=True, return_inverse=True)
    rank = np.empty(len(example), dtype=np.int64)
    rank[np.argsort(example)] = np.arange(len(example))
    group = rank[kind]
    order = np.argsort(group, kind="stable")
    chosen, group = chosen[order], group[order]
    number = np.full(count, FIXED, dtype=np.int64)
    number[chosen] = np.arange(len(chosen))
    of_atom = number[component] if n else np.zeros(0, np.int64)
    inside = np.flatnonzero(of_atom >= 0)
    by_unit = inside[np.argsort(of_atom[inside], kind="stable")]
    start = np.searchsorted(of_atom[by_unit], np.arange(len(chosen) + 1))
    starts = chosen[np.unique(group, return_index=True)[1]]
    reasons = tuple(texts[r] if r < len(texts) else None for r in reason[starts].tolist())
    causes = cause[starts]
    places = tuple(pins[i].place if i < len(pins) else None for i in causes)
    return Units(of_atom, group, reasons, places, by_unit, start)


def _joined(parts: Sequence[Atoms]) -> Atoms:
    return np.concatenate(parts) if len(parts) else np.zeros(0, np.int64)


def _signature(table: AtomTable, component: NDArray[np.int32], count: int) -> NDArray[np.uint64]:
    """A number per component that tells how many slices of which (tensor, dimension) it holds, whatever their order."""
    slot = table.tensor.astype(np.int64) * 16 + table.dim  # never goes down
    number = np.cumsum(np.diff(slot, prepend=slot[:1]) != 0)
    slots = int(number[-1]) + 1 if len(number) else 0
    weights = np.random.default_rng(0).integers(1, 2**63, size=slots, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    np.add.at(total, component, weights[number])
    return total
