"""The picture that TensorBoard shows of a few images while a network is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secateur.data.files import resize_image, resize_label
from secateur.report.picture import coloured

_WIDTH = 320  # pixels of one image, at most: the pictures of a whole training are kept
_GAP = 4


def samples_picture(
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.integer]],
    predictions: Sequence[NDArray[np.integer]],
    palette: Sequence[tuple[int, int, int]],
) -> NDArray[np.uint8]:
    """One line per sample: the image, the truth and the prediction, side by side.

    Args:
        images: uint8 HxWx3, RGB; all are brought to the size of the first, or to 320 pixels' width.
        labels: HxW class indices of each; whatever is no class (void, 255) is black.
        predictions: as `labels`.
        palette: RGB of every class.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    height, width = images[0].shape[:2]
    cell = (max(1, round(height * min(1.0, _WIDTH / width))), min(width, _WIDTH))
    lines = []
    for image, *maps in zip(images, labels, predictions, strict=True):
        cells = [resize_image(image, cell)]
        cells += [coloured(resize_label(each.astype(np.uint8), cell), palette) for each in maps]
        lines.append(np.concatenate([_framed(each) for each in cells], axis=1))
    return np.concatenate(lines, axis=0)


def _framed(cell: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With a gap at the right and below, in white."""
    return np.pad(cell, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
