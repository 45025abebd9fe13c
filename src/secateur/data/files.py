"""Reads image and label files, and says what is wrong with the ones that can't be used."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from secateur.errors import DataError
from secateur.files import atomic_path

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _INDEXED = 0, 3  # PNG's colour types


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB, uint8 (H, W, 3).

    Raises:
        DataError: the file can't be read, is truncated or is no image.
    """
    return cv2.cvtColor(_decode(_bytes(path, "image"), path, "image", cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> np.ndarray:
    """A single-channel label file as it is, (H, W) of unsigned integers; of a palette image its indices.

    Raises:
        DataError: the file can't be read, is truncated, is no image or has several channels.
    """
    data = _bytes(path, "label")
    indexed = _is_png(data) and data[25] == _INDEXED
    label = _decode(_as_grey(data) if indexed else data, path, "label", cv2.IMREAD_UNCHANGED)
    if label.ndim != 2:
        raise DataError(
            f"label {path} has {label.shape[2]} channels (a colour image); expected a single-channel PNG "
            "whose pixels are class numbers"
        )
    # fewer than 8 bits a pixel are spread over 0..255
    return label // (255 // (2 ** data[24] - 1)) if indexed and data[24] < 8 else label


def read_colours(path: Path) -> np.ndarray:
    """A label file whose pixels are colours, uint8 (H, W, 3) in RGB; of a palette image its colours.

    Raises:
        DataError: the file can't be read, is truncated, is no image or has one channel.
    """
    label = _decode(_bytes(path, "label"), path, "label", cv2.IMREAD_UNCHANGED)
    if label.ndim != 3 or label.dtype != np.uint8:
        raise DataError(
            f"label {path} holds {'single numbers' if label.ndim == 2 else '16-bit colours'}; expected an image of "
            "8-bit colours, each the colour of a class"
        )
    return cv2.cvtColor(label[..., :3], cv2.COLOR_BGR2RGB)


def write_label(path: Path, label: np.ndarray, palette: Sequence[tuple[int, int, int]] | None = None) -> None:
    """Writes a PNG: uint8 (H, W) of numbers, with the colours that a palette shows them in, or (H, W, 3) in RGB."""
    pixels = label if label.ndim == 2 else cv2.cvtColor(label, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(data if palette is None else _as_indexed(data, palette))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """At (height, width): by area where it shrinks, else linearly."""
    height, width = size
    if image.shape[:2] == size:
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """At (height, width), by the nearest pixel; a label of one pixel, for all of an image, stays one."""
    height, width = size
    if label.shape in (size, (1, 1)):
        return label
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _bytes(path: Path, kind: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{kind} {path} can't be read: {error.strerror or error}") from error
    if _truncated(data):
        raise DataError(f"{kind} {path} is truncated ({len(data)} bytes); copy or download it again")
    return data


def _decode(data: bytes, path: Path, kind: str, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # of sizes that no image has
        pixels = None
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


# A PNG with a palette is a grey PNG with another colour type in its header and a list of colours: turned into the grey
# one, OpenCV decodes its indices (it would look up their colours otherwise).


def _is_png(data: bytes) -> bool:
    return data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) > 33


def _as_grey(data: bytes) -> bytes:
    """A PNG with a palette as one whose grey values are the indices."""
    out = [_PNG]
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            body = body[:9] + bytes([_GREY]) + body[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):  # the others may depend on the colour type
            out.append(_chunk(kind, body))
    return b"".join(out)


def _as_indexed(data: bytes, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """An 8-bit grey PNG as one with a palette, black where that ends."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    out = [_PNG]
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            out += [_chunk(kind, body[:9] + bytes([_INDEXED]) + body[10:]), _chunk(b"PLTE", colours.tobytes())]
        else:
            out.append(_chunk(kind, body))
    return b"".join(out)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
