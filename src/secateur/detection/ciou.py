"""Complete IoU: overlap, distance of the centres and aspect ratio in one number.

Zheng, Wang, Liu, Li, Ye, Ren, "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression", AAAI 2020,
https://arxiv.org/abs/1911.08287, equations 7 to 11. As there, the weight of the aspect ratio is a constant for the
gradient. Sides shorter than `SHORTEST` count as that long, so that the gradient is finite for boxes without area.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.detection.boxes import at_least_float32

SHORTEST = 1e-7  # in the boxes' unit


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """IoU - d^2 / c^2 - alpha v, box by box; the loss is one minus that.

    d is the distance of the centres, c the diagonal of the smallest box around both, v = 4 / pi^2 (arctan(w / h) of one
    minus that of the other)^2 and alpha = v / (1 - IoU + v).

    Shapes: two times (n, 4), left, top, right, bottom -> (n,), from -1.5 for boxes that have nothing in common to 1.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    width_a, height_a = (a[:, 2:] - a[:, :2]).clamp(min=SHORTEST).unbind(1)
    width_b, height_b = (b[:, 2:] - b[:, :2]).clamp(min=SHORTEST).unbind(1)
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    overlap = common / (width_a * height_a + width_b * height_b - common)
    points = torch.cat([a, b], 1).view(-1, 4, 2)
    diagonal = (points.amax(1) - points.amin(1)).square().sum(1) + SHORTEST**2
    distance = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]).square().sum(1) / 4
    v = (4 / math.pi**2) * (torch.atan(width_a / height_a) - torch.atan(width_b / height_b)).square()
    with torch.no_grad():
        alpha = v / (1 - overlap + v + SHORTEST)
    return overlap - distance / diagonal - alpha * v
