"""How far the filters of a layer are from each other: a filter among many like it can be replaced by them."""

from __future__ import annotations

import torch
from torch import Tensor

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
