"""Boxes: the format of targets, pixel corners, and how much two boxes overlap.

A batch's targets are a list with one tensor per image, float32 (n, 5): class, centre x, centre y, width, height, the
last four as fractions of the width and the height of the image that the network sees. The lines of YOLO's text files
are like that, and resizing the image leaves them as they are. An image without objects has (0, 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import DataError

ROUNDING = 1e-3  # what a target may lie beside its range


def at_least_float32(numbers: Tensor) -> Tensor:
    """Half precision, which can't tell neighbouring pixels of large images apart, in float32."""
    return numbers if numbers.dtype in (torch.float32, torch.float64) else numbers.float()


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def centres(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom -> centre x, centre y, width, height."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + last) / 2, last - first], -1)


def to_pixels(targets: Tensor, size: tuple[int, int]) -> Tensor:
    """Targets (n, 5) of an image of `size` (H, W) -> (n, 5): class, left, top, right, bottom in pixels."""
    return torch.cat([targets[:, :1], corners(targets[:, 1:]) * _twice(size, targets)], 1)


def from_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, 5) class, left, top, right, bottom in pixels of an image of `size` (H, W) -> targets (n, 5)."""
    return torch.cat([boxes[:, :1], centres(boxes[:, 1:] / _twice(size, boxes))], 1)


def _twice(size: tuple[int, int], like: Tensor) -> Tensor:
    height, width = size
    return like.new_tensor([width, height, width, height])


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) left, top, right, bottom in pixels, brought inside an image of `size` (H, W)."""
    return boxes.clamp(min=0).minimum(_twice(size, boxes))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of one list with every box of another; 0 where both are without area.

    Shapes: (n, 4) and (m, 4), left, top, right, bottom -> (n, m).
    """
    sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    common = sides.clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - common
    return torch.where(union > 0, common / union, 0.0)


def batched(targets: Sequence[Tensor], images: int, classes: int) -> Tensor:
    """A batch's targets in one tensor, (n, 6): number of the image, class, centre x, centre y, width, height.

    Raises:
        DataError: not one tensor (n, 5) per image, a class that is none of 0 ... classes - 1, or a box that is not made
            of numbers between 0 and 1 (but for rounding).
    """
    if isinstance(targets, Tensor) or len(targets) != images:
        given = f"a tensor {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"{len(targets)} tensors"
        raise DataError(f"targets: {given} for {images} images; expected is a list with a tensor (n, 5) for each image")
    for number, boxes in enumerate(targets):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise DataError(
                f"targets of image {number}: shape {tuple(boxes.shape)}; expected is (n, 5): class, centre x, "
                "centre y, width, height, as fractions of the image"
            )
    floats = [boxes.float() for boxes in targets]
    rows = torch.cat([torch.cat([t.new_full((len(t), 1), i), t], 1) for i, t in enumerate(floats)])
    label, box = rows[:, 1], rows[:, 2:]
    inside = ((box >= -ROUNDING) & (box <= 1 + ROUNDING)).all(1)
    wrong = ~((label >= 0) & (label < classes) & (label == label.floor()) & inside)
    if wrong.any():
        first = rows[wrong][0].tolist()
        raise DataError(
            f"targets of image {int(first[0])}: {[round(value, 4) for value in first[1:]]} is no target; expected are "
            f"a class from 0 to {classes - 1} and centre x, centre y, width, height from 0 to 1, as fractions of the "
            "image"
        )
    return rows
