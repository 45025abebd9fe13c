"""The trial: run the network with parts of every group gone, and find out which groups its code can't do without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.graph import capture as capturing
from secateur.graph.attributes import Number, values_after
from secateur.graph.capture import Place, mapped_state, mode_of, run, tensors_in, twice
from secateur.graph.flow import Flow
from secateur.graph.guilt import find_guilty
from secateur.graph.inside import inside_of, modules_of, named_modules_of, set_number
from secateur.graph.meta import Answering
from secateur.graph.network import Graph, Group
from secateur.graph.replay import Failure, Foretold, Replay, same_code

Change = Callable[[str, Tensor], Tensor]  # name and tensor -> what to run with instead
Slices = Mapping[str, Mapping[int, NDArray[np.int64]]]  # tensor name -> dimension -> indices


class Trial:
    """Runs the traced network without some units, and compares its outputs' shapes and the numbers it computes with.

    Args:
        graph: the network as labelled.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.modules = dict(named_modules_of(graph.model))
        self.names = {id(module): name for name, module in self.modules.items()}
        self._known: dict[int, Foretold] = {}  # by the flow's id
        self.free = [g for g, group in enumerate(graph.groups) if group.pinned is None and len(group) > 1]

    def guilty(
        self, groups: Sequence[int] | None = None, company: Sequence[int] = (), numbers: Sequence[Number] = ()
    ) -> dict[int, Failure]:
        """Groups that the network can't run without a part of, and what it said; perhaps not yet all of them.

        Args:
            groups: the groups in question; all that are free if absent.
            company: groups that go as well, known to be innocent.
            numbers: more numbers of modules that follow the channels.
        """
        guilty: dict[int, Failure] = {}
        tried = self.free if groups is None else groups
        if self._runs_as_foretold([*company, *tried], numbers):
            return guilty
        for draw in self._drawn:

            def said(some: Sequence[int], draw: _Draw = draw) -> Failure | None:
                gone = draw.gone & np.isin(self.graph.solution.group_of, [*company, *some])
                return self.run(gone, numbers, draw.strict, draw.training)

            find_guilty(tried, said, guilty, self._suspects, self._kin)
            if guilty:  # the rest shows when these are settled
                break
        return guilty

    def _runs_as_foretold(self, groups: Sequence[int], numbers: Sequence[Number]) -> bool:
        """Whether in every draw the network runs, and does, operator by operator, what the labels foretell.

        Then there is no need to look for guilty groups. A run without gradients is faster, but may go
        other ways: where it does, nothing is said. Where train mode runs through the same code, eval mode is enough.
        """
        chosen = np.isin(self.graph.solution.group_of, groups)
        first, last = self.graph.flows[0].capture, self.graph.flows[-1].capture
        alike = same_code(first, last, self.modules)
        return all(
            self.run(draw.gone & chosen, numbers, draw.strict, draw.training and not alike, gradients=False) is None
            for draw in self._drawn
        )

    def runs_tied(self, company: Sequence[int], tied: Sequence[int]) -> bool:
        """Whether the network runs when the units of some groups go in the same places, and those of others as ever."""
        for draw in self._drawn:
            gone = draw.gone & np.isin(self.graph.solution.group_of, [*company, *tied])
            for group in tied[1:]:
                gone[list(self.graph.groups[group].units)] = gone[list(self.graph.groups[tied[0]].units)]
            if self.run(gone, (), draw.strict, draw.training) is not None:
                return False
        return True

    @cached_property
    def _drawn(self) -> list[_Draw]:
        return _draws(self.graph)

    def running(self, module: str) -> set[int]:
        """The groups whose channels a module's own code handles."""
        return self._running.get(module, set())

    def run(
        self,
        removed: NDArray[np.bool_],
        numbers: Sequence[Number],
        strict: bool,
        training: bool,
        gradients: bool = True,
    ) -> Failure | None:
        """None if the network runs without the given units and gives outputs of the same shapes.

        Args:
            removed: bool per unit.
            numbers: more numbers that follow the channels.
            strict: also compare, operator by operator, the sizes with those that the labels foretell, and the numbers
                that tensors are calculated with: one that differs was made from a size.
            training: in train mode as well as in eval mode.
            gradients: as in the capture, the parameters ask for gradients; torch may take other ways without.
        """
        graph = self.graph
        gone = graph.removed_atoms(removed)
        real = not all(flow.capture.meta for flow in graph.flows)
        slices = {graph.tensors[t].name: dims for t, dims in graph.removed_slices(removed).items()} if real else {}
        values = values_after([*graph.numbers, *numbers], gone)
        for flow in graph.flows if training else graph.flows[:1]:
            meta, mode = flow.capture.meta, flow.capture.training
            inputs = twice(graph.example_inputs) if mode else graph.example_inputs
            change = _shrunk(graph, gone, gradients) if meta else _cut(slices, gradients)
            seen = Replay(inside_of(graph.model).known) if strict else None
            with mode_of(graph.model, mode), numbers_set(graph.model, values):
                try:
                    output = self._run(mapped_state(graph.model, change), inputs, meta, seen)
                except Exception as error:  # whatever the network's own code raises
                    place = capturing.place_of(error, self.names)
                    return Failure(f"{type(error).__name__}: {capturing.first_line(error)}", place)
            shapes = [tuple(t.shape) for t in tensors_in(output)]
            expected = [flow.capture.shapes[value] for value in flow.capture.outputs]
            before = None
            if not meta and (strict or shapes != expected):  # sizes may depend on values: those of the silenced
                before = Replay(inside_of(graph.model).known)
                with mode_of(graph.model, mode):
                    silent = self._run(mapped_state(graph.model, _silenced(slices)), inputs, meta, before)
                expected = [tuple(t.shape) for t in tensors_in(silent)]
            if shapes != expected:
                text = f"the output's shape becomes {shapes} instead of {expected}"
                return Failure(text, Place("", "", ""))
            other = self._foretold(flow).broken(seen, gone, before) if seen is not None else None
            if other is not None and not self._fickle(flow, inputs):
                return other
        return None

    def _run(self, state: Mapping[str, Tensor], inputs: Any, meta: bool, mode: TorchDispatchMode | None) -> Any:
        fresh = capturing.fresh_inputs(inputs, meta)
        # With gradients on, as in the capture: some modules take other operators without them.
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            mode or Answering(inside_of(self.graph.model).known),
        ):
            return run(self.graph.model, state, fresh)

    def _fickle(self, flow: Flow, inputs: Any) -> bool:
        """The network calculates with other numbers in every run (drawn by Python's own generator, or counted)."""
        seen, meta = Replay(inside_of(self.graph.model).known), flow.capture.meta
        whole = mapped_state(self.graph.model, capturing.to_meta if meta else capturing.detached)
        with mode_of(self.graph.model, flow.capture.training):
            self._run(whole, inputs, meta, seen)
        return self._foretold(flow).broken(seen, np.zeros(len(self.graph.table), dtype=bool)) is not None

    def _foretold(self, flow: Flow) -> Foretold:
        if id(flow) not in self._known:
            self._known[id(flow)] = Foretold(flow)
        return self._known[id(flow)]

    # -- where to look first ------------------------------------------------------------------------------------------

    @cached_property
    def _running(self) -> dict[str, set[int]]:
        """Module -> the groups whose channels its own code handles."""
        solution, found = self.graph.solution, dict[str, set[int]]()
        for flow in self.graph.flows:
            for node in flow.capture.nodes:
                mine = found.setdefault(node.module, set())
                for ref in node.refs:
                    for dim in flow.get(ref):
                        for track in dim:
                            units = solution.of_atom[track.atoms[track.atoms >= 0]]
                            mine.update(np.unique(solution.group_of[units[units >= 0]]).tolist())
        return found

    def _suspects(self, failure: Failure, groups: Sequence[int]) -> list[int]:
        """The groups that run through the module that failed, and those in the same position in others of its kind."""
        here = self.running(failure.place.module)
        named = [group for group in groups if group in here]
        return [*named, *(other for group in named for other in self._kin(group, failure))]

    def _kin(self, group: int, failure: Failure) -> dict[int, Failure]:
        """Groups in the same position of modules with the same class and settings as the one that failed."""
        name = failure.place.module
        prefix = f"{name}."
        members = self.graph.groups[group].members
        if not name or not all(tensor.startswith(prefix) for tensor, _ in members):
            return {}
        kind, found = _kind(self.modules[name]), {}
        for other, module in self.modules.items():
            if other != name and type(module) is type(self.modules[name]) and _kind(module) == kind:
                same = frozenset((f"{other}.{tensor.removeprefix(prefix)}", dim) for tensor, dim in members)
                for number in self._by_members.get(same, ()):
                    if len(self.graph.groups[number]) == len(self.graph.groups[group]):
                        found[number] = Failure(failure.text, dataclasses.replace(failure.place, module=other))
        return found

    @cached_property
    def _by_members(self) -> dict[frozenset[tuple[str, int]], list[int]]:
        found: dict[frozenset[tuple[str, int]], list[int]] = {}
        for number in self.free:
            found.setdefault(frozenset(self.graph.groups[number].members), []).append(number)
        return found


