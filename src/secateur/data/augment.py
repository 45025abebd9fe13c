"""Random scaling, rotation, translation and flip of an image and its label, together, as one affine warp."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from secateur.data.dataset import IGNORE
from secateur.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of R, G, B in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
_BORDER = tuple(round(255 * mean) for mean in IMAGENET_MEAN)  # what is warped in from outside is 0 after normalising
_GAIN = np.array([1 / (255 * std) for std in IMAGENET_STD], np.float32)
_OFFSET = np.array([-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], np.float32)


@dataclass(frozen=True)
class Augment:
    """Ranges that the random warp of each sample is drawn from, uniformly.

    scale: smallest and largest factor; under 1 shows all of the image and void around it, over 1 a part of it.
    rotate: largest angle to either side, in degrees.
    translate: largest shift to either side, as a share of the height or width.
    flip: probability of a left-right flip.

    Raises:
        DataError: a value is out of range.
    """

    scale: tuple[float, float] = (0.75, 1.5)
    rotate: float = 10.0
    translate: float = 0.1
    flip: float = 0.5

    def __post_init__(self) -> None:
        for name, value, right, expected in (
            (
                "scale",
                self.scale,
                len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1],
                "two factors, 0 < low <= high",
            ),
            ("rotate", self.rotate, 0 <= self.rotate <= 180, "degrees in 0..180"),
            ("translate", self.translate, 0 <= self.translate <= 1, "a share of the side in 0..1"),
            ("flip", self.flip, 0 <= self.flip <= 1, "a probability in 0..1"),
        ):
            if not right:
                raise DataError(f"augmentation {name}={value}: expected {expected}")

    def __call__(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Warped copies of the image, uint8 (H, W, 3), and the label, uint8 (H, W); what comes from outside is void."""
        height, width = label.shape
        factor = generator.uniform(*self.scale)
        angle = generator.uniform(-self.rotate, self.rotate)
        shift = generator.uniform(-self.translate, self.translate, 2) * (width, height)
        flip = generator.random() < self.flip
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, factor)
        matrix[:, 2] = matrix[:, 2] + shift
        if flip:
            matrix[0] = -matrix[0]
            matrix[0, 2] += width - 1
        warped = cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=_BORDER
        )
        return warped, cv2.warpAffine(
            label, matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE
        )


def normalise(image: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) in RGB -> float32 (..., 3), with ImageNet's mean 0 and standard deviation 1 for each colour."""
    return image * _GAIN + _OFFSET
