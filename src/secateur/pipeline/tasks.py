"""A segmentation network's heads as tasks, for methods that look at every task's loss by itself."""

from __future__ import annotations

from torch import Tensor

from secateur.metrics import all_logits
from secateur.training.optimize import segmentation_loss

__all__ = ["task_losses"]


def task_losses(output: object, labels: Tensor, class_weights: Tensor | None = None) -> dict[str, Tensor]:
    """The loss of every head by itself: "main", and "side", or "side 1", "side 2" ... where there are several.

    Args:
        output: the network's output, see `all_logits`.
        labels: int64 (N, H, W).
        class_weights: as for `segmentation_loss`.
    """
    heads = all_logits(output)
    several = len(heads) > 2
    names = ["main", *(f"side {number}" if several else "side" for number in range(1, len(heads)))]
    return {name: segmentation_loss(head, labels, class_weights) for name, head in zip(names, heads, strict=True)}
