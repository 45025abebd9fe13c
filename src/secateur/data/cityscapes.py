"""Cityscapes: 2975 / 500 / 1525 street scenes of 1024x2048 with fine labels; 19 of the 34 classes are evaluated.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016; leftImg8bit_trainvaltest.zip
and gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com.

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

Labels are read as they are published, with the numbers 0..33 of all classes (labelIds), and turned into the 19 of the
benchmark (trainIds) in memory. A set converted before, with *_gtFine_labelTrainIds.png and no labelIds, is read, too.
The test split's labels are not public: its files hold no class, and without them all is void. The benchmark's server
takes predictions as `write_prediction` writes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from secateur.data.dataset import IGNORE, Size
from secateur.data.labels import Colour, Numbers
from secateur.data.pairs import Pair, PairDataset, images_in, open_root
from secateur.errors import DataError


class _Class(NamedTuple):
    name: str
    label_id: int
    colour: Colour


# in the order of the trainIds; names, numbers and colours as in the benchmark's own scripts
CLASSES = [
    _Class("road", 7, (128, 64, 128)),
    _Class("sidewalk", 8, (244, 35, 232)),
    _Class("building", 11, (70, 70, 70)),
    _Class("wall", 12, (102, 102, 156)),
    _Class("fence", 13, (190, 153, 153)),
    _Class("pole", 17, (153, 153, 153)),
    _Class("traffic light", 19, (250, 170, 30)),
    _Class("traffic sign", 20, (220, 220, 0)),
    _Class("vegetation", 21, (107, 142, 35)),
    _Class("terrain", 22, (152, 251, 152)),
    _Class("sky", 23, (70, 130, 180)),
    _Class("person", 24, (220, 20, 60)),
    _Class("rider", 25, (255, 0, 0)),
    _Class("car", 26, (0, 0, 142)),
    _Class("truck", 27, (0, 0, 70)),
    _Class("bus", 28, (0, 60, 100)),
    _Class("train", 31, (0, 80, 100)),
    _Class("motorcycle", 32, (0, 0, 230)),
    _Class("bicycle", 33, (119, 11, 32)),
]
LABEL_IDS = Numbers(
    {**{number: IGNORE for number in range(34)}, **{c.label_id: number for number, c in enumerate(CLASSES)}},
    allowed="0..33, the labelIds (files with trainIds end in _gtFine_labelTrainIds.png)",
)
TRAIN_IDS = Numbers(
    {**{number: number for number in range(len(CLASSES))}, IGNORE: IGNORE},
    allowed="0..18, the trainIds, and 255 for void",
)
SPLITS = ("train", "val", "test")


class Cityscapes(PairDataset):
    """One split of Cityscapes.

    Args:
        root: the folder that holds leftImg8bit/ and gtFine/.
        split: "train", "val" or "test".
        size: (height, width) that images and labels are brought to; None leaves them as they are, 1024x2048.
        limit: only the first so many samples.

    Raises:
        DataError: the folder or the split is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        size: Size | None = (512, 1024),
        limit: int | None = None,
    ) -> None:
        folder = open_root("cityscapes", root, "with leftImg8bit/ and gtFine/ inside")
        pairs, code = _pairs(folder, split)
        super().__init__(
            "cityscapes",
            [c.name for c in CLASSES],
            [c.colour for c in CLASSES],
            split,
            size,
            root=folder,
            pairs=pairs,
            code=code,
            limit=limit,
        )
        self._written_as = LABEL_IDS  # what the server expects, whatever is read


def _pairs(root: Path, split: str) -> tuple[list[Pair], Numbers]:
    """(image, label) of every sample of the split by city and name, and what the labels hold."""
    images = root / "leftImg8bit" / split
    if not images.is_dir():
        there = [s for s in SPLITS if (root / "leftImg8bit" / s).is_dir()]
        hint = f"; {root} has the splits {', '.join(there)}" if there else ""
        raise DataError(f"cityscapes: no split {split!r} in {root}; expected a folder leftImg8bit/{split}{hint}")
    found = [
        path
        for city in sorted(images.iterdir())
        if city.is_dir()
        for path in images_in(city)
        if path.stem.endswith("_leftImg8bit")
    ]
    for kind, code in (("labelIds", LABEL_IDS), ("labelTrainIds", TRAIN_IDS)):
        labels = [_label(root, split, path, kind) for path in found]
        if any(path.is_file() for path in labels):
            return list(zip(found, labels, strict=True)), code
    if split == "test":
        return [(path, None) for path in found], LABEL_IDS
    return [(path, _label(root, split, path, "labelIds")) for path in found], LABEL_IDS


def _label(root: Path, split: str, image: Path, kind: str) -> Path:
    name = f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_{kind}.png"
    return root / "gtFine" / split / image.parent.name / name
