"""One confusion matrix over a whole data set, and the scores that are read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1], over all labelled pixels of the set together; NaN where there was no pixel at all.

    miou: mean of the intersection over union of the classes that occur in the labels or in the predictions.
    macc: mean over the classes that occur in the labels of the share of their pixels that is right.
    accuracy: share of all labelled pixels that is right.
    per_class: intersection over union of each class by name; None for a class in neither labels nor predictions.
    """

    miou: float
    macc: float
    accuracy: float
    per_class: dict[str, float | None]


class Confusion:
    """Counts pixels by (label, prediction); sums over batches, so that the scores are those of the whole set.

    Args:
        classes: names of the classes, in the order of their numbers; or how many there are.
        ignore_index: the label that is left out (void).
        device: where the predictions will be.
    """

    def __init__(
        self, classes: Sequence[str] | int, ignore_index: int = 255, device: torch.device | str = "cpu"
    ) -> None:
        self.names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        # Trusted input, checked when the data set was opened: validation would read every tensor twice more.
        self._counter = MulticlassConfusionMatrix(
            num_classes=len(self.names), ignore_index=ignore_index, validate_args=False
        ).to(device)

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Adds a batch: predicted class numbers and labels, both integers (N, H, W)."""
        self._counter.update(pred, label)

    @property
    def matrix(self) -> Tensor:
        """Pixel counts (K, K), int64: row = label, column = prediction."""
        return self._counter.confmat

    def reset(self) -> None:
        """Back to no pixels."""
        self._counter.reset()

    def scores(self) -> Scores:
        """The scores of everything added so far, in a distributed run by all processes together."""
        with self._counter.sync_context():  # does nothing in a single process
            matrix = self.matrix.double().cpu()
        hit, labelled, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou = hit / (labelled + predicted - hit)  # 0/0 = NaN: the class occurs nowhere
        return Scores(
            miou=iou.nanmean().item(),
            macc=(hit / labelled).nanmean().item(),
            accuracy=(hit.sum() / labelled.sum()).item(),
            per_class={
                name: None if value != value else value for name, value in zip(self.names, iou.tolist(), strict=True)
            },
        )
