"""PASCAL VOC 2012: 1464 / 1449 images of their own sizes, 20 classes and the background; 10 582 in the augmented split.

Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015; VOCtrainval_11-May-2012.tar
of http://host.robots.ox.ac.uk/pascal/VOC/voc2012. The further labels are the Semantic Boundaries Dataset's (SBD):
Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011; benchmark.tgz.

    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
    VOCdevkit/VOC2012/SegmentationClass/2007_000032.png            train and val: PNG files with a palette
    VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt             a name in each line
    VOCdevkit/VOC2012/SegmentationClassAug/2008_000008.png         SBD's labels turned into PNG files, or
    benchmark_RELEASE/dataset/cls/2008_000008.mat                  as SBD publishes them, beside or in one of the above

Labels hold 0 for the background, 1..20 for the classes, and 255 for void: outlines, and what is difficult.

The split "trainaug" is what trainaug.txt or train_aug.txt lists, a name in each line or 'image label'. Without such
a list it is all of VOC's train, SBD's train and SBD's val that is not in VOC's val, which comes to the same 10 582.
Where VOC has a label of its own, that is taken, unless the list says otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from secateur.data.dataset import IGNORE, Size
from secateur.data.labels import Colour, Numbers
from secateur.data.pairs import Pair, PairDataset, lines_of, open_root, under
from secateur.errors import DataError, nearest

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = ("train", "val", "trainval", "trainaug", "test")
AUGMENTED = ("trainaug", "train_aug")  # the names that its list goes by
SBD = ("benchmark_RELEASE/dataset", "VOCaug/dataset")  # the folder that holds cls/, where it is looked for


def colour_map(count: int) -> list[Colour]:
    """VOC's colours: bit 7 - i of red, green and blue are bits 3i, 3i + 1 and 3i + 2 of the number."""
    return [
        tuple(sum((number >> (3 * i + channel) & 1) << (7 - i) for i in range(3)) for channel in range(3))  # type: ignore[misc]
        for number in range(count)
    ]


CODE = Numbers(
    {**{number: number for number in range(len(CLASSES))}, IGNORE: IGNORE},
    allowed="0 for the background, 1..20 for the classes, 255 for void",
    palette=colour_map(256),
)


class VOC2012(PairDataset):
    """One split of PASCAL VOC 2012.

    Args:
        root: VOC2012, or VOCdevkit, or the folder that this is in.
        split: "train", "val", "trainval", "trainaug" or "test".
        size: (height, width) that images and labels are brought to; None leaves them as they are.
        limit: only the first so many samples.
        sbd: folder of SBD, which holds cls/; None looks for benchmark_RELEASE/dataset.

    Raises:
        DataError: the folder or the split is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        size: Size | None = None,
        limit: int | None = None,
        sbd: str | os.PathLike[str] | None = None,
    ) -> None:
        layout = "VOC2012 with JPEGImages/ and ImageSets/ inside"
        given = open_root("voc2012", root, layout)
        places = (given, given / "VOC2012", given / "VOCdevkit" / "VOC2012")
        folder = next((place for place in places if (place / "JPEGImages").is_dir()), None)
        if folder is None:
            raise DataError(f"voc2012: there is no folder JPEGImages in {given}; expected {layout}")
        if split not in SPLITS:
            raise DataError(f"voc2012: no split {split!r}; {nearest(split, SPLITS)}")
        super().__init__(
            "voc2012",
            CLASSES,
            colour_map(len(CLASSES)),
            split,
            size,
            root=folder,
            pairs=_pairs(folder, split, _sbd(folder, sbd)),
            code=CODE,
            limit=limit,
        )

    def _read_label(self, path: Path) -> np.ndarray:
        return CODE.decode(read_sbd(path), path) if path.suffix == ".mat" else super()._read_label(path)


def read_sbd(path: Path) -> np.ndarray:
    """The segmentation in one of SBD's .mat files, uint8 (H, W).

    Raises:
        DataError: the file can't be read, or holds something else.
    """
    from scipy.io import loadmat  # most data sets do without

    try:
        label = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # whatever the reader makes of a damaged file
        raise DataError(
            f"label {path} can't be read: {type(error).__name__}: {error}; expected a .mat file of SBD, with "
            "GTcls.Segmentation inside"
        ) from error
    if not isinstance(label, np.ndarray) or label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(f"label {path}: GTcls.Segmentation is no 8-bit image; expected a .mat file of SBD")
    return label


def _sbd(root: Path, given: str | os.PathLike[str] | None) -> Path | None:
    """SBD's folder, if there is one."""
    if given is not None:
        folder = Path(given).expanduser()
        if not (folder / "cls").is_dir():
            raise DataError(
                f"voc2012: there is no folder cls in sbd={folder}; expected SBD's dataset/ with cls/ inside"
            )
        return folder
    places = [place / name for place in (root, root.parent, root.parent.parent) for name in SBD]
    return next((place for place in places if (place / "cls").is_dir()), None)


def _pairs(root: Path, split: str, sbd: Path | None) -> list[Pair]:
    lists = root / "ImageSets" / "Segmentation"
    names = AUGMENTED if split == "trainaug" else (split,)
    list_file = next((path for name in names if (path := lists / f"{name}.txt").is_file()), None)
    if list_file is not None:
        return [_pair(root, words, split, sbd, f"{list_file}, line {number}") for number, words in lines_of(list_file)]
    if split != "trainaug":
        raise DataError(f"voc2012: there is no list {lists / f'{split}.txt'}")
    if sbd is None:
        raise DataError(
            f"voc2012: there is neither a list {lists / 'trainaug.txt'} nor SBD with its lists; put benchmark_RELEASE/ "
            "beside VOCdevkit/, or give the option sbd"
        )
    stems = {
        words[0] for path in (lists / "train.txt", sbd / "train.txt", sbd / "val.txt") for _, words in lines_of(path)
    }
    stems -= {words[0] for _, words in lines_of(lists / "val.txt")}
    return [_pair(root, [stem], split, sbd, str(sbd)) for stem in sorted(stems)]


def _pair(root: Path, words: list[str], split: str, sbd: Path | None, where: str) -> Pair:
    """Image and label that a line of a list means."""
    if len(words) == 2:
        return under(root, words[0]), under(root, words[1])
    if len(words) != 1:
        raise DataError(f"{where}: expected a name, or 'image label', got {' '.join(words)!r}")
    image, own = (
        root / folder / f"{words[0]}.{ending}"
        for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png"))
    )
    if split == "test" and not own.is_file():
        return image, None
    if split != "trainaug" or own.is_file():
        return image, own
    augmented = root / "SegmentationClassAug" / own.name
    return image, augmented if sbd is None or augmented.is_file() else sbd / "cls" / f"{words[0]}.mat"
