"""Arithmetic shared by methods: from numbers per slice of a tensor to numbers per unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import MethodError, nearest
from secateur.graph import Graph, TensorInfo, state_of
from secateur.graph.capture import Ref
from secateur.graph.operators import CONVOLUTIONS
from secateur.surgery.walk import Walk

REDUCTIONS: dict[str, np.ufunc] = {"mean": np.add, "sum": np.add, "max": np.maximum, "min": np.minimum}


def per_unit(
    graph: Graph, parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]], reduce: str
) -> NDArray[np.float64]:
    """Gather (unit, value) pairs to one value per unit: mean, sum, max or min; +inf for units that have none.

    Raises:
        MethodError: an unknown reduction.
    """
    if reduce not in REDUCTIONS:
        raise MethodError(f"reduce {reduce!r}; {nearest(reduce, REDUCTIONS)}")
    units = np.concatenate([u for u, _ in parts]) if parts else np.zeros(0, np.int64)
    values = np.concatenate([v for _, v in parts]) if parts else np.zeros(0)
    values, units = values[units >= 0], units[units >= 0]
    count = np.bincount(units, minlength=graph.units)
    out = np.full(graph.units, {"max": -np.inf, "min": np.inf}.get(reduce, 0.0))
    REDUCTIONS[reduce].at(out, units, values)
    if reduce == "mean":
        out = out / np.maximum(count, 1)
    out[(count == 0) | ~graph.prunable] = np.inf
    return out


def units_along(graph: Graph, info: TensorInfo, dim: int) -> NDArray[np.int64]:
    """The unit of every index of a tensor's dimension, -1 where there is none."""
    first, size = info.first[dim], info.shape[dim]
    return graph.solution.of_atom[first : first + size] if first >= 0 else np.full(size, -1, dtype=np.int64)


def filters(graph: Graph) -> Iterator[tuple[TensorInfo, int, Tensor]]:
    """Every weight of two or more dimensions that makes channels as it is, with the dimension of its filters.

    A unit owns a filter where it is one index of the dimension that produces channels: 0, or 1 for transposed
    convolutions.
    """
    produced: dict[str, int] = {}
    for flow in graph.flows:
        by_value = {value: name for name, value in flow.capture.names.items()}
        for node in flow.capture.nodes:
            if node.op in CONVOLUTIONS:
                weight, transposed = node.args[1], bool(node.args[6])
                if weight.value in by_value:
                    produced[by_value[weight.value]] = 1 if transposed else 0
    state = state_of(graph.model)
    for info in graph.tensors:
        if info.parameter and len(info.shape) >= 2:
            names = (info.name, *info.aliases)
            dim = next((produced[n] for n in names if n in produced), None)
            if dim is None and len(info.shape) == 2:
                dim = 0  # a linear layer's weight (out, in)
            if dim is not None:
                yield info, dim, state[info.name]


def computed_filters(graph: Graph) -> Iterator[tuple[NDArray[np.int64], int, Tensor]]:
    """Every convolution's weight that is computed from parameters (weight norm, masks, standardised weights): the unit
    of every filter, the dimension of the filters, and the weight.

    The weight is the module's own attribute where it has one of that shape, else a parameter of that shape that it is
    computed from.
    """
    modules, state, seen = dict(graph.model.named_modules()), state_of(graph.model), set[str]()
    for flow in graph.flows:
        walk = Walk(flow)
        for node in flow.capture.nodes:
            if node.op not in CONVOLUTIONS or walk.parameter(node.args[1]) or node.module in seen:
                continue
            shape, dim = flow.shape(node.args[1]), int(bool(node.args[6]))
            own = getattr(modules.get(node.module), "weight", None)
            source = own if isinstance(own, Tensor) and tuple(own.shape) == shape else None
            if source is None:
                name = next((n for n in _sources(walk, node.args[1]) if tuple(state[n].shape) == shape), None)
                source = None if name is None else state[name]
            tracks = flow.get(node.args[1])[dim]
            if source is None or len(tracks) != 1:
                continue
            seen.add(node.module)
            atoms = tracks[0].atoms
            yield np.where(atoms >= 0, graph.solution.of_atom[atoms], -1), dim, source


def _sources(walk: Walk, ref: Ref) -> Iterator[str]:
    """The parameters and buffers that a value is computed from, the nearest first."""
    pending, seen = [ref], {ref.value}
    while pending:
        ref = pending.pop(0)
        name = walk.parameter(ref)
        if name:
            yield name
            continue
        maker = walk.maker.get(ref.value)
        for each in maker.inputs() if maker is not None else ():
            if each.value not in seen:
                seen.add(each.value)
                pending.append(each)


def filter_scores(graph: Graph, norm: Callable[[Tensor], Tensor], reduce: str) -> NDArray[np.float64]:
    """A number per flattened filter, gathered to units.

    Args:
        norm: (filters, elements) -> (filters).
        reduce: how the filters of one unit are put together.
    """
    parts = []
    with torch.no_grad():
        found = [(units_along(graph, info, dim), dim, weight) for info, dim, weight in filters(graph)]
        for units, dim, weight in (*found, *computed_filters(graph)):
            flat = weight.detach().movedim(dim, 0).flatten(1)
            parts.append((units, norm(flat).double().cpu().numpy()))
    return per_unit(graph, parts, reduce)
