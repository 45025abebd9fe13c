"""Data sets that are files on disk: for every sample an image, and a label of its size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from secateur.data.dataset import IGNORE, Sample, SegmentationDataset, Size, limited
from secateur.data.files import IMAGE_ENDINGS, read_image
from secateur.data.labels import Code, Colour
from secateur.errors import DataError

Pair = tuple[Path, Path | None]  # image and label; None where there is none to be had: all of it is void then


class PairDataset(SegmentationDataset):
    """Base of the data sets on disk; a subclass finds the pairs and says what their pixels mean.

    Args:
        name, classes, palette, split, size: as of every data set.
        root: the folder that the data set is in; samples are named by their place in it.
        pairs: image and label of every sample.
        code: what the labels' pixels mean.
        limit: only the first so many samples.

    Raises:
        DataError: there is no pair.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        palette: Sequence[Colour],
        split: str,
        size: Size | None,
        *,
        root: Path,
        pairs: Sequence[Pair],
        code: Code,
        limit: int | None,
    ) -> None:
        super().__init__(name, classes, palette, split, size)
        if not pairs:
            raise DataError(f"{name}: the split {split!r} in {root} is empty")
        self.root, self._code, self._written_as = root, code, code
        self.pairs = pairs[: limited(len(pairs), limit)]

    def __len__(self) -> int:
        return len(self.pairs)

    def missing(self, index: int) -> list[str]:
        files = zip(("image", "label"), self.pairs[index], strict=True)
        return [f"{kind} {path}" for kind, path in files if path is not None and not path.is_file()]

    def load(self, index: int) -> Sample:
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        label = np.full(image.shape[:2], IGNORE, np.uint8) if label_path is None else self._read_label(label_path)
        if image.shape[:2] != label.shape:
            raise DataError(
                f"image {image_path} is {image.shape[0]}x{image.shape[1]} but its label {label_path} is "
                f"{label.shape[0]}x{label.shape[1]}; expected the same height and width"
            )
        name = image_path.relative_to(self.root) if image_path.is_relative_to(self.root) else image_path
        return Sample(image, label, name=str(name))

    def _read_label(self, path: Path) -> np.ndarray:
        """Class numbers, uint8 (H, W), 255 = void."""
        return self._code.read(path)

    def write_prediction(self, folder: Path, index: int, classes: np.ndarray) -> Path:
        """Writes a prediction for sample `index` in the data set's own coding, for a benchmark's server.

        Args:
            folder: where to; made if need be.
            classes: class numbers (H, W), of the size that the image has on disk.

        Returns:
            The file: the image's name, ending in .png.
        """
        path = Path(folder) / f"{self.pairs[index][0].stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written_as.write(path, classes)
        return path


def open_root(name: str, root: str | os.PathLike[str] | None, layout: str) -> Path:
    """The folder of a data set.

    Args:
        layout: what is in it, for messages.

    Raises:
        DataError: none was given, or it is no folder.
    """
    if root is None:
        raise DataError(f"{name} needs a root: the folder of the data set, {layout}")
    path = Path(root).expanduser()
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{name}: the root {path} {problem}; expected the folder of the data set, {layout}")
    return path


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder, by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))


def lines_of(path: Path) -> list[tuple[int, list[str]]]:
    """Number and words of every line of a list file that is not empty.

    Raises:
        DataError: the file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list file {path} can't be read: {error}") from error
    return [(number, words) for number, line in enumerate(text.splitlines(), 1) if (words := line.split())]


def listed_pairs(root: Path, list_file: Path) -> list[Pair]:
    """The samples of a list file, a line 'image label' for each; see `under`.

    Raises:
        DataError: the file can't be read, or a line is something else.
    """
    pairs: list[Pair] = []
    for number, words in lines_of(list_file):
        if len(words) != 2:
            raise DataError(f"{list_file}, line {number}: expected 'image label', got {' '.join(words)!r}")
        pairs.append((under(root, words[0]), under(root, words[1])))
    return pairs


def under(root: Path, entry: str) -> Path:
    """The file under `root` that an entry of a list file means, whatever stands in front; if none, the plain join."""
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part != "/"]
    for skipped in range(len(parts)):
        path = root.joinpath(*parts[skipped:])
        if path.is_file():
            return path
    return root.joinpath(*parts)
