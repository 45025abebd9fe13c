"""Reads image and label files, and says what is wrong with the ones that can't be used."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from secateur.errors import DataError


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB, uint8 (H, W, 3).

    Raises:
        DataError: the file can't be read, is truncated or is no image.
    """
    return cv2.cvtColor(_decode(path, "image", cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> np.ndarray:
    """A single-channel label file as it is, (H, W) of unsigned integers.

    Raises:
        DataError: the file can't be read, is truncated, is no image or has several channels.
    """
    label = _decode(path, "label", cv2.IMREAD_UNCHANGED)
    if label.ndim != 2:
        raise DataError(
            f"label {path} has {label.shape[2]} channels (a colour or palette image); expected a single-channel PNG "
            "whose pixels are class numbers"
        )
    return label


def resize(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both at (height, width): the image by area where it shrinks, else linearly, the label by nearest pixel."""
    height, width = size
    if image.shape[:2] != size:
        shrinks = image.shape[0] >= height and image.shape[1] >= width
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


def _decode(path: Path, kind: str, flags: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{kind} {path} can't be read: {error.strerror or error}") from error
    if _truncated(data):
        raise DataError(f"{kind} {path} is truncated ({len(data)} bytes); copy or download it again")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise DataError(f"{kind} {path} is broken or no image; copy or download it again")
    return pixels


def _truncated(data: bytes) -> bool:
    """Whether the end of the file is missing. Decoders may fill the rest with grey and say nothing."""
    if data.startswith(b"\xff\xd8"):  # JPEG: an end marker has to follow the last scan; inside a scan it can't occur
        return data.find(b"\xff\xd9", max(data.rfind(b"\xff\xda"), 0)) < 0
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-1024:]
    return not data
