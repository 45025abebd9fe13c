"""From a detector's maps to boxes in pixels.

Of every cell and anchor a map holds (t_x, t_y, t_w, t_h, objectness, one number per class), all before the sigmoid s.
In cells, the box has its centre at the cell's corner + 2 s(t_xy) - 0.5, anywhere from half a cell before the cell to
half a cell behind it, and is (2 s(t_wh))^2 times as large as the anchor: up to four times, and without the
exponential that can overflow. Bochkovskiy, Wang, Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection",
2020, https://arxiv.org/abs/2004.10934, section 3.4, tells why the centre must be able to leave its cell; the numbers
are those of YOLOv5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.detection.boxes import at_least_float32


def in_cells(raw: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4): centre from the cell's corner, width, height, all in cells.

    Args:
        raw: (..., 4), t_x, t_y, t_w, t_h.
        anchors: (..., 2), width and height in cells, broadcast against it.
    """
    share = raw.sigmoid()
    return torch.cat([2 * share[..., :2] - 0.5, (2 * share[..., 2:]).square() * anchors], -1)


def decode(maps: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Everything that all levels say, best and worst.

    Args:
        maps: per level (N, A, h, w, 5 + K).
        anchors: (levels, A, 2), width and height in cells of their level.
        strides: pixels from cell to cell, per level.

    Returns:
        (N, sum of A h w, 5 + K): centre x, centre y, width, height in pixels of the network's input; objectness;
        probability of every class, given that there is an object.
    """
    levels = []
    for level, (raw, stride) in enumerate(zip(map(at_least_float32, maps), strides, strict=True)):
        rows, columns = raw.shape[2:4]
        y = torch.arange(rows, device=raw.device, dtype=raw.dtype)[:, None].expand(rows, columns)
        x = torch.arange(columns, device=raw.device, dtype=raw.dtype).expand(rows, columns)
        box = in_cells(raw[..., :4], anchors[level, :, None, None].to(raw.dtype))
        centre = box[..., :2] + torch.stack([x, y], -1)
        level_boxes = torch.cat([centre * stride, box[..., 2:] * stride, raw[..., 4:].sigmoid()], -1)
        levels.append(level_boxes.flatten(1, 3))
    return torch.cat(levels, 1)
