"""What the pixels of label files stand for: numbers or colours in the file, class numbers with 255 = void in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from secateur.data.dataset import IGNORE
from secateur.data.files import read_colours, read_label, write_label
from secateur.errors import DataError

_UNKNOWN = 254  # marks values that are not allowed, so that there may be 254 classes

Colour = tuple[int, int, int]


class Numbers:
    """Label files with one number a pixel.

    Args:
        classes: value in the files -> class number, or `IGNORE`; other values are mistakes. Where several values mean
            the same, predictions are written as the first of them.
        allowed: these values in words, for messages.
        palette: colours that written files show the values in; None writes grey ones.
    """

    def __init__(self, classes: Mapping[int, int], allowed: str, palette: Sequence[Colour] | None = None) -> None:
        self.allowed, self.palette = allowed, palette
        self._classes = np.full(256, _UNKNOWN, np.uint8)
        self._values = np.zeros(256, np.uint8)
        for value, number in reversed([*classes.items()]):
            self._classes[value], self._values[number] = number, value

    def read(self, path: Path) -> np.ndarray:
        """Class numbers, uint8 (H, W), 255 = void.

        Raises:
            DataError: the file can't be used, or holds a value that is not allowed.
        """
        return self.decode(read_label(path), path)

    def decode(self, label: np.ndarray, path: Path) -> np.ndarray:
        """As `read`, of the unsigned integers (H, W) that `path` holds."""
        # values of 16 bits that are no class must not wrap around into one
        narrow = label if label.dtype == np.uint8 else np.minimum(label, IGNORE).astype(np.uint8)
        numbers = cv2.LUT(narrow, self._classes)
        wrong = (numbers == _UNKNOWN) | (label > IGNORE)
        if wrong.any():
            raise DataError(
                f"label {path} holds the value {label[wrong].max()} in {int(wrong.sum())} pixels; allowed are "
                f"{self.allowed}"
            )
        return numbers

    def write(self, path: Path, classes: np.ndarray) -> None:
        """Writes class numbers (H, W) as `read` reads them."""
        write_label(path, self._values[classes.astype(np.uint8)], self.palette)


class Colours:
    """Label files with one colour a pixel.

    Args:
        classes: (R, G, B) -> class number, or `IGNORE`; other colours are mistakes. Where several colours mean the
            same, predictions are written in the first of them.
    """

    def __init__(self, classes: Mapping[Colour, int]) -> None:
        self._colours = np.zeros((256, 3), np.uint8)
        for colour, number in reversed([*classes.items()]):
            self._colours[number] = colour
        codes = {_code(colour): number for colour, number in classes.items()}
        self._codes = np.array(sorted(codes), np.int32)
        self._numbers = np.array([codes[code] for code in sorted(codes)], np.uint8)

    def read(self, path: Path) -> np.ndarray:
        """Class numbers, uint8 (H, W), 255 = void.

        Raises:
            DataError: the file can't be used, or holds a colour that is none of a class.
        """
        colours = read_colours(path)
        codes = colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        at = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        wrong = self._codes[at] != codes
        if wrong.any():
            red, green, blue = colours[wrong][0]
            raise DataError(
                f"label {path} holds colours that are of no class in {int(wrong.sum())} pixels, for instance "
                f"({red}, {green}, {blue}); expected the {len(self._codes)} colours of the classes and of void, as a "
                "file keeps them that was never saved as JPEG nor resized smoothly"
            )
        return self._numbers[at]

    def write(self, path: Path, classes: np.ndarray) -> None:
        """Writes class numbers (H, W) as `read` reads them."""
        write_label(path, self._colours[classes.astype(np.uint8)])


Code = Numbers | Colours


def _code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue
