"""One confusion matrix over a whole data set, and the scores that are read from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from secateur.metrics.boundary import Boundary


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1], over all labelled pixels of the set together; NaN where there was no pixel at all.

    miou: mean of the intersection over union of the classes that occur in the labels or in the predictions.
    macc: mean over the classes that occur in the labels of the share of their pixels that is right.
    accuracy: share of all labelled pixels that is right.
    per_class: intersection over union of each class by name; None for a class in neither labels nor predictions.
    fwiou: frequency-weighted IoU: that of every class in proportion to its labelled pixels.
    boundary_iou: mean of the boundary IoU, see `boundary`; None if it was not asked for.
    boundary_per_class: that of each class, as in per_class; None if it was not asked for.
    """

    miou: float
    macc: float
    accuracy: float
    per_class: dict[str, float | None]
    fwiou: float = math.nan
    boundary_iou: float | None = None
    boundary_per_class: dict[str, float | None] | None = None


class Confusion:
    """Counts pixels by (label, prediction); sums over batches, so that the scores are those of the whole set.

    Args:
        classes: names of the classes, in the order of their numbers; or how many there are.
        ignore_index: the label that is left out (void).
        device: where the predictions will be.
        boundary: share of the image's diagonal that boundary IoU is measured in; None for none.
    """

    def __init__(
        self,
        classes: Sequence[str] | int,
        ignore_index: int = 255,
        device: torch.device | str = "cpu",
        boundary: float | None = None,
    ) -> None:
        self.names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        # Trusted input, checked when the data set was opened: validation would read every tensor twice more.
        self._counter = MulticlassConfusionMatrix(
            num_classes=len(self.names), ignore_index=ignore_index, validate_args=False
        ).to(device)
        self._boundary = None if boundary is None else Boundary(len(self.names), boundary, ignore_index).to(device)

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Adds a batch: predicted class numbers and labels, both integers (N, H, W)."""
        self._counter.update(pred, label)
        if self._boundary is not None:
            self._boundary.update(pred, label)

    @property
    def matrix(self) -> Tensor:
        """Pixel counts (K, K), int64: row = label, column = prediction; in a distributed run of this process."""
        return self._counter.confmat

    def reset(self) -> None:
        """Back to no pixels."""
        self._counter.reset()
        if self._boundary is not None:
            self._boundary.reset()

    def total(self) -> Tensor:
        """As `matrix`, on the CPU, of all processes together; all of them must ask."""
        with self._counter.sync_context():  # does nothing in a single process
            return self.matrix.cpu()

    def scores(self) -> Scores:
        """The scores of everything added so far, in a distributed run by all processes together."""
        matrix = self.total().double()
        hit, labelled, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou = hit / (labelled + predicted - hit)  # 0/0 = NaN: the class occurs nowhere
        outlines = None
        if self._boundary is not None:
            with self._boundary.sync_context():
                outlines = self._boundary.ratio()
        return Scores(
            miou=iou.nanmean().item(),
            macc=(hit / labelled).nanmean().item(),
            accuracy=(hit.sum() / labelled.sum()).item(),
            per_class=self._by_name(iou),
            fwiou=(labelled / labelled.sum() * iou.nan_to_num()).sum().item(),
            boundary_iou=None if outlines is None else outlines.nanmean().item(),
            boundary_per_class=None if outlines is None else self._by_name(outlines),
        )

    def _by_name(self, values: Tensor) -> dict[str, float | None]:
        return {n: None if value != value else value for n, value in zip(self.names, values.tolist(), strict=True)}
