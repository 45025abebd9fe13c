"""Trace a network: capture, label, solve, and make sure that what is called prunable runs when it is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.graph import capture as capturing
from secateur.graph.attributes import Number, numbers_of, numbers_of_calls
from secateur.graph.capture import Capture, Place, capture, mapped_state, mode_of, run, tensors_in, twice, unwrapped
from secateur.graph.flow import Flow, Pin
from secateur.graph.network import Graph
from secateur.graph.rules import RULES
from secateur.graph.units import AtomTable, number_atoms, solve


def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """Find out which channels of a network go together and which can't be removed.

    The network is run on meta tensors (on real ones where it needs values), in eval and in train mode, and nothing of
    it changes. What is found prunable is tried: the network runs again with a third of every group gone, and groups
    that its code has a fixed size for are pinned.

    Args:
        model: any network; of one wrapped by DataParallel, DistributedDataParallel, Lightning Fabric, AveragedModel or
            torch.compile, the network inside.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.

    Returns:
        The graph: units, groups, pins with their reasons.

    Raises:
        ModelError: the network does not run on the example inputs.
    """
    model = unwrapped(model)
    captures, meta, notes = _captures(model, example_inputs)
    table = _table(model, captures)
    pins: list[Pin] = []
    choices: dict[tuple[bool, int], int] = {}
    while True:
        graph = _solved(model, example_inputs, captures, table, choices, pins, notes)
        guilty = _guilty(graph, meta)
        if not guilty:
            return graph
        if _another_choice(graph, guilty, choices):
            continue
        for group, (reason, place) in guilty.items():
            atoms = np.flatnonzero(np.isin(graph.solution.of_atom, graph.groups[group].units))
            pins.append(Pin(atoms, reason, place))


def _captures(model: nn.Module, example_inputs: Any) -> tuple[list[Capture], bool, list[str]]:
    """One run in eval and one in train mode, on meta tensors if the network allows it."""
    meta, notes = True, []
    try:
        captures = [capture(model, example_inputs, training=False)]
    except ModelError:
        meta = False  # values are needed, or constants are made on a device: compute for real
        captures = [capture(model, example_inputs, training=False, meta=False)]
    try:
        captures.append(capture(model, example_inputs, training=True, meta=meta))
    except ModelError as error:
        notes.append(f"traced in eval mode only: {error}")
    return captures, meta, notes


def _table(model: nn.Module, captures: Sequence[Capture]) -> AtomTable:
    """Atoms of all tensors, numbered in the order in which forward uses them."""
    state = capturing.state_of(model)
    parameters = {id(p) for p in model.parameters()}
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    owner = {captures[0].names[name]: id(tensor) for name, tensor in state.items()}
    order = dict.fromkeys(owner[ref.value] for node in captures[0].nodes for ref in node.inputs() if ref.value in owner)
    order.update(dict.fromkeys(names))  # the unused ones behind
    return number_atoms(
        [(names[i][0], tuple(names[i][1:]), tuple(state[names[i][0]].shape), i in parameters) for i in order]
    )


def _solved(
    model: nn.Module,
    example_inputs: Any,
    captures: Sequence[Capture],
    table: AtomTable,
    choices: dict[tuple[bool, int], int],
    pins: Sequence[Pin],
    notes: Sequence[str],
) -> Graph:
    modules = dict(model.named_modules())
    flows = []
    for run_ in captures:
        layouts = {run_.names[t.name]: t.layout() for t in table.tensors}
        taken = {node: option for (training, node), option in choices.items() if training == run_.training}
        flow = Flow(run_, layouts, modules, taken)
        flow.walk(RULES)
        flows.append(flow)
    solution = solve(
        table,
        [pair for flow in flows for pair in flow.equalities],
        [*pins, *(pin for flow in flows for pin in flow.pins), *_unused(table, captures)],
        [atoms for flow in flows for atoms in flow.structural],
    )
    numbers = {(n.module, n.attribute): n for n in numbers_of(model, table)}
    for flow in flows:
        for (module, attribute), (atoms, each) in flow.numbers.items():
            numbers[module, attribute] = Number(module, attribute, atoms, each=each)
    for number in numbers_of_calls(flows, modules):
        numbers.setdefault((number.module, number.attribute), number)
    return Graph(model, example_inputs, tuple(flows), table, solution, tuple(numbers.values()), tuple(notes))


def _unused(table: AtomTable, captures: Sequence[Capture]) -> list[Pin]:
    """Tensors that forward never touches stay as they are."""
    used = set()
    for run_ in captures:
        touched = {ref.value for node in run_.nodes for ref in node.inputs()} | set(run_.outputs)
        used |= {name for name, value in run_.names.items() if value in touched}
    return [
        Pin(np.arange(first, first + n), "never used in forward")
        for t in table.tensors
        if t.name not in used
        for first, n in zip(t.first, t.shape, strict=True)
        if first >= 0
    ]


def _another_choice(graph: Graph, guilty: Iterable[int], choices: dict[tuple[bool, int], int]) -> bool:
    """Where a reshape left a choice, take the next for the groups that fail; the first again when all have failed."""
    changed = False
    units = {unit for group in guilty for unit in graph.groups[group].units}
    for flow in graph.flows:
        for choice in flow.taken:
            key = (flow.capture.training, choice.node)
            if choices.get(key, 0) < choice.options and units & set(graph.solution.of_atom[choice.atoms].tolist()):
                choices[key] = choices.get(key, 0) + 1  # `options` means: back to the first, and no more trying
                changed = True
    return changed


# -- the trial: run the network with parts of every group gone --------------------------------------------------------


def _guilty(graph: Graph, meta: bool) -> dict[int, tuple[str, Place | None]]:
    """Groups that the network can't run without a part of, with what it said and where: group number -> reason."""
    free = [g for g, group in enumerate(graph.groups) if group.pinned is None and len(group) > 1]
    attempt = _Trial(graph, meta)
    guilty: dict[int, str] = {}
    for trial in _trials(graph):

        def said(groups: Sequence[int], trial: NDArray[np.bool_] = trial) -> str | None:
            return attempt(trial & np.isin(graph.solution.group_of, groups))

        find_guilty([group for group in free if group not in guilty], said, guilty)
    return {
        group: (f"a size is written in the code: {text}", attempt.places.get(text)) for group, text in guilty.items()
    }


