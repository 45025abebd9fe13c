"""Notices when training diverges, before anything bad is saved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.errors import CannotError

__all__ = ["FiniteCheck"]


class FiniteCheck:
    """Adds losses up and stops training at the first loss or gradient that is not finite.

    Reading a number from a GPU waits for it, so there the numbers are looked at every few steps; always before a
    checkpoint is written.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.last_loss = math.nan
        self._pending: list[tuple[Tensor, int, str]] = []

    def add(self, loss: Tensor, gradients: list[Tensor], images: int, where: str) -> float:
        """Takes the loss and gradients of the step about to be made; returns the newly known sum of loss * images."""
        # an inf or NaN anywhere in a gradient makes its sum inf or NaN
        total = torch.stack([g.sum().float() for g in gradients]).sum() if gradients else torch.zeros_like(loss)
        self._pending.append((torch.stack([loss.float(), total]), images, where))
        return self.flush() if len(self._pending) >= self.every else 0.0

    def flush(self) -> float:
        """Looks at the steps not looked at yet; returns their sum of loss * images."""
        if not self._pending:
            return 0.0
        numbers = torch.stack([pair for pair, _, _ in self._pending]).tolist()
        loss_sum = 0.0
        for (loss, total), (_, images, where) in zip(numbers, self._pending, strict=True):
            if not (math.isfinite(loss) and math.isfinite(total)):
                what = "A gradient is not finite" if math.isfinite(loss) else f"The loss is {loss}"
                raise CannotError(
                    f"{what} at {where}: training has diverged and was stopped; the last checkpoint is from before. "
                    "Lower the learning rate, lengthen the warm-up or train in precision 32."
                )
            loss_sum += loss * images
        self.last_loss = numbers[-1][0]
        self._pending = []
        return loss_sum
