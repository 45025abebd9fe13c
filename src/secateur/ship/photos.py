"""The images and videos that a user names, whatever else lies beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from secateur.data.dataset import listing
from secateur.data.files import IMAGE_ENDINGS
from secateur.errors import DataError

__all__ = ["Input", "find_inputs", "frames", "frames_per_second"]

STILL = IMAGE_ENDINGS | {".webp", ".ppm", ".pgm"}
MOVING = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class Input:
    """An image or a video.

    stem: what its pictures are called; no other has the same.
    """

    path: Path
    stem: str

    @property
    def moves(self) -> bool:
        """Whether it is a video."""
        return self.path.suffix.lower() in MOVING


def find_inputs(paths: Sequence[Path], say: Callable[[str], None]) -> list[Input]:
    """Files as they are named, of folders the images and videos that lie in them, by name.

    Args:
        paths: files and folders.
        say: takes a line on what was left out of a folder.

    Raises:
        DataError: something is not there, or no image or video is left.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataError(
            listing("there are no such files or folders", missing) if missing[1:] else f"there is no {missing[0]}"
        )
    files: list[Path] = []
    for path in paths:
        files += _in_folder(path, say) if path.is_dir() else [path]
    if not files:
        endings = " ".join(sorted(STILL | MOVING))
        raise DataError(f"{', '.join(map(str, paths))}: no image or video in it; expected files that end in {endings}")
    found: dict[Path, Input] = {}
    taken: set[str] = set()
    for file in files:
        if file.resolve() not in found:
            stem, number = file.stem, 1
            while stem.casefold() in taken:  # some disks do not tell A from a
                number += 1
                stem = f"{file.stem}-{number}"
            taken.add(stem.casefold())
            found[file.resolve()] = Input(file, stem)
    return [*found.values()]


def _in_folder(folder: Path, say: Callable[[str], None]) -> list[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror or error}") from error
    wanted = [entry for entry in entries if entry.suffix.lower() in STILL | MOVING and entry.is_file()]
    others = [entry.name for entry in entries if entry not in set(wanted)]
    if others:
        named = ", ".join(others[:3]) + (" ..." if others[3:] else "")
        say(f"{folder}: {len(others)} of {len(entries)} entries are no images, and left out: {named}")
    return wanted


def frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, RGB uint8 (H, W, 3).

    Raises:
        DataError: OpenCV can't read it.
    """
    video = cv2.VideoCapture(str(path))
    try:
        ok, frame = video.read()
        if not ok:
            raise DataError(f"{path} is broken, or no video that OpenCV reads")
        while ok:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            ok, frame = video.read()
    finally:
        video.release()


def frames_per_second(path: Path) -> float:
    """Of a video; 25 if it does not say."""
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return float(rate) if 0 < rate < 1000 else 25.0
