"""Whose channel is every element? Labels that flow through the recorded operators, and the equalities they meet.

A rule per operator moves layouts along (see `labels`), equates atoms that must go together, and pins what can't be
removed. Nothing is guessed: an operator without a rule pins all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch

from secateur.graph.capture import Capture, Node, Ref
from secateur.graph.labels import (
    FIXED,
    FREE,
    Atoms,
    Choice,
    Dim,
    Equality,
    Layout,
    Pin,
    Track,
    change_alike,
    finesse,
)  # fmt: skip

Rule = Callable[["Flow", Node], None]


@dataclass
class Flow:
    """The labels of one capture and all that was learnt from them.

    Args:
        capture: the recorded run.
        layouts: the layout of every parameter and buffer, by its value in the capture.
        modules: the network's modules by name, for numbers that they keep.
        choices: for reshapes that leave a choice, how often another was asked for (by node number; 0 if absent).
    """

    capture: Capture
    layouts: dict[int, Layout]
    modules: Mapping[str, Any] = field(default_factory=dict)
    choices: dict[int, int] = field(default_factory=dict)
    equalities: list[Equality] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    structural: list[Atoms] = field(default_factory=list)  # dimensions that are no channels: kernels, vocabularies
    summed: list[Atoms] = field(default_factory=list)  # atoms that take part in a sum of two feature maps
    taken: list[Choice] = field(default_factory=list)
    numbers: dict[tuple[str, str], tuple[Atoms, int]] = field(default_factory=dict)  # (module, attribute): atoms, each
    unknown: dict[str, str] = field(default_factory=dict)  # operator without a rule -> where it was met first
    node: Node = None  # type: ignore[assignment]  # the one at work
    index: int = 0
    places: dict[int, list[Track]] = field(default_factory=dict)  # value -> tracks of which it is a view of one index
    _slices: dict[tuple[int, int], dict[tuple[int, int, int], int]] = field(default_factory=dict)  # -> span -> node

    def walk(self, rules: Mapping[str, Rule], pointwise: Rule) -> None:
        """Apply the rules to every node, then settle what can only be told at the end.

        Args:
            rules: by operator.
            pointwise: the rule of operators that have none and work element by element.
        """
        for index, node in enumerate(self.capture.nodes):
            self.index, self.node = index, node
            rule = rules.get(self.node.op) or (pointwise if is_pointwise(self.node.target) else None)
            if rule is None:
                self.barrier(f"no rule for {self.node.op}")
                self.unknown.setdefault(self.node.op, str(self.node))
            else:
                try:
                    rule(self, self.node)
                except Exception as error:  # a use of the operator that its rule did not think of
                    self.barrier(f"the rule for {self.node.op} can't read this use of it ({type(error).__name__})")
                    self.unknown.setdefault(self.node.op, str(self.node))
        self._settle_slices()
        makers = {out.value: node for node in self.capture.nodes for out in node.outputs if out is not None}
        for value in self.capture.outputs:
            place = makers[value].place if value in makers else None
            for dim in self.layouts.get(value, []):
                self.pins.extend(Pin(t.live_atoms(), "output of the network", place) for t in dim if t.live)

    # -- reading and writing layouts ----------------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> set[int]:
        """The values of parameters and buffers."""
        return {*self.capture.names.values()}

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return self.capture.shapes[ref.value]

    def get(self, ref: Ref) -> Layout:
        layout = self.layouts.get(ref.value)
        if layout is None:  # the network's input, or a constant made outside the recorded operators
            layout = self.layouts[ref.value] = [() for _ in self.shape(ref)]
        return layout

    def set(self, ref: Ref | None, layout: Layout) -> None:
        if ref is None:
            return
        shape = self.shape(ref)
        assert len(layout) == len(shape), f"{self.node}: layout of rank {len(layout)} for shape {shape}"
        for dim, size in zip(layout, shape, strict=True):
            assert all(len(track.atoms) == size for track in dim), f"{self.node}: a track does not fit shape {shape}"
        self.layouts[ref.value] = [
            tuple([t for t in dim if t.whole or (t.atoms != FIXED).any()]) if dim else dim for dim in layout
        ]

    def write(self, ref: Ref, layout: Layout) -> None:
        """The result of an in-place operator: what was FREE becomes what was written; equalities are already told."""
        for mine, new in zip(self.get(ref), layout, strict=True):
            for track in mine:
                hole = track.atoms == FREE
                if hole.any():
                    track.atoms[hole] = new[0].atoms[hole] if new else FIXED
            if not all(track.zero for track in new):
                for track in mine:
                    track.lose_zero()
        self.wrote_constants(ref)

    def wrote_constants(self, ref: Ref) -> None:
        """What is FREE still and was written into at chosen places is not the same everywhere any more."""
        spoilt = list(self.places.get(ref.value, ()))
        for dim in self.get(ref):
            for track in dim:
                parent = track.parent if (track.atoms == FREE).any() else None
                while parent is not None:
                    if len(parent.atoms) != len(track.atoms):
                        spoilt.append(parent)
                    track, parent = parent, parent.parent
        for track in spoilt:
            track.atoms[track.atoms == FREE] = FIXED

    # -- what rules tell ----------------------------------------------------------------------------------------------

    def because(self, reason: str) -> str:
        return f"{reason}{self.node.place.where}"

    def pin(self, what: Dim | Track | Atoms, reason: str) -> None:
        if isinstance(what, np.ndarray):
            parts = [what[what >= 0]] if what.size else []
        else:
            parts = [track.live_atoms() for track in ((what,) if isinstance(what, Track) else what)]
        for atoms in parts:
            if atoms.size:
                self.pins.append(Pin(atoms, self.because(reason), self.node.place))

    def meet(self, a: Track, b: Track, reason: str) -> None:
        """As `equate`, of tracks."""
        if not (a.whole and b.whole):
            self.equate(a.atoms, b.atoms, reason)
        elif a.atoms is not b.atoms:
            self.equalities.append(Equality(a.atoms, b.atoms, reason, self.index))

    def equate(self, a: Atoms, b: Atoms, reason: str) -> None:
        """a[i] and b[i] go together. What meets a FIXED index is pinned for `reason`; FREE meets anything."""
        both = (a >= 0) & (b >= 0)
        if both.any():
            self.equalities.append(Equality(a[both], b[both], reason, self.index))
        self.pin(a[b == FIXED], f"{reason}, beside a fixed index")
        self.pin(b[a == FIXED], f"{reason}, beside a fixed index")

    def barrier(self, reason: str) -> None:
        """Pin all that the node at work touches; its outputs carry nothing, and what it writes into follows nothing."""
        written = {out.value for out in self.node.outputs if out is not None}
        for ref in self.node.refs:
            for dim in self.get(ref):
                self.pin(dim, reason)
                if ref.value in written:
                    for track in dim:
                        track.lose_zero()
                        track.atoms[track.atoms == FREE] = FIXED
        for out in self.node.outputs:
            if out is not None and not any(out.value == ref.value for ref in self.node.refs):
                self.set(out, [() for _ in self.shape(out)])

    def together(self, table: Atoms, reason: str) -> Atoms:
        """The columns of a table (parts, n) go together: the i-th of each part. Returns the first row, for all."""
        first = table[0]
        for row in table[1:]:
            self.equate(first, row, reason)
        return np.where(first >= 0, first, table.max(axis=0))

    def choose(self, options: int, atoms: Atoms, sizes: tuple[int, ...]) -> int:
        """Which of several exact ways to take at this node: in order, then once more in reverse, then the first."""
        asked = self.choices.get(self.index, 0)
        option = min(asked, 2 * options - 1 - asked) if asked < 2 * options else 0
        self.taken.append(Choice(self.index, options, option, atoms[atoms >= 0], (self.node.module, sizes)))
        return option

    def follow(self, attribute: str, value: int, track: Track, each: int, weight: Ref | None = None) -> bool:
        """A number (of groups) must go down with these channels: the module at work keeps it, or the weight's owner.

        Returns:
            Whether such a module is known.
        """
        names = () if weight is None else (n for n, number in self.capture.names.items() if number == weight.value)
        for name in (self.node.module, *(n.rpartition(".")[0] for n in names)):
            known = getattr(self.modules.get(name), attribute, None)
            if isinstance(known, int) and known == value:
                self.numbers[name, attribute] = (track.atoms, each)
                return True
        return False

    # -- merging dimensions -------------------------------------------------------------------------------------------

    def single(self, dim: Dim, reason: str) -> Track | None:
        """The only track of a dimension; several can't be told apart by the operator and are pinned."""
        if len(dim) > 1:
            self.pin(dim, reason)
            return None
        return dim[0] if dim else None

    def matched(self, dims: Sequence[Dim], reason: str) -> list[tuple[Track, ...]]:
        """Which tracks of several dimensions, laid side by side, tell of the same factor of them.

        Where several dimensions were merged into one, each has a track. Those that change at the same places belong
        together; what is left of one of the dimensions, if it is one track, goes with the finest that the others have
        left. Tracks without a counterpart meet a factor that can't shrink, and are pinned for `reason`.
        """
        if all(len(dim) == 1 for dim in dims):
            return [tuple(dim[0] for dim in dims)]
        free = [len(dim) == 1 and dim[0].all_free for dim in dims]  # follows whatever it meets
        left = [[] if spare else list(dim) for dim, spare in zip(dims, free, strict=True)]
        rows: list[list[Track | None]] = []
        leader = next((i for i, spare in enumerate(free) if not spare), 0)
        for track in list(left[leader]):
            partners = [next((t for t in tracks if change_alike(track, t)), None) for tracks in left]
            if all(found is not None or spare for found, spare in zip(partners, free, strict=True)):
                rows.append(partners)
        _take(left, rows)
        if all(left[i] or spare for i, spare in enumerate(free)):
            rest: list[Track | None] = [max(tracks, key=finesse) if tracks else None for tracks in left]
            if any(len(tracks) == 1 for tracks in left):
                rows.append(rest)
                _take(left, rows[-1:])
        for tracks in left:
            for track in tracks:
                self.pin(track, reason)
        return [tuple(t if t is not None else dim[0] for t, dim in zip(row, dims, strict=True)) for row in rows]

    def unify(self, dims: Sequence[Dim], sizes: Sequence[int], reason: str, zero: str = "all") -> Dim:
        """One dimension of an element-by-element operator on several operands.

        Args:
            dims: each operand's tracks in this dimension.
            sizes: each operand's size; ones are broadcast.
            reason: for pins.
            zero: "all" where zero needs every operand zero (a sum), "any" where one is enough (a product), "never".
        """
        if not any(dims):
            return ()
        if len(dims) == 2 and sizes[0] == sizes[1] and len(dims[0]) == len(dims[1]) == 1:  # mostly: told at once
            (a,), (b,) = dims
            if a.whole and b.whole:
                self.meet(a, b, reason)
                return (a.copy({"all": a.zero and b.zero, "any": a.zero or b.zero, "never": False}[zero]),)
        size = max(sizes) if all(sizes) else 0
        full = [dim for dim, n in zip(dims, sizes, strict=True) if n == size]
        if len(full) < len(dims):
            for dim, n in zip(dims, sizes, strict=True):
                if n != size:  # one channel spread over many: it must not glue them together, so it stays
                    self.pin(dim, f"one channel broadcast over {size}, {reason}")
        tracked = [dim for dim in full if dim]
        if not tracked:
            return ()
        if len(tracked) < len(full):  # FREE tracks meet anything; others would have to match a size that can't shrink
            for dim in tracked:
                self.pin(dim, f"meets a dimension of fixed size, {reason}")
            return ()
        out = []
        for tracks in self.matched(tracked, f"dimensions merged differently, {reason}"):
            merged = tracks[0].copy()
            for track in tracks[1:]:
                self.meet(merged, track, reason)
                if not merged.whole:
                    merged = Track(np.where(merged.atoms == FREE, track.atoms, merged.atoms))
            zeros = [track.zero for track in tracks] + [False] * (len(dims) - len(tracks))
            merged.own_zero = {"all": all, "any": any, "never": lambda _: False}[zero](zeros)
            out.append(merged)
        return tuple(out)

    def broadcast(self, refs: Sequence[Ref], shape: Sequence[int], reason: str, zero: str = "all") -> Layout:
        """The layout of an element-by-element operator with numpy's broadcasting."""
        rank = len(shape)
        layouts = [[()] * (rank - len(self.shape(ref))) + self.get(ref) for ref in refs]
        shapes = [[1] * (rank - len(self.shape(ref))) + list(self.shape(ref)) for ref in refs]
        return [
            self.unify([layout[d] for layout in layouts], [sizes[d] for sizes in shapes], reason, zero)
            for d in range(rank)
        ]

    # -- slices of one dimension: only equal parts that cover it can shrink -------------------------------------------

    def sliced(self, ref: Ref, dim: int, start: int, stop: int, step: int = 1) -> None:
        self._slices.setdefault((ref.value, dim), {}).setdefault((start, stop, step), self.index)

    def _settle_slices(self) -> None:
        for (value, dim), parts in self._slices.items():
            size = self.capture.shapes[value][dim]
            self.index = min(parts.values())
            self.node = self.capture.nodes[self.index]
            spans = sorted(parts)
            length, step = spans[0][1] - spans[0][0], spans[0][2]
            equal = (
                length > 0 and size % length == 0 and {*spans} <= {(i, i + length, 1) for i in range(0, size, length)}
            )
            woven = size % step == 0 and spans == [(i, size, step) for i in range(step)]
            for track in self.layouts[value][dim]:
                if equal:
                    self.together(track.atoms.reshape(-1, length), "sliced into equal parts")
                elif woven:
                    self.together(track.atoms.reshape(-1, step).T, f"every {step} elements in a row")
                else:
                    text = ", ".join(f"{a}:{b}" + (f":{s}" if s > 1 else "") for a, b, s in spans[:4])
                    self.pin(track, f"sliced at fixed places [{text}] of {size}")


def _take(left: list[list[Track]], rows: Iterable[Sequence[Track | None]]) -> None:
    for row in rows:
        for tracks, taken in zip(left, row, strict=True):
            if taken is not None:
                tracks.remove(taken)


@cache
def is_pointwise(target: Any) -> bool:
    """torch says that the operator works element by element."""
    return torch.Tag.pointwise in target.tags


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An operator's argument by position or keyword."""
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if position < len(node.args) else default