def find_guilty(
    groups: Sequence[int], said: Callable[[Sequence[int]], str | None], guilty: dict[int, str]
) -> list[int]:
    """Bisect groups to those that can't go; returns the ones that can all go together.

    `said` gives None if a set of groups can go and a message if not. Every part is tried together with what is already
    known to be good, so that groups which only fail in company are found as well.
    """
    good: list[int] = []
    pending: list[Sequence[int]] = [groups]
    while pending:
        part = pending.pop()
        if not part:
            continue
        message = said([*good, *part])
        if message is None:
            good.extend(part)
        elif len(part) == 1:
            guilty[part[0]] = message
        else:
            half = len(part) // 2
            pending.extend([part[half:], part[:half]])
    return good


def _trials(graph: Graph) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Units of every free group to try without, never all of a group; places drawn, the same each time.

    First a third of each. Then another share of each, to find sizes that only agree when two groups shrink alike.
    """
    generator = np.random.default_rng(0)
    third, another = np.zeros(graph.units, dtype=bool), np.zeros(graph.units, dtype=bool)
    for number, group in enumerate(graph.groups):
        if group.pinned is None and (size := len(group)) > 1:
            share = (number + 1) * 0.618034 % 1  # spread evenly, far apart for neighbours
            third[generator.choice(group.units, size=max(1, size // 3), replace=False)] = True
            another[generator.choice(group.units, size=1 + int(share * (size - 1)), replace=False)] = True
    return third, another


class _Trial:
    """Runs the traced network without the given units and compares the shapes of its outputs."""

    def __init__(self, graph: Graph, meta: bool) -> None:
        self.graph, self.meta = graph, meta
        self.modules = {id(module): name for name, module in graph.model.named_modules()}
        self.places: dict[str, Place] = {}  # message -> where it arose
        self.runs = []
        for flow in graph.flows:
            training = flow.capture.training
            inputs = twice(graph.example_inputs) if training else graph.example_inputs
            self.runs.append((training, inputs))

    def __call__(self, removed: NDArray[np.bool_]) -> str | None:
        graph = self.graph
        slices = {graph.tensors[t].name: dims for t, dims in graph.removed_slices(removed).items()}

        def cut(name: str, tensor: Tensor) -> Tensor:
            dims = slices.get(name, {})
            if self.meta:
                shape = [n - len(dims.get(d, ())) for d, n in enumerate(tensor.shape)]
                return torch.empty(shape, dtype=tensor.dtype, device="meta", requires_grad=tensor.requires_grad)
            new = tensor.detach().clone()
            for d, gone in dims.items():
                kept = np.setdiff1d(np.arange(tensor.shape[d]), gone)
                new = new.index_select(d, torch.as_tensor(kept, device=new.device))
            return new.requires_grad_(tensor.requires_grad)

        for (training, inputs), flow in zip(self.runs, graph.flows, strict=True):
            state = mapped_state(graph.model, cut)
            with (
                mode_of(graph.model, training),
                numbers_set(graph.model, graph.numbers_after(removed)),
                torch.random.fork_rng(devices=[]),
            ):
                try:
                    output = run(graph.model, state, capturing.fresh_inputs(inputs, self.meta))
                except Exception as error:  # whatever the network's own code raises
                    place = capturing.place_of(error, self.modules)
                    message = f"{type(error).__name__}: {capturing.first_line(error)}{place.where}"
                    self.places[message] = place
                    return message
            shapes = [tuple(t.shape) for t in tensors_in(output)]
            expected = [flow.capture.shapes[value] for value in flow.capture.outputs]
            if shapes != expected:
                return f"the output's shape becomes {shapes} instead of {expected}"
        return None


@contextmanager
def numbers_set(model: nn.Module, numbers: dict[str, dict[str, int]]) -> Any:
    """Module attributes changed for a while."""
    modules = dict(model.named_modules())
    before = [(modules[name], key, getattr(modules[name], key)) for name, values in numbers.items() for key in values]
    try:
        for name, values in numbers.items():
            for key, value in values.items():
                setattr(modules[name], key, value)
        yield
    finally:
        for module, key, value in before:
            setattr(module, key, value)
