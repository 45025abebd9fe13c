"""ADE20K's challenge layout: 0 is ignored, 1..150 are the classes, and every image has its own size."""

from __future__ import annotations

from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest

from secateur.data import open_dataset
from secateur.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.ade20k(tmp_path / "ade")


def test_labels_are_shifted_by_one_and_0_is_void(root: Path) -> None:
    dataset = open_dataset("ade20k", root, size=None)
    assert len(dataset) == 4 and len(dataset.classes) == len(dataset.palette) == len(set(dataset.classes)) == 150
    assert (dataset.classes[0], dataset.classes[12], dataset.classes[149]) == ("wall", "person", "flag")
    assert (dataset.palette[0], dataset.palette[149]) == ((120, 120, 120), (92, 0, 255))
    sizes = set()
    for index in range(4):
        sample = dataset.read(index)
        path = root / f"ADEChallengeData2016/annotations/training/ADE_train_{index + 1:08d}.png"
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int)
        assert (sample.label == np.where(stored == 0, 255, stored - 1)).all()
        sizes.add(sample.image.shape[:2])
    assert sizes == {(48, 64), (56, 64), (64, 64), (72, 64)}


def test_the_folder_itself_may_be_given_and_predictions_are_written_from_1(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("ade20k", root / "ADEChallengeData2016", "val", size=None)
    assert len(dataset) == 3
    path = dataset.write_prediction(tmp_path, 1, dataset.read(1).label)
    assert path.name == "ADE_val_00000006.png"
    stored = root / "ADEChallengeData2016/annotations/validation/ADE_val_00000006.png"
    assert (cv2.imread(str(path), -1) == cv2.imread(str(stored), -1)).all()


def test_mistakes_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*images.training; expected ADEChallengeData2016 with images/"):
        open_dataset("ade20k", tmp_path)
    with pytest.raises(DataError, match="no split 'test'; known: train, val"):
        open_dataset("ade20k", root, "test")
    path = root / "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"
    label = cv2.imread(str(path), -1)
    label[4, 4] = 151  # shifted once too often
    cv2.imwrite(str(path), label)
    dataset = open_dataset("ade20k", root, size=None)
    with pytest.raises(DataError, match=r"ADE_train_00000002\.png holds the value 151 in 1 pixels; .* 1\.\.150"):
        dataset.read(1)
