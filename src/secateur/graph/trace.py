"""Trace a network: capture, label, solve, and make sure that what is called prunable runs when it is pruned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from secateur.errors import ModelError
from secateur.graph import capture as capturing
from secateur.graph.alike import alike
from secateur.graph.attributes import Number, kernels_of, numbers_of, numbers_of_calls, partner_of
from secateur.graph.capture import Capture, capture, unwrapped
from secateur.graph.flow import Flow
from secateur.graph.following import following
from secateur.graph.inside import inside_of, named_modules_of, unsaved_of, walked_once
from secateur.graph.keep import no_collection
from secateur.graph.labels import Choice, Equality, Pin
from secateur.graph.network import Graph
from secateur.graph.operators import CONVOLUTIONS
from secateur.graph.rules import RULES, elementwise
from secateur.graph.trial import Trial
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

    Examples:
        >>> import torch, secateur
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.second = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 8, 3, padding=1)
        ...         self.head = torch.nn.Conv2d(8, 2, 1)
        ...     def forward(self, image, scale):
        ...         x = self.first(image)
        ...         return self.head(x + scale * self.second(x))
        >>> graph = secateur.trace(Net(), (torch.zeros(1, 3, 8, 8), torch.ones(())))
        >>> for group in graph.groups:
        ...     print(group.name, len(group), "pinned" if group.pinned else group.members[:3])
        first 8 (('first.weight', 0), ('first.bias', 0), ('second.weight', 0))
        first.weight 3 pinned
        head 2 pinned
        >>> inputs = {"image": torch.zeros(1, 3, 8, 8), "scale": torch.ones(())}
        >>> secateur.trace(Net(), inputs).units == graph.units
        True
    """
    with no_collection(), walked_once():
        return _traced(unwrapped(model), example_inputs)


def _traced(model: nn.Module, example_inputs: Any) -> Graph:
    captures, notes = _captures(model, example_inputs)
    table = _table(model, captures)
    pins: list[Pin] = []
    choices: dict[tuple[bool, int], int] = {}
    told: list[Number] = []
    ties: list[Equality] = []
    while True:
        graph = _solved(model, example_inputs, captures, table, choices, pins, notes, told, ties)
        fixed = {number for number, reason in enumerate(graph.solution.reasons) if reason is not None}
        if _another_choice(graph, fixed, choices):
            continue
        trial = Trial(graph)
        guilty = trial.guilty()
        if not guilty:
            return graph
        numbers = following(trial, guilty, _without_first_choice(graph, guilty, choices))
        told.extend(number for mine in numbers.values() for number in mine)
        left = guilty.keys() - numbers.keys()
        if _another_choice(graph, left, choices) or numbers:
            continue
        tied = alike(trial, guilty, sorted(left))
        if tied:
            ties.extend(tie for mine in tied.values() for tie in mine)
            continue
        for group, failure in guilty.items():
            atoms = np.flatnonzero(np.isin(graph.solution.of_atom, graph.groups[group].units))
            pins.append(Pin(atoms, f"a size is written in the code: {failure}", failure.place))


def _captures(model: nn.Module, example_inputs: Any) -> tuple[list[Capture], list[str]]:
    """One run in eval and one in train mode."""
    captures, notes = [_capture(model, example_inputs, False)], []
    try:
        captures.append(_capture(model, example_inputs, True))
    except ModelError as error:
        notes.append(f"traced in eval mode only: {error}")
    return captures, notes


def _capture(model: nn.Module, example_inputs: Any, training: bool) -> Capture:
    """On meta tensors; where values are needed, or constants are made on a device, on real ones."""
    try:
        return capture(model, example_inputs, training=training)
    except ModelError:
        return capture(model, example_inputs, training=training, meta=False)


def _table(model: nn.Module, captures: Sequence[Capture]) -> AtomTable:
    """Atoms of all tensors, numbered in the order in which forward uses them."""
    state = capturing.state_of(model)
    parameters = {id(held[key]) for _, held, key in inside_of(model).parameters}
    names: dict[int, list[str]] = {}
    unsaved = unsaved_of(model)
    for name, tensor in sorted(state.items(), key=lambda item: item[0] in unsaved):  # a name in the state dict first
        names.setdefault(id(tensor), []).append(name)
    owner = {captures[0].names[name]: id(tensor) for name, tensor in state.items()}
    order = dict.fromkeys(owner[ref.value] for node in captures[0].nodes for ref in node.refs if ref.value in owner)
    order.update(dict.fromkeys(names))  # the unused ones behind
    named = [(names[i][0], tuple(names[i][1:]), tuple(state[names[i][0]].shape), i in parameters) for i in order]
    kernels = kernels_of(model)
    value_of = {captures[0].names[name]: name for name, *_ in named}
    used = {value_of.get(node.args[1].value) for node in captures[0].nodes if node.op in CONVOLUTIONS}
    return number_atoms(named, {name: 2 for name, *_ in named if name in kernels or name in used}, unsaved)


