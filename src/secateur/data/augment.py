"""What training images go through: scaling, rotation, translation, flip and crop as one affine warp; blur; colours."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from secateur.data.dataset import IGNORE, Size
from secateur.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of R, G, B in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Normalise:
    """Takes the mean from every colour and divides by the standard deviation.

    mean, std: of R, G and B in [0, 1]; ImageNet's by default.

    Raises:
        DataError: a value is out of range.
    """

    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DataError(f"mean={self.mean}, std={self.std}: expected three numbers each, and std above 0")
        gain = np.array([1 / (255 * std) for std in self.std], np.float32)
        offset = np.array([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], np.float32)
        # what each of the 256 values becomes, (1, 256, 3): looking it up is several times as fast as the arithmetic
        object.__setattr__(self, "_table", (np.arange(256, dtype=np.uint8)[:, None] * gain + offset)[None])

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (H, W, 3) in RGB -> float32 (H, W, 3), in `out` if that is given."""
        return cv2.LUT(image, self._table, dst=out)

    @property
    def border(self) -> tuple[int, int, int]:
        """The colour that comes next to 0."""
        red, green, blue = (min(255, max(0, round(255 * mean))) for mean in self.mean)
        return red, green, blue


normalise = Normalise()


@dataclass(frozen=True)
class Change:
    """What is drawn for one image.

    matrix: float64 (2, 3), of the affine map from places (x, y) in the image to places in what it becomes, in pixels
        counted from the middle of the first one.
    size: (height, width) of what it becomes.
    blur: whether that is blurred.
    """

    matrix: np.ndarray
    size: Size
    blur: bool


@dataclass(frozen=True)
class Augment:
    """Ranges that the random changes of each sample are drawn from, uniformly.

    scale: smallest and largest factor; under 1 shows all of the image and void around it, over 1 a part of it.
    rotate: largest angle to either side, in degrees.
    translate: largest shift to either side, as a share of the height or width.
    flip: probability of a left-right flip.
    crop: (height, width) of what is cut out of the warped image, at a random place; where that is smaller, it lies in
        the middle, with void around it. None keeps the image's size.
    blur: probability of a Gaussian blur over 5x5 pixels, by the kernel (1, 4, 6, 4, 1) / 16 along both sides.
    border: colour of what comes from outside of the image.

    Raises:
        DataError: a value is out of range.
    """

    scale: tuple[float, float] = (0.75, 1.5)
    rotate: float = 10.0
    translate: float = 0.1
    flip: float = 0.5
    crop: Size | None = None
    blur: float = 0.0
    border: tuple[int, int, int] = normalise.border

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
            ("blur", self.blur, 0 <= self.blur <= 1, "a probability in 0..1"),
            (
                "crop",
                self.crop,
                self.crop is None or (len(self.crop) == 2 and min(self.crop) >= 1),
                "(height, width) in pixels",
            ),
        ):
            if not right:
                raise DataError(f"augmentation {name}={value}: expected {expected}")

    @classmethod
    def only_crop(cls, crop: Size, border: tuple[int, int, int] = normalise.border) -> Augment:
        """A random crop of the image as it is."""
        return cls(scale=(1.0, 1.0), rotate=0.0, translate=0.0, flip=0.0, crop=crop, border=border)

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray,
        generator: np.random.Generator,
        out: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Changed copies of the image, uint8 (H, W, 3), and the label, uint8 (H, W); what comes from outside is void.

        A label of one pixel, for all of the image, stays as it is.

        Args:
            image, label: of one sample.
            generator: what the changes are drawn from.
            out: arrays of the right shapes that the copies are written to; None for new ones.
        """
        new_image, new_label = out or (None, None)
        change = self.draw((image.shape[0], image.shape[1]), generator)
        height, width = change.size
        warped = cv2.warpAffine(
            image,
            change.matrix,
            (width, height),
            dst=None if change.blur else new_image,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=self.border,
        )
        if change.blur:
            warped = cv2.GaussianBlur(warped, (5, 5), 0, dst=new_image)
        if label.shape == (1, 1):
            if new_label is None:
                return warped, label
            new_label[:] = label
            return warped, new_label
        return warped, cv2.warpAffine(
            label,
            change.matrix,
            (width, height),
            dst=new_label,
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=IGNORE,
        )

    def draw(self, size: Size, generator: np.random.Generator) -> Change:
        """The change of one image, from the ranges.

        Args:
            size: (height, width) of the image.
            generator: what it is drawn from.
        """
        height, width = size
        factor = generator.uniform(*self.scale)
        angle = generator.uniform(-self.rotate, self.rotate)
        shift = generator.uniform(-self.translate, self.translate, 2) * (width, height)
        flip = generator.random() < self.flip
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, factor)
        matrix[:, 2] = matrix[:, 2] + shift
        if flip:
            matrix[0] = -matrix[0]
            matrix[0, 2] += width - 1
        if self.crop is not None:
            for axis, (side, crop) in enumerate(zip((width, height), self.crop[::-1], strict=True)):
                scaled = round(side * factor)
                spare = scaled - crop
                offset = int(generator.integers(0, spare + 1)) if spare > 0 else -(-spare // 2)
                matrix[axis, 2] -= (side - scaled) / 2 + offset
            height, width = self.crop
        blur = bool(self.blur and generator.random() < self.blur)
        return Change(matrix, (height, width), blur)