def _shrunk(graph: Graph, gone: NDArray[np.bool_], gradients: bool) -> Change:
    """Meta tensors of the sizes that are left without some atoms."""
    tensors = graph.tensors
    slots = [(t, d) for t, info in enumerate(tensors) for d, first in enumerate(info.first) if first >= 0]
    left: dict[str, list[int]] = {}
    if slots:
        lost = np.add.reduceat(gone, [tensors[t].first[d] for t, d in slots], dtype=np.int64)
        for slot in np.flatnonzero(lost).tolist():
            t, d = slots[slot]
            left.setdefault(tensors[t].name, [*tensors[t].shape])[d] -= int(lost[slot])

    def shrunk(name: str, tensor: Tensor) -> Tensor:
        asks = gradients and tensor.requires_grad
        return torch.empty(left.get(name) or tensor.shape, dtype=tensor.dtype, device="meta", requires_grad=asks)

    return shrunk


def _cut(slices: Slices, gradients: bool) -> Change:
    """Copies of the tensors without some slices."""

    def cut(name: str, tensor: Tensor) -> Tensor:
        new = tensor.detach().clone()
        for d, gone in slices.get(name, {}).items():
            kept = np.setdiff1d(np.arange(tensor.shape[d]), gone)
            new = new.index_select(d, torch.as_tensor(kept, device=new.device))
        return new.requires_grad_(gradients and tensor.requires_grad)

    return cut


