"""Cityscapes in its published layout: labelIds in, the 19 trainIds in memory, labelIds out."""

from __future__ import annotations

from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest

from secateur.data import open_dataset
from secateur.errors import DataError

# the benchmark's table, the ids in the order of the trainIds
LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.cityscapes(tmp_path / "cityscapes")


def stored(root: Path, stem: str) -> np.ndarray:
    return cv2.imread(str(root / "gtFine" / f"{stem}_gtFine_labelIds.png"), cv2.IMREAD_UNCHANGED)


def test_label_ids_become_train_ids(root: Path) -> None:
    dataset = open_dataset("cityscapes", root, size=None)
    assert len(dataset) == 4 and len(dataset.classes) == 19
    assert (dataset.classes[0], dataset.classes[18], dataset.palette[13]) == ("road", "bicycle", (0, 0, 142))
    sample = dataset.read(0)
    ids = stored(root, "train/aachen/aachen_000000_000019")
    assert sample.label.tolist() == [[LABEL_IDS.index(i) if i in LABEL_IDS else 255 for i in row] for row in ids]
    assert sample.name == str(Path("leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"))
    assert [Path(dataset.read(i).name).parent.name for i in range(4)] == ["aachen", "aachen", "bochum", "bochum"]


def test_images_are_resized_smoothly_and_labels_are_not(root: Path) -> None:
    small, full = (open_dataset("cityscapes", root, "val", size=size).read(1) for size in ((24, 32), None))
    assert small.image.shape == (24, 32, 3) and (small.label == full.label[::2, ::2]).all()


def test_predictions_are_written_as_label_ids(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("cityscapes", root, "val", size=None)
    classes = dataset.read(2).label
    path = dataset.write_prediction(tmp_path / "results", 2, classes)
    assert path == tmp_path / "results" / "frankfurt_000002_000019_leftImg8bit.png"
    written = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    ids = stored(root, "val/frankfurt/frankfurt_000002_000019")
    assert written.dtype == np.uint8 and (written == np.where(np.isin(ids, LABEL_IDS), ids, 0)).all()


def test_a_set_converted_to_train_ids_is_read_and_written_as_label_ids(root: Path, tmp_path: Path) -> None:
    expected = open_dataset("cityscapes", root, "val", size=None).read(0).label
    for path in (root / "gtFine/val/frankfurt").glob("*_labelIds.png"):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        train_ids = np.full_like(ids, 255)
        for number, label_id in enumerate(LABEL_IDS):
            train_ids[ids == label_id] = number
        path.unlink()
        cv2.imwrite(str(path).replace("labelIds", "labelTrainIds"), train_ids)
    dataset = open_dataset("cityscapes", root, "val", size=None)
    assert (dataset.read(0).label == expected).all()
    written = cv2.imread(str(dataset.write_prediction(tmp_path, 0, expected)), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(written).tolist()) <= {0, *LABEL_IDS}


def test_the_test_split_needs_no_labels(root: Path) -> None:
    dataset = open_dataset("cityscapes", root, "test", size=None)
    assert len(dataset) == 1 and (dataset.read(0).label == 255).all()


def test_mistakes_are_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"needs a root: .* leftImg8bit/ and gtFine/"):
        open_dataset("cityscapes")
    with pytest.raises(DataError, match=r"no split 'valid' .*leftImg8bit/valid; .* has the splits train, val, test"):
        open_dataset("cityscapes", root, "valid")
    label = root / "gtFine/val/frankfurt/frankfurt_000001_000019_gtFine_labelIds.png"
    ids = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    ids[0, :3] = 255
    cv2.imwrite(str(label), ids)
    with pytest.raises(DataError, match=r"_gtFine_labelIds\.png holds the value 255 in 3 pixels; allowed are 0\.\.33"):
        open_dataset("cityscapes", root, "val", size=None).read(1)
    cv2.imwrite(str(label), cv2.cvtColor(ids, cv2.COLOR_GRAY2BGR))  # the coloured file in place of the ids
    with pytest.raises(DataError, match=r"has 3 channels .a colour image.; expected a single-channel PNG"):
        open_dataset("cityscapes", root, "val", size=None).read(1)
    label.unlink()
    with pytest.raises(DataError, match=r"1 files are missing.*\n.*frankfurt_000001_000019_gtFine_labelIds"):
        open_dataset("cityscapes", root, "val")
