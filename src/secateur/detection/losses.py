"""The three losses of an anchor-based detector: where, whether, what.

box: one minus the complete IoU of what the matched places say and their targets. objectness: binary cross-entropy of
all places, which should say how well their box fits (the complete IoU, at least 0; without gradient), or 0 without a
target. class: binary cross-entropy of every class at the matched places. Each is a mean over a level's places, summed
over the levels; the levels of objectness are weighted, since the fine ones have more places and fewer of them
matched.

The gains are those that YOLOv5's release 5.0 was trained with on COCO. Choices where there is freedom: means, so that
neither the batch nor the image's size scales a loss; a place that several targets want should reach the best one's IoU;
a network of a single class learns it like any other. The class loss grows with the number of classes, as if summed over
them and divided by COCO's 80.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.detection.boxes import at_least_float32, batched, corners
from secateur.detection.ciou import ciou
from secateur.detection.decode import in_cells
from secateur.detection.matching import Matches, match
from secateur.errors import ModelError

COCO_CLASSES = 80


@dataclass(frozen=True, eq=False)
class DetectionLoss:
    """The losses of a detector's output, as a function (output, targets) -> {"box", "objectness", "class"}.

    Attributes:
        anchors: (levels, A, 2), width and height in cells of their level: the network's `detect.anchors`.
        box, objectness, classes: gains.
        balance: weights of the levels' objectness, from the finest.
        most_ratio: see `match`.
    """

    anchors: Tensor
    box: float = 0.05
    objectness: float = 1.0
    classes: float = 0.5
    balance: tuple[float, ...] = (4.0, 1.0, 0.4)
    most_ratio: float = 4.0

    def __call__(self, output: Any, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """Scalars; train with their sum.

        Args:
            output: a detector's in train mode, maps (N, A, h, w, 5 + K) per level, or in eval mode, (decoded, maps).
            targets: per image (n, 5), see `boxes`; on any device.

        Raises:
            DataError: the targets are none.
            ModelError: the output is none of a detector with these anchors.
        """
        maps = self._maps(output)
        first = maps[0]
        of_classes = first.shape[4] - 5
        rows = batched(targets, first.shape[0], of_classes).to(first.device)
        box = torch.stack([raw.sum() for raw in maps]).sum() * 0  # also without targets a function of the output
        objectness, classes = box.clone(), box.clone()
        for raw, anchors, weight in zip(maps, self.anchors.to(first), self.balance, strict=True):
            wanted = match(rows, anchors, (raw.shape[2], raw.shape[3]), self.most_ratio)
            overlap = raw.new_zeros(raw.shape[:4])
            if len(wanted.label):
                said = raw[wanted.image, wanted.anchor, wanted.row, wanted.column]
                quality = ciou(corners(in_cells(said[:, :4], anchors[wanted.anchor])), corners(wanted.box))
                box = box + (1 - quality).mean()
                classes = classes + F.binary_cross_entropy_with_logits(
                    said[:, 5:], F.one_hot(wanted.label, of_classes).to(said)
                )
                overlap = _best(overlap, wanted, quality.detach().clamp(min=0))
            objectness = objectness + weight * F.binary_cross_entropy_with_logits(raw[..., 4], overlap)
        gain = self.classes * of_classes / COCO_CLASSES
        return {"box": self.box * box, "objectness": self.objectness * objectness, "class": gain * classes}

    def _maps(self, output: Any) -> list[Tensor]:
        if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], (list, tuple)):
            output = output[1]
        shapes = [tuple(t.shape) for t in output if isinstance(t, Tensor)] if isinstance(output, (list, tuple)) else []
        levels, per_cell = self.anchors.shape[:2]
        if len(shapes) != levels or len(self.balance) != levels:
            raise ModelError(
                f"a detector's output with {levels} maps was expected, one per level of anchors and of balance "
                f"{self.balance}; got {type(output).__name__} {shapes}"
            )
        if any(len(shape) != 5 or shape[1] != per_cell or shape[4] < 6 for shape in shapes):
            raise ModelError(f"maps of shape (N, {per_cell}, h, w, 5 + classes) were expected, got {shapes}")
        return [at_least_float32(raw) for raw in output]


def _best(overlap: Tensor, wanted: Matches, quality: Tensor) -> Tensor:
    """The largest quality of every place, (N, A, h, w); 0 where there is none."""
    _, anchors, rows, columns = overlap.shape
    place = ((wanted.image * anchors + wanted.anchor) * rows + wanted.row) * columns + wanted.column
    return overlap.flatten().scatter_reduce(0, place, quality, "amax").view_as(overlap)
