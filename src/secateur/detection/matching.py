"""Which cells and anchors have to find which target.

On every level a target goes to all anchors whose sides are at most a given factor from its own, and there to the cell
that its centre is in and to the nearest cell beside it and the nearest above or below it: a cell can say that a centre
lies up to half a cell outside of it (see `decode`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Matches(NamedTuple):
    """What one level has to find, m times; a place may come several times where targets lie close together.

    Attributes:
        image, anchor, row, column: (m,), the places.
        box: (m, 4), centre x and y from the cell's corner, width and height; in cells.
        label: (m,), classes.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    box: Tensor
    label: Tensor


def match(targets: Tensor, anchors: Tensor, grid: tuple[int, int], most_ratio: float = 4.0) -> Matches:
    """The places of one level that have to find a target.

    Args:
        targets: (n, 6), see `boxes.batched`.
        anchors: (A, 2), width and height in cells.
        grid: rows and columns of cells.
        most_ratio: both sides of target and anchor differ by less than this factor.
    """
    rows, columns = grid
    last = targets.new_tensor([columns - 1, rows - 1])
    boxes = targets[:, 2:] * targets.new_tensor([columns, rows, columns, rows])
    ratio = boxes[:, None, 2:] / anchors.to(boxes)
    target, anchor = (torch.maximum(ratio, 1 / ratio).amax(2) < most_ratio).nonzero(as_tuple=True)
    centre = boxes[target, :2]
    cell = centre.floor().minimum(last)  # a centre on the image's edge is in the last cell
    side = (centre - cell - 0.5).sign()  # towards the nearest neighbours; 0 in the middle
    beside, below = side * side.new_tensor([1, 0]), side * side.new_tensor([0, 1])
    cells = torch.stack([cell, cell + beside, cell + below])
    there = torch.stack([(step.abs().sum(1) > 0) for step in (beside, below)])
    there = torch.cat([torch.ones_like(there[:1]), there]) & ((cells >= 0) & (cells <= last)).all(2)
    which, number = there.nonzero(as_tuple=True)
    at = cells[which, number]
    box = torch.cat([centre[number] - at, boxes[target[number], 2:]], 1)
    column, row = at.long().unbind(1)
    found = targets[target[number]]
    return Matches(found[:, 0].long(), anchor[number], row, column, box, found[:, 1].long())
