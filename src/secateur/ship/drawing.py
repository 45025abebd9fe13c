"""Predictions as pictures of the photo's own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

__all__ = ["overlay", "side_by_side"]

SHARE = 0.5  # of the class's colour in an overlay
CAPTION, GAP = 24, 4  # pixels


def overlay(photo: np.ndarray, classes: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The photo, RGB uint8 (H, W, 3), under the colours of the classes (H, W)."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return cv2.addWeighted(photo, 1 - SHARE, table[classes], SHARE, 0)


def side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures of one size, (H, W, 3), from left to right, each below its name: (H + 24, n W + (n - 1) 4, 3), white
    around."""
    height, width = next(iter(pictures.values())).shape[:2]
    sheet = np.full((height + CAPTION, len(pictures) * (width + GAP) - GAP, 3), 255, np.uint8)
    for column, (name, picture) in enumerate(pictures.items()):
        left = column * (width + GAP)
        sheet[CAPTION:, left : left + width] = picture
        caption = np.full((CAPTION, width, 3), 255, np.uint8)
        cv2.putText(caption, name, (2, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        sheet[:CAPTION, left : left + width] = caption
    return sheet