def _solved(
    model: nn.Module,
    example_inputs: Any,
    captures: Sequence[Capture],
    table: AtomTable,
    choices: dict[tuple[bool, int], int],
    pins: Sequence[Pin],
    notes: Sequence[str],
    told: Sequence[Number],
    ties: Sequence[Equality],
) -> Graph:
    modules = dict(named_modules_of(model))
    flows = []
    for run_ in captures:
        layouts = {run_.names[tensor.name]: layout for tensor, layout in table.layouts()}
        taken = {node: option for (training, node), option in choices.items() if training == run_.training}
        flow = Flow(run_, layouts, modules, taken)
        flow.walk(RULES, elementwise.pointwise)
        flows.append(flow)
    beside, unused = _unused(modules, table, captures)
    solution = solve(
        table,
        [*(pair for flow in flows for pair in flow.equalities), *beside, *ties],
        [*pins, *(pin for flow in flows for pin in flow.pins), *unused],
        [atoms for flow in flows for atoms in flow.structural],
    )
    numbers = {(n.module, n.attribute): n for n in numbers_of(model, table)}
    for flow in flows:
        for (module, attribute), (atoms, each) in flow.numbers.items():
            numbers[module, attribute] = Number(module, attribute, atoms, each=each)
    for number in numbers_of_calls(flows, modules):
        numbers.setdefault((number.module, number.attribute), number)
    everything = (*numbers.values(), *told)
    return Graph(model, example_inputs, tuple(flows), table, solution, everything, tuple(notes))


def _unused(
    modules: Mapping[str, nn.Module], table: AtomTable, captures: Sequence[Capture]
) -> tuple[list[Equality], list[Pin]]:
    """Tensors that forward never touches go along with what their layer uses of its own; or they stay as they are."""
    used = set()
    for run_ in captures:
        touched = {ref.value for node in run_.nodes for ref in node.refs} | set(run_.outputs)
        used |= {name for name, value in run_.names.items() if value in touched}
    beside, pins = [], []
    known = [tensor for tensor in table.tensors if tensor.name in used]
    for tensor in (t for t in table.tensors if t.name not in used):
        partner = partner_of(tensor, known, modules)
        for first, n in zip(tensor.first, tensor.shape, strict=True):
            if partner is not None:
                beside.append(Equality(np.arange(first, first + n), partner, "tensors of one layer", -1))
            elif first >= 0:
                pins.append(Pin(np.arange(first, first + n), "never used in forward"))
    return beside, pins


def _another_choice(graph: Graph, groups: Collection[int], choices: dict[tuple[bool, int], int]) -> bool:
    """Where a reshape left a choice, take the next for these groups; the first again when all have failed twice."""
    kinds = {choice.kind for key, choice in _choices_of(graph, groups) if choices.get(key, 0) < 2 * choice.options}
    for flow in graph.flows:
        for choice in flow.taken:
            key = (flow.capture.training, choice.node)
            if choice.kind in kinds and choices.get(key, 0) < 2 * choice.options:
                choices[key] = choices.get(key, 0) + 1
    return bool(kinds)


def _without_first_choice(graph: Graph, groups: Iterable[int], choices: Mapping[tuple[bool, int], int]) -> list[int]:
    """Those of the groups for which every option of every reshape has been tried with the code as it is."""
    return [
        group
        for group in groups
        if all(choices.get(key, 0) >= choice.options for key, choice in _choices_of(graph, [group]))
    ]


def _choices_of(graph: Graph, groups: Collection[int]) -> Iterator[tuple[tuple[bool, int], Choice]]:
    """The choices that concern any of the groups, by mode and node."""
    wanted = np.isin(graph.solution.group_of, list(groups))
    for flow in graph.flows:
        for choice in flow.taken:
            units = graph.solution.of_atom[choice.atoms]
            if wanted[units[units >= 0]].any():
                yield (flow.capture.training, choice.node), choice
