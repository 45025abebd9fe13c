"""Non-maximum suppression, on any device, and the detections that it leaves.

Boxes are taken from the best score to the worst; each that is taken removes those behind it that overlap it by more
than a threshold and have its class. The outcome is that of taking them one by one, ties in the order in which they
came, but whole blocks are compared at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.detection.boxes import at_least_float32, corners, iou

BLOCK = 1024  # boxes that are compared with each other at once


def suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor | None = None, most_overlap: float = 0.45, most: int | None = None
) -> Tensor:
    """The boxes that stay, as indices, from the best to the worst.

    Args:
        boxes: (n, 4), left, top, right, bottom.
        scores: (n,).
        classes: (n,); boxes of different classes do not remove each other. None: all are of one.
        most_overlap: a box goes if its IoU with a better one that stays is above this.
        most: no more than so many stay.
    """
    boxes = at_least_float32(boxes)
    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]

    def overlapping(first: Tensor, second: Tensor) -> Tensor:
        found = iou(boxes[first], boxes[second]) > most_overlap
        return found if classes is None else found & (classes[first][:, None] == classes[second])

    for block in order.split(BLOCK):
        block = block[~overlapping(kept, block).any(0)]
        kept = torch.cat([kept, block[_first_come(overlapping(block, block))]])
        if most is not None and len(kept) >= most:
            return kept[:most]
    return kept


def _first_come(overlapping: Tensor) -> Tensor:
    """Which of n boxes stay, (n,), if each that stays removes those behind it that it overlaps, (n, n).

    After k rounds everything is right that hangs on chains of at most k overlaps, so what no longer changes is the
    answer.
    """
    removes = overlapping.triu(1)
    stays = removes.new_ones(len(removes))
    while True:
        now = ~(removes & stays[:, None]).any(0)
        if torch.equal(now, stays):
            return stays
        stays = now


def detections(
    decoded: Tensor,
    least_score: float = 0.25,
    most_overlap: float = 0.45,
    most: int = 300,
    every_class: bool = False,
    candidates: int = 30_000,
) -> list[Tensor]:
    """What a detector finds in every image, from the best score to the worst.

    A score is objectness times the class's probability. For mAP take `least_score=0.001`, `every_class=True` and an
    overlap of 0.6 or so: the curve of precision and recall needs the bad ones, too.

    Args:
        decoded: (N, M, 5 + K), see `decode`.
        least_score: worse ones are no detections.
        most_overlap: see `suppress`.
        most: detections per image.
        every_class: a box can be of several classes; otherwise of the best one.
        candidates: boxes per image, the best ones, that suppression begins with.

    Returns:
        Per image (n, 6): left, top, right, bottom in pixels of the network's input, score, class.
    """
    found = []
    for image in at_least_float32(decoded.detach()):
        scores = image[:, 4:5] * image[:, 5:]
        if not every_class:
            best = scores.argmax(1, keepdim=True)
            scores = torch.zeros_like(scores).scatter_(1, best, scores.gather(1, best))
        box, label = (scores > least_score).nonzero(as_tuple=True)
        score = scores[box, label]
        if len(score) > candidates:
            first = score.argsort(descending=True, stable=True)[:candidates]
            box, label, score = box[first], label[first], score[first]
        boxes = corners(image[box, :4])
        kept = suppress(boxes, score, label, most_overlap, most)
        found.append(torch.cat([boxes[kept], score[kept, None], label[kept, None].to(score)], 1))
    return found
