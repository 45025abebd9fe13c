"""CamVid as it was first published: 701 street scenes of 720x960 with 32 classes as colours, 11 of them made of these.

Brostow, Fauqueur, Cipolla, PRL 2009; http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid:
701_StillsRaw_full.zip and LabeledApproved_full.zip.

    701_StillsRaw_full/0001TP_006690.png      LabeledApproved_full/0001TP_006690_L.png      RGB
    train/0001TP_006690.png                   train_labels/0001TP_006690_L.png              the same, in splits

The 32 classes are put together to 11 as for SegNet (Badrinarayanan, Kendall, Cipolla, PAMI 2017), in the grouping that
MathWorks documents for its SegNet example (camvidPixelLabelIDs). SegNet's own 11-class files are `camvid`.

The splits are SegNet's, 367 / 101 / 233, by the scenes' names, unless train.txt, val.txt or test.txt lists others: a
name in each line, or SegNet's own list files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from secateur.data.camvid import COLOURS, SPLITS
from secateur.data.dataset import IGNORE, Size
from secateur.data.labels import Colour, Colours
from secateur.data.pairs import Pair, PairDataset, images_in, lines_of, open_root
from secateur.errors import DataError, nearest

# the original classes and their colours, by the class that they are put into
GROUPS: Mapping[str, Mapping[str, Colour]] = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Building": (128, 0, 0),
        "Bridge": (0, 128, 64),
        "Wall": (64, 192, 0),
        "Tunnel": (64, 0, 64),
        "Archway": (192, 0, 128),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
CODE = Colours(
    {
        **{colour: number for number, members in enumerate(GROUPS.values()) for colour in members.values()},
        (0, 0, 0): IGNORE,
    }
)
IMAGES, LABELS = "701_StillsRaw_full", "LabeledApproved_full"


class CamVid32(PairDataset):
    """One split of CamVid with the original labels, as 11 classes.

    Args:
        root: the folder that holds 701_StillsRaw_full/ and LabeledApproved_full/, or the splits' folders.
        split: "train", "val" or "test".
        size: (height, width) that images and labels are brought to; None leaves them as they are, 720x960.
        limit: only the first so many samples.

    Raises:
        DataError: the folder or the split is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        size: Size | None = (360, 480),
        limit: int | None = None,
    ) -> None:
        folder = open_root("camvid32", root, f"with {IMAGES}/ and {LABELS}/ inside")
        if split not in SPLITS:
            raise DataError(f"camvid32: no split {split!r}; {nearest(split, SPLITS)}")
        super().__init__(
            "camvid32",
            tuple(GROUPS),
            [COLOURS[name] for name in GROUPS],
            split,
            size,
            root=folder,
            pairs=_pairs(folder, split),
            code=CODE,
            limit=limit,
        )


def split_of(stem: str) -> str | None:
    """SegNet's split of a scene by its name; None for a name that is none of CamVid's.

    The sequence 0001TP is parted into halves, train and test; of 0016E5 the part at 15 frames a second is val.
    """
    name = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", stem)
    if name is None:
        return None
    sequence, frame = name[1], int(name[2])
    if sequence == "0001TP":
        return "train" if frame <= 8520 else "test"
    if sequence == "0016E5":
        return "val" if 7959 <= frame <= 8159 else "train"
    return "train" if sequence == "0006R0" else "test"


def _pairs(root: Path, split: str) -> list[Pair]:
    images, labels = root / split, root / f"{split}_labels"
    if images.is_dir() and labels.is_dir():
        return [_pair(path, labels) for path in images_in(images)]
    images, labels = root / IMAGES, root / LABELS
    for needed in (images, labels):
        if not needed.is_dir():
            raise DataError(
                f"camvid32: there is no folder {needed}; expected {IMAGES}/ and {LABELS}/, or {split}/ and "
                f"{split}_labels/"
            )
    list_file = root / f"{split}.txt"
    if list_file.is_file():
        stems = [PurePosixPath(words[0].replace("\\", "/")).stem for _, words in lines_of(list_file)]
        return [_pair(images / f"{stem}.png", labels) for stem in stems]
    found = {path: split_of(path.stem) for path in images_in(images)}
    strange = [path for path, part in found.items() if part is None]
    if strange:
        raise DataError(
            f"camvid32: {strange[0]} is of no known sequence, so its split is not known; expected CamVid's names, or "
            f"{split}.txt in {root} with a name in each line"
        )
    return [_pair(path, labels) for path, part in found.items() if part == split]


def _pair(image: Path, labels: Path) -> Pair:
    return image, labels / f"{image.stem}_L.png"
