"""Boundary IoU: how well outlines are met, where the IoU is ruled by the insides of large areas.

Cheng, Girshick, Dollár, Berg, Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR
2021. For every class: intersection over union of two bands, the pixels of the label and those of the prediction that
are at most d away from its outline, on the inside. d is a share of the image's diagonal, 0.02 in the paper for COCO, at
least one pixel. Distances are those of the authors' code, in a square; the image's border is an outline. Intersections
and unions are summed over the whole set, as for the IoU.

The paper has no void. Here void pixels are taken out of the prediction as well, so that both have an outline along void
and neither is right or wrong in it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Boundary"]


class Boundary(Metric):
    """Counts of pixels in the bands, by class; sums over batches and processes.

    Args:
        classes: how many.
        share: of the image's diagonal that the bands are wide.
        ignore_index: the label of void.
    """

    full_state_update = False
    intersection: Tensor
    union: Tensor

    def __init__(self, classes: int, share: float, ignore_index: int = 255) -> None:
        super().__init__()
        self.share, self.ignore_index = share, ignore_index
        for state in ("intersection", "union"):
            self.add_state(state, torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Adds a batch: predicted class numbers and labels, both integers (N, H, W)."""
        distance = max(1, round(self.share * math.hypot(*label.shape[-2:])))
        pred = pred.where(label != self.ignore_index, self.ignore_index)
        for number in torch.cat([pred.unique(), label.unique()]).unique().tolist():
            if number != self.ignore_index:
                one, other = (band(each == number, distance) for each in (pred, label))
                self.intersection[number] += (one & other).sum()
                self.union[number] += (one | other).sum()

    def compute(self) -> Tensor:
        """Boundary IoU of every class, float64 (K,); NaN for a class in neither labels nor predictions."""
        return self.ratio()

    def ratio(self) -> Tensor:
        """As `compute`, of what has been counted as it is: also before the first update, when all is NaN."""
        return self.intersection.cpu().double() / self.union.cpu()


def band(mask: Tensor, distance: int) -> Tensor:
    """The pixels of a mask, bool (N, H, W), that have something else within `distance` rows and columns."""
    side = 2 * distance + 1
    # sums over squares out of cumulative sums: their cost does not depend on the distance
    around = (distance + 1, distance, distance + 1, distance)
    total = F.pad(mask.int(), around).cumsum(-1, dtype=torch.int32).cumsum(-2, dtype=torch.int32)
    inside = total[:, side:, side:] - total[:, :-side, side:] - total[:, side:, :-side] + total[:, :-side, :-side]
    return mask & (inside < side * side)
