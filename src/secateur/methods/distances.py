"""How far the filters of a layer are from each other: a filter among many like it can be replaced by them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.graph import Graph
from secateur.methods.channels import filters, units_along

BLOCK = 2**23  # distances at a time: 64 MiB


def distance_matrix(filters: Tensor, first: int = 0, count: int | None = None) -> Tensor:
    """Euclidean distances between filters in float64: (C, elements) -> (C, C), or `count` rows of it from `first`."""
    points = filters.detach().cpu().double()
    points = points - points.mean(0)  # distances stay the same; the products inside cdist lose fewer digits
    rows = points[first:] if count is None else points[first : first + count]
    matrix = torch.cdist(rows, points, compute_mode="use_mm_for_euclid_dist")
    matrix[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = 0.0
    return matrix


def distance_sums(filters: Tensor) -> Tensor:
    """(C, elements) -> (C): the sum over j of the distance between filters i and j, without the whole matrix."""
    rows = max(1, BLOCK // max(1, len(filters)))
    return torch.cat([distance_matrix(filters, at, rows).sum(1) for at in range(0, len(filters), rows)])


def unit_distances(graph: Graph) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Of every group that has filters: its number, and the distances between its units (units, units), the sum over all
    layers that make them."""
    layers = [
        (units_along(graph, info, dim), weight.movedim(dim, 0).flatten(1)) for info, dim, weight in filters(graph)
    ]
    for number, group in enumerate(graph.groups):
        first, size = group.units[0], len(group)
        matrix, found = np.zeros((size, size)), False
        for owners, weights in layers if not group.pinned else ():
            rows = np.flatnonzero((owners >= first) & (owners < first + size))
            if len(rows):
                units, found = owners[rows] - first, True
                np.add.at(matrix, (units[:, None], units[None]), distance_matrix(weights[rows]).numpy())
        if found:
            yield number, matrix


def closest_pairs(distances: NDArray[np.float64]) -> NDArray[np.int64]:
    """The order in which points leave, where of the closest pair that is left always that one goes which is nearer to
    all that are left; ties by index. (points, points) -> int64 (points)."""
    left, sums = distances.copy(), distances.sum(1)
    np.fill_diagonal(left, np.inf)
    nearest, order = left.argmin(1), []
    for _ in range(len(left) - 1):
        gaps = left[np.arange(len(left)), nearest]
        pair = np.flatnonzero(np.isclose(gaps, gaps.min(), rtol=1e-5, atol=1e-8))
        going = int(pair[sums[pair].argmin()])
        order.append(going)
        sums -= distances[going]
        left[going] = left[:, going] = np.inf
        orphans = np.flatnonzero(nearest == going)
        nearest[orphans] = left[orphans].argmin(1)
    return np.array([*order, *np.setdiff1d(np.arange(len(left)), order)], dtype=np.int64)
