"""PASCAL VOC 2012: palette indices rather than colours, SBD's labels as .mat and as PNG, the augmented list."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from secateur.data import SegmentationDataset, open_dataset
from secateur.data.files import read_label
from secateur.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return miniatures.voc2012(tmp_path / "voc")


def names(dataset: SegmentationDataset) -> list[str]:
    return [Path(dataset.read(index).name).stem for index in range(len(dataset))]


def test_palette_indices_are_read_and_255_is_void(root: Path) -> None:
    dataset = open_dataset("voc2012", root, "val", size=None)
    assert names(dataset) == ["2007_000033", "2007_000042"] and len(dataset.classes) == 21
    assert (dataset.classes[0], dataset.classes[20], dataset.palette[15]) == (
        "background",
        "tvmonitor",
        (192, 128, 128),
    )
    image = Image.open(root / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png")
    assert image.mode == "P"
    assert (dataset.read(0).label == np.asarray(image)).all() and (dataset.read(0).label == 255).any()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indices_of_any_depth_are_what_pillow_reads(tmp_path: Path, bits: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (13, 21)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.putpalette(miniatures.voc_palette()[: 3 * 2**bits])
    image.save(tmp_path / "label.png", bits=bits, transparency=0)
    assert (tmp_path / "label.png").read_bytes()[24] == bits
    assert (read_label(tmp_path / "label.png") == pixels).all()


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_trainaug_is_made_of_the_lists_of_voc_and_sbd(root: Path, place: str) -> None:
    dataset = open_dataset("voc2012", root / place, "trainaug", size=None)
    # VOC's train, and SBD's train and val without VOC's val
    assert names(dataset) == ["2007_000032", "2007_000039", "2008_000008", "2008_000015", "2008_000019"]
    own = np.asarray(Image.open(root / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png"))
    assert (dataset.read(0).label == own).all() and (own == 255).any()
    mat = loadmat(root / "benchmark_RELEASE/dataset/cls/2008_000008.mat")["GTcls"]["Segmentation"][0, 0]
    assert (dataset.read(2).label == mat).all() and dataset.read(2).image.shape == (56, 40, 3)


def test_trainaug_as_png_files_and_as_a_list(root: Path) -> None:
    expected = open_dataset("voc2012", root, "trainaug", size=None)
    place = root / "VOCdevkit/VOC2012"
    stems = names(expected)
    for index, stem in enumerate(stems):
        miniatures.save(place / f"SegmentationClassAug/{stem}.png", np.asarray(expected.read(index).label))
    shutil.rmtree(root / "benchmark_RELEASE")
    lists = place / "ImageSets/Segmentation"
    for name, lines in (
        ("trainaug.txt", [f"{stem}\n" for stem in stems]),
        ("train_aug.txt", [f"/JPEGImages/{stem}.jpg /SegmentationClassAug/{stem}.png\n" for stem in stems]),
    ):
        (lists / name).write_text("".join(lines))
        found = open_dataset("voc2012", root, "trainaug", size=None)
        assert all((found.read(i).label == expected.read(i).label).all() for i in range(5))
        (lists / name).unlink()


def test_predictions_are_palette_images(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("voc2012", root, "val", size=None)
    path = dataset.write_prediction(tmp_path, 0, dataset.read(0).label)
    written = Image.open(path)
    assert path.name == "2007_000033.png" and written.mode == "P"
    assert written.getpalette() == miniatures.voc_palette()
    assert (np.asarray(written) == dataset.read(0).label).all()


def test_mistakes_in_the_layout_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder JPEGImages in .*expected VOC2012 with"):
        open_dataset("voc2012", tmp_path / "voc/benchmark_RELEASE")
    with pytest.raises(DataError, match=r"no split 'aug'; known: .*trainaug"):
        open_dataset("voc2012", root, "aug")
    with pytest.raises(DataError, match=r"there is no list .*trainval\.txt"):
        open_dataset("voc2012", root, "trainval")
    with pytest.raises(DataError, match="there is no folder cls in sbd="):
        open_dataset("voc2012", root, "trainaug", sbd=root)
    shutil.rmtree(root / "benchmark_RELEASE")
    with pytest.raises(DataError, match=r"neither a list .*trainaug\.txt nor SBD"):
        open_dataset("voc2012", root, "trainaug")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").write_text("2007_000032\n2008_000008\n")
    with pytest.raises(DataError, match=r"1 files are missing.*\n.*SegmentationClassAug.2008_000008\.png"):
        open_dataset("voc2012", root, "trainaug")


def test_mistakes_in_labels_are_named(root: Path) -> None:
    path = root / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png"
    label = np.asarray(Image.open(path)).copy()
    label[label == 255] = 21  # an off-by-one void
    miniatures.save(path, label, miniatures.voc_palette())
    dataset = open_dataset("voc2012", root, "val", size=None)
    with pytest.raises(DataError, match=r"2007_000033\.png holds the value 21 in .*255 for void"):
        dataset.read(0)
    Image.fromarray(label).convert("RGB").save(path)  # colours in place of indices
    with pytest.raises(DataError, match=r"2007_000033\.png has 3 channels"):
        dataset.read(0)


def test_damaged_mat_files_are_named(root: Path) -> None:
    path = root / "benchmark_RELEASE/dataset/cls/2008_000015.mat"
    dataset = open_dataset("voc2012", root, "trainaug", size=None)
    good = path.read_bytes()
    for data in (b"", good[:100], good[:-30], b"nonsense" * 40):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"2008_000015\.mat can't be read: .*GTcls\.Segmentation"):
            dataset.read(3)
    savemat(path, {"GTcls": {"Segmentation": np.zeros((4, 5))}})
    with pytest.raises(DataError, match=r"GTcls\.Segmentation is no 8-bit image"):
        dataset.read(3)
    savemat(path, {"GTcls": {"Segmentation": np.full((56, 40), 77, np.uint8)}})
    with pytest.raises(DataError, match="holds the value 77"):
        dataset.read(3)
    cv2.imwrite(str(path.with_suffix(".png")), np.zeros((4, 5), np.uint8))