def _silenced(slices: Slices) -> Change:
    """Copies of the tensors with zeros in some slices."""

    def silenced(name: str, tensor: Tensor) -> Tensor:
        new = tensor.detach().clone()
        for d, indices in slices.get(name, {}).items():
            new.index_fill_(d, torch.as_tensor(indices, device=new.device), 0)
        return new

    return silenced


def _kind(module: nn.Module) -> dict[str, Any]:
    """The settings of a module: its attributes that are plain values."""
    plain = (bool, int, float, str, type(None))
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(item, plain) for item in value))
    }


@dataclass(frozen=True)
class _Draw:
    """Units of every free group to try without, never all of a group."""

    gone: NDArray[np.bool_]
    strict: bool
    training: bool


_DRAWS, _MOST_DRAWS = 2, 3  # after the first


def _draws(graph: Graph) -> list[_Draw]:
    """First a third of every group, then other counts, to find sizes that only agree when two groups shrink alike.

    Groups of as many channels lose different numbers of them; where there are more groups than numbers, further draws
    tell those apart that lost equally many. Two units stay where there are that many: torch itself takes other ways
    through dimensions of one.
    """
    groups = [group for group in graph.groups if group.pinned is None and len(group) > 1]
    widths = [_width(graph, group) for group in groups]
    generator = np.random.default_rng(0)

    def drawn(counts: Iterable[int]) -> NDArray[np.bool_]:
        gone = np.zeros(graph.units, dtype=bool)
        for group, count in zip(groups, counts, strict=True):
            gone[generator.choice(group.units, size=count, replace=False)] = True
        return gone

    draws, crowded = [_Draw(drawn(max(1, len(group) // 3) for group in groups), False, False)], True
    pasts: list[tuple[int, ...]] = [() for _ in groups]  # what each lost in the draws before
    for number in range(_MOST_DRAWS):
        if number >= _DRAWS and not crowded:
            break
        used, told, crowded = set[tuple[int, ...]](), set[tuple[int, ...]](), False
        for k, (group, width, past) in enumerate(zip(groups, widths, pasts, strict=True)):
            size = len(group)
            options = [(k + number + 1) % 2] if size == 2 else (generator.permutation(max(2, size - 2)) + 1).tolist()
            # A map may hold one channel of each unit, or all of them (before a pixel shuffle, say).
            takes = partial(_lost, size, width, ())
            with_past = partial(_lost, size, width, past)
            count = next((n for n in options if used.isdisjoint(takes(n))), None)
            if count is None:  # others lose as many: those that lost as many before should not
                count = next((n for n in options if told.isdisjoint(with_past(n))), None)
            crowded = crowded or (count is None and size > 2)
            count = options[0] if count is None else count
            used |= takes(count)
            told |= with_past(count)
            pasts[k] = (*past, count)
        draws.append(_Draw(drawn(past[-1] for past in pasts), True, not number))
    return draws


def _lost(size: int, width: int, past: tuple[int, ...], count: int) -> set[tuple[int, ...]]:
    """How long a group's dimensions may be, with what they lose in one draw after the other."""
    return {(size * n, *(lost * n for lost in (*past, count))) for n in (1, width)}


def _width(graph: Graph, group: Group) -> int:
    """How many channels go with a unit."""
    slots = [(tensor, dim) for tensor, dim, _ in graph.slots(group.units[0])]
    return slots.count(slots[0])


@contextmanager
def numbers_set(model: nn.Module, numbers: Mapping[str, Mapping[str, int]]) -> Any:
    """Module attributes changed for a while."""
    modules = dict(modules_of(model))
    before = [(modules[name], key, getattr(modules[name], key)) for name, values in numbers.items() for key in values]
    try:
        for name, values in numbers.items():
            for key, value in values.items():
                set_number(modules[name], key, value)
        yield
    finally:
        for module, key, value in before:
            if vars(module).get(key) is not value:
                set_number(module, key, value)
