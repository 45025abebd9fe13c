"""How a network is asked about images: as a whole or in windows, at one scale or several, mirrored as well or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import RecipeError
from secateur.metrics import at_size, main_logits

__all__ = ["WHOLE", "Inference"]


@dataclass(frozen=True)
class Inference:
    """Where a network sees an image more than once, the class probabilities of all views are averaged.

    mode: "whole", or "slide": in overlapping windows of the size that it was trained on.
    window: (height, width) of the windows.
    overlap: share of a window that the next one covers as well; the last one ends where the image ends. What is smaller
        than a window is put into the middle of one, with 0 (the mean colour) around it.
    scales: the image is resized by these factors, one after the other.
    flip: every view is also shown mirrored left to right.

    Raises:
        RecipeError: windows without a size, or a number out of range.
    """

    mode: Literal["whole", "slide"] = "whole"
    window: tuple[int, int] | None = None
    overlap: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.mode == "slide" and self.window is None:
            raise RecipeError("Evaluation in windows needs their size; expected the (height, width) of training crops.")
        if not 0 <= self.overlap < 1 or not self.scales or min(self.scales) <= 0:
            raise RecipeError(
                f"overlap={self.overlap}, scales={self.scales}: expected a share under 1, and factors above 0."
            )

    def classes(self, model: nn.Module, images: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """The most probable class of every pixel, int64 (N, *size), for normalised images (N, 3, H, W)."""
        if self.mode == "whole" and self.scales == (1.0,) and not self.flip:
            return main_logits(model(images), size).argmax(1)
        total: Tensor | None = None
        for scale in self.scales:
            view = images if scale == 1 else _resized(images, scale)
            for mirrored in (False, True) if self.flip else (False,):
                found = self._probabilities(model, view.flip(-1) if mirrored else view, size)
                found = found.flip(-1) if mirrored else found
                total = found if total is None else total.add_(found)
        assert total is not None
        return total.argmax(1)

    def _probabilities(self, model: nn.Module, images: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """(N, K, *size) of one view."""
        if self.mode == "whole":
            return main_logits(model(images), size).softmax(1)
        assert self.window is not None
        height, width = images.shape[-2:]
        missing = [max(0, window - side) for window, side in zip(self.window, (height, width), strict=True)]
        top, left = missing[0] // 2, missing[1] // 2
        padded = F.pad(images, (left, missing[1] - left, top, missing[0] - top))
        total: Tensor | None = None
        views = padded.new_zeros(padded.shape[-2:])
        for y in _starts(padded.shape[-2], self.window[0], self.overlap):
            for x in _starts(padded.shape[-1], self.window[1], self.overlap):
                place = (..., slice(y, y + self.window[0]), slice(x, x + self.window[1]))
                found = main_logits(model(padded[place]), self.window).softmax(1)
                if total is None:
                    total = found.new_zeros(*found.shape[:2], *padded.shape[-2:])
                total[place] += found
                views[place] += 1
        assert total is not None
        return at_size((total / views)[..., top : top + height, left : left + width], size)


WHOLE = Inference()


def _resized(images: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side that is at least as long as one."""
    step = math.ceil(window * (1 - overlap) - 1e-6)  # a third is no binary fraction
    return [min(start, side - window) for start in range(0, side - window + step, step)]
