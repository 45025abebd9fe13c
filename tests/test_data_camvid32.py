"""CamVid's original colours, put together to 11 classes, and SegNet's splits by the scenes' names."""

from __future__ import annotations

from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest

from secateur.data import open_dataset
from secateur.data.camvid32 import GROUPS, split_of
from secateur.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.camvid32(tmp_path / "camvid")


def test_32_colours_become_11_classes_and_void(root: Path) -> None:
    assert sum(len(members) for members in GROUPS.values()) == 31  # and void
    assert len({colour for members in GROUPS.values() for colour in members.values()}) == 31
    eleven = open_dataset("streets").classes
    dataset = open_dataset("camvid32", root, "val", size=None)
    assert dataset.classes == eleven and [len(dataset), dataset.palette[3]] == [2, (128, 64, 128)]
    sample = dataset.read(0)
    colours = cv2.imread(str(root / "LabeledApproved_full/0016E5_07959_L.png"))[..., ::-1]
    assert sample.label.tolist() == [[miniatures.CAMVID32[tuple(c)] for c in row] for row in colours.tolist()]


def test_the_splits_are_those_of_segnet(root: Path) -> None:
    found = {}
    for split in ("train", "val", "test"):
        dataset = open_dataset("camvid32", root, split)
        found[split] = [Path(dataset.read(index).name).stem for index in range(len(dataset))]
    assert found == {
        "train": ["0001TP_008520", "0006R0_f00930", "0016E5_07920"],
        "val": ["0016E5_07959", "0016E5_08159"],
        "test": ["0001TP_008550", "Seq05VD_f00000"],
    }


def test_the_rule_for_names_gives_the_published_counts() -> None:
    """The names of the 701 scenes, as they are published: sequence, first frame, last frame, step."""
    names = [f"0001TP_{frame:06d}" for frame in range(6690, 10381, 30)]
    names += [f"0006R0_f{frame:05d}" for frame in range(930, 3931, 30)]
    names += [
        f"0016E5_{frame:05d}" for frame in (*range(390, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30))
    ]
    names += [f"0016E5_{frame:05d}" for frame in range(7959, 8160, 2)]
    names += [f"Seq05VD_f{frame:05d}" for frame in range(0, 5101, 30)]
    splits = [split_of(name) for name in names]
    assert {split: splits.count(split) for split in ("train", "val", "test")} == {"train": 367, "val": 101, "test": 233}
    assert split_of("0001TP") is None and split_of("street_000001") is None


def test_lists_and_split_folders_are_read(root: Path) -> None:
    (root / "val.txt").write_text("0006R0_f00930\n")
    (root / "test.txt").write_text("/SegNet/CamVid/test/0016E5_07920.png /SegNet/CamVid/testannot/0016E5_07920.png\n")
    assert Path(open_dataset("camvid32", root, "val").read(0).name).stem == "0006R0_f00930"
    assert Path(open_dataset("camvid32", root, "test").read(0).name).stem == "0016E5_07920"
    for source, target in (("701_StillsRaw_full", "val"), ("LabeledApproved_full", "val_labels")):
        (root / source).rename(root / target)
    assert len(open_dataset("camvid32", root, "val")) == 7


def test_predictions_are_written_in_the_classes_colours(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("camvid32", root, "val", size=None)
    path = dataset.write_prediction(tmp_path, 0, np.array([[0, 4, 255]]))
    assert cv2.imread(str(path))[..., ::-1].tolist() == [[[128, 128, 128], [0, 0, 192], [0, 0, 0]]]


def test_mistakes_are_named(root: Path) -> None:
    label = root / "LabeledApproved_full/0016E5_07959_L.png"
    pixels = cv2.imread(str(label))
    pixels[0, :2] = (1, 2, 3)
    cv2.imwrite(str(label), pixels)
    dataset = open_dataset("camvid32", root, "val")
    with pytest.raises(DataError, match=r"07959_L\.png holds colours that are of no class in 2 pixels.*\(3, 2, 1\)"):
        dataset.read(0)
    cv2.imwrite(str(label), pixels[..., 0])
    with pytest.raises(DataError, match=r"07959_L\.png holds single numbers; expected an image of 8-bit colours"):
        dataset.read(0)
    miniatures.save(root / "701_StillsRaw_full/holiday.png", pixels)
    with pytest.raises(DataError, match=r"holiday\.png is of no known sequence.*expected CamVid's names, or val\.txt"):
        open_dataset("camvid32", root, "val")
    with pytest.raises(DataError, match="no split 'valid'; known: test, train, val"):
        open_dataset("camvid32", root, "valid")
    with pytest.raises(DataError, match=r"no folder .*701_StillsRaw_full; expected"):
        open_dataset("camvid32", root / "LabeledApproved_full")
