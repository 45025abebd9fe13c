"""Arithmetic shared by methods: from numbers per slice of a tensor to numbers per unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import MethodError, nearest
from secateur.graph import Graph, TensorInfo, state_of
from secateur.graph.operators import CONVOLUTIONS

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
    """Every weight of two or more dimensions that makes channels, with the dimension of its filters.

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


def filter_scores(graph: Graph, norm: Callable[[Tensor], Tensor], reduce: str) -> NDArray[np.float64]:
    """A number per flattened filter, gathered to units.

    Args:
        norm: (filters, elements) -> (filters).
        reduce: how the filters of one unit are put together.
    """
    parts = []
    with torch.no_grad():
        for info, dim, weight in filters(graph):
            flat = weight.detach().movedim(dim, 0).flatten(1)
            parts.append((units_along(graph, info, dim), norm(flat).double().cpu().numpy()))
    return per_unit(graph, parts, reduce)
