"""An image brought to the network's size whole and undistorted, with bars around it; its boxes there and back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.detection.boxes import clipped, from_pixels, to_pixels
from secateur.errors import DataError

GREY = 114  # of the bars


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in a larger or smaller one: scaled to fit, in the middle.

    Attributes:
        before: height and width of the image.
        size: height and width of what the network sees.

    Raises:
        DataError: a side is shorter than one pixel.
    """

    before: tuple[int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if min(*self.before, *self.size) < 1:
            raise DataError(f"a letterbox of {self.before} in {self.size}: heights and widths of 1 or more are needed")

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the scaled image."""
        scale = min(new / old for new, old in zip(self.size, self.before, strict=True))
        height, width = (max(1, round(scale * old)) for old in self.before)
        return height, width

    @property
    def corner(self) -> tuple[int, int]:
        """The first row and column of the scaled image."""
        top, left = ((outer - inner) // 2 for outer, inner in zip(self.size, self.inner, strict=True))
        return top, left

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) of the size before -> (H, W, 3) of the network's size.

        Raises:
            DataError: the image is of another size.
        """
        if image.shape[:2] != tuple(self.before):
            raise DataError(f"an image of {image.shape[:2]} for a letterbox made for {self.before}")
        height, width = self.inner
        if (height, width) != tuple(self.before):
            how = cv2.INTER_AREA if height < self.before[0] else cv2.INTER_LINEAR
            image = cv2.resize(image, (width, height), interpolation=how)  # type: ignore[assignment]
        out = np.full((*self.size, *image.shape[2:]), GREY, dtype=np.uint8)
        top, left = self.corner
        out[top : top + height, left : left + width] = image
        return out

    def targets(self, targets: Tensor) -> Tensor:
        """Targets (n, 5) of the image -> those of the image in its letterbox."""
        boxes = to_pixels(targets, self.inner)
        return from_pixels(torch.cat([boxes[:, :1], boxes[:, 1:] + self._corner(boxes)], 1), self.size)

    def back(self, found: Tensor) -> Tensor:
        """Detections (n, 6) in pixels of the network's size -> in pixels of the image, and inside it."""
        (height, width), (old_height, old_width) = self.inner, self.before
        scale = found.new_tensor([old_width / width, old_height / height] * 2)
        boxes = (found[:, :4] - self._corner(found)) * scale
        return torch.cat([clipped(boxes, self.before), found[:, 4:]], 1)

    def _corner(self, like: Tensor) -> Tensor:
        top, left = self.corner
        return like.new_tensor([left, top, left, top])
