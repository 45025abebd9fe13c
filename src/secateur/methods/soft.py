"""Soft pruning: filters that are meant to go are faded, and may recover until the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.errors import MethodError
from secateur.graph import Graph, state_of
from secateur.methods.channels import filters, units_along
from secateur.methods.protocol import Scores


@torch.no_grad()
def fade(graph: Graph, units: NDArray[np.bool_], factor: float) -> None:
    """Multiply all that makes these units (bool per unit) by a factor: filters, biases, the scales and biases of norms.

    With a factor of 0 the units are silent, so that their removal changes nothing.
    """

    def scale(tensor: torch.Tensor, dim: int, owners: NDArray[np.int64]) -> None:
        rows = np.flatnonzero((owners >= 0) & units[owners])
        if len(rows):
            shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
            factors = torch.ones(tensor.shape[dim], dtype=tensor.dtype)
            factors[torch.from_numpy(rows)] = factor
            tensor.mul_(factors.to(tensor.device).view(shape))

    for info, dim, weight in filters(graph):
        scale(weight, dim, units_along(graph, info, dim))
    state = state_of(graph.model)
    for info in graph.tensors:
        if info.parameter and len(info.shape) == 1:
            scale(state[info.name], 0, units_along(graph, info, 0))


def filter_norms(graph: Graph) -> NDArray[np.float64]:
    """The L2 norm of all filters of a unit taken together; +inf for units without one."""
    squares, has_filter = np.zeros(graph.units), np.zeros(graph.units, dtype=bool)
    with torch.no_grad():
        for info, dim, weight in filters(graph):
            owners = units_along(graph, info, dim)
            values = weight.detach().movedim(dim, 0).flatten(1).double().square().sum(1).cpu().numpy()
            np.add.at(squares, owners[owners >= 0], values[owners >= 0])
            has_filter[owners[owners >= 0]] = True
    return np.where(has_filter & graph.prunable, np.sqrt(squares), np.inf)


def weakest(graph: Graph, scores: Scores, kept: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool per unit: of every group all but the `kept` (int64 per group) highest scores; ties stay by unit id."""
    out = np.zeros(graph.units, dtype=bool)
    for number, group in enumerate(graph.groups):
        units = np.asarray(group.units)
        if group.pinned or not np.isfinite(scores[units]).any():
            continue
        order = units[np.lexsort((-units, scores[units]))]  # the first to go first
        going = order[: max(0, len(units) - int(kept[number]))]
        out[going[np.isfinite(scores[going])]] = True
    return out


def kept_of(graph: Graph, ratio: float, at_least: int = 1) -> NDArray[np.int64]:
    """int64 per group: what stays where this share of every group goes, rounded up, but at least so many."""
    sizes = np.array([len(group) for group in graph.groups], dtype=np.int64)
    return np.minimum(sizes, np.maximum(at_least, np.ceil((1 - ratio) * sizes - 1e-9).astype(np.int64)))


def share_between(name: str, value: float) -> None:
    """Refuse an option that is no share.

    Raises:
        MethodError: it is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise MethodError(f"{name} {value}: a share between 0 and 1 was expected")


def chosen_state(kept: NDArray[np.int64], gone: NDArray[np.bool_]) -> dict[str, Any]:
    """How many of every group stay and which units go, for a checkpoint."""
    return {"kept": torch.from_numpy(kept), "gone": torch.from_numpy(gone)}


def chosen_from(state: Mapping[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The inverse of `chosen_state`."""
    return state["kept"].numpy().astype(np.int64), state["gone"].numpy().astype(bool)
