"""A folder of images and masks with a YAML file: numbers, colours, values of their own, list files, and mistakes."""

from __future__ import annotations

from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest

from secateur.data import open_dataset
from secateur.errors import DataError

PATHS = "images: images/{split}\nmasks: masks/{split}/{name}.png\n"


def test_ten_lines_describe_a_data_set(tmp_path: Path) -> None:
    path = miniatures.folder(tmp_path)
    assert len(path.read_text().splitlines()) <= 10
    for root in (path, tmp_path):
        dataset = open_dataset("folder", root, "train", size=None)
        assert len(dataset) == 4 and dataset.classes == ("road", "sky", "car") and dataset.palette[2] == (0, 0, 142)
    stored = cv2.imread(str(tmp_path / "masks/train/street 2.png"), -1)
    assert (dataset.read(2).label == stored).all() and dataset.read(2).name == str(Path("images/train/street 2.jpg"))


def test_the_description_in_the_docs_is_understood(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    text = page.split("```yaml\n")[1].split("```")[0]
    assert len(text.splitlines()) <= 10
    assert open_dataset("folder", miniatures.folder(tmp_path, text)).classes == ("road", "sky", "car")


def test_masks_may_hold_colours(tmp_path: Path) -> None:
    text = PATHS + "masks_hold: colours\nignore: [0, 0, 0]\nclasses: {road: [128, 64, 128], sky: [70, 130, 180]}\n"
    path = miniatures.folder(tmp_path, text)
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:20], colours[20:30] = (128, 64, 128), (70, 130, 180)
    miniatures.save(tmp_path / "masks/val/street 0.png", colours)
    # the same as a palette image, whose colours count here and not its indices
    miniatures.save(
        tmp_path / "masks/val/street 1.png",
        np.repeat([1, 2, 0], [20, 10, 18]).astype(np.uint8)[:, None].repeat(64, 1),
        [0, 0, 0, 128, 64, 128, 70, 130, 180],
    )
    dataset = open_dataset("folder", path, "val", size=None)
    for index in range(2):
        assert dataset.read(index).label[:, 0].tolist() == [0] * 20 + [1] * 10 + [255] * 18
    with pytest.raises(DataError, match="holds single numbers"):
        open_dataset("folder", path, "train").read(0)


def test_classes_may_have_values_of_their_own_or_names_alone(tmp_path: Path) -> None:
    path = miniatures.folder(tmp_path, PATHS + "ignore: [1, 255]\nclasses: {car: 2, road: 0}\n")
    dataset = open_dataset("folder", path, size=None)
    stored = cv2.imread(str(tmp_path / "masks/train/street 0.png"), -1)
    assert dataset.classes == ("car", "road") and len(set(dataset.palette)) == 2
    assert (dataset.read(0).label == np.array([1, 255, 0])[np.minimum(stored, 1) + (stored == 2)]).all()
    written = dataset.write_prediction(tmp_path / "out", 0, dataset.read(0).label)
    assert (cv2.imread(str(written), -1) == np.where(stored == 255, 1, stored)).all()
    path.write_text(PATHS + "classes: [road, sky, car]\n")  # void is 255 then
    assert (open_dataset("folder", path, size=None).read(0).label == stored).all()


def test_images_in_folders_and_list_files(tmp_path: Path) -> None:
    path = miniatures.folder(tmp_path)
    for kind in ("images", "masks"):
        (tmp_path / kind / "val/town").mkdir()
        for file in sorted((tmp_path / kind / "val").glob("street 1.*")):
            file.rename(tmp_path / kind / "val/town" / file.name.replace("street 1", "s1"))
    dataset = open_dataset("folder", path, "val")
    assert [dataset.read(i).name for i in range(2)] == [
        str(Path(f"images/val/{n}.jpg")) for n in ("street 0", "town/s1")
    ]
    (tmp_path / "my_val.txt").write_text("images/val/town/s1.jpg masks/val/town/s1.png\n")
    path.write_text("lists: my_{split}.txt\nclasses: [road, sky, car]\n")
    assert len(open_dataset("folder", path, "val")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the keys classes, ignore, images"),
        ("images: [", "not valid YAML"),
        (PATHS + "classes: [a]\nmask: x\n", "unknown key 'mask'; known: .*did you mean 'masks'"),
        ("classes: [a]\n", "expected `images` and `masks`, or `lists`"),
        (PATHS + "classes: [a]\nlists: x\n", "expected `images` and `masks`, or `lists`"),
        ("images: {}\nmasks: m/{name}.png\nclasses: [a]\n", "images: expected a path, got"),
        ("images: i\nmasks: m/{name}.png\nclasses: [a]\n", r"images: expected \{split\} in it, got 'i'"),
        ("images: i/{split}\nmasks: m\nclasses: [a]\n", r"masks: expected \{name\} in it"),
        (PATHS, "classes: expected a list of names, .*got None"),
        (PATHS + "classes: []\n", "classes: expected a list of names"),
        (PATHS + "classes: [road, road]\n", "classes: expected names that differ"),
        (PATHS + "classes: {road: 1, sky: [1, 2, 3]}\n", "classes: expected a list of names"),
        (PATHS + "classes: {road: [1, 2, 300]}\n", "classes: expected a list of names"),
        (PATHS + "classes: {road: -1}\n", "classes: expected a list of names"),
        (PATHS + "classes: {road: 1, sky: 1}\n", "1 stands for two things"),
        (PATHS + "classes: [road]\nignore: 0\n", "0 stands for two things"),
        (PATHS + "classes: [road]\nignore: [1, 2, x]\n", "ignore: expected a number, 0 to 255, or a list"),
        (PATHS + "masks_hold: colors\nclasses: [road]\n", "masks_hold: expected numbers or colours, got 'colors'"),
        (PATHS + "masks_hold: colours\nclasses: [road]\n", "masks_hold: colours: expected the colour of each class"),
        (
            PATHS + "masks_hold: colours\nignore: 3\nclasses: {road: [1, 2, 3]}\n",
            r"ignore: expected a colour as in \[0, 0, 0\]",
        ),
        (PATHS + "classes: [" + ", ".join(f"c{n}" for n in range(255)) + "]\n", "255 are given; there may be 254"),
    ],
)
def test_mistakes_in_the_description_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = miniatures.folder(tmp_path, text or "# nothing\n")
    with pytest.raises(DataError, match=message) as caught:
        open_dataset("folder", path)
    assert str(path) in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder needs a root: the YAML file .*dataset\.yaml"):
        open_dataset("folder")
    with pytest.raises(DataError, match=r"dataset\.yaml of the data set can't be read: No such file"):
        open_dataset("folder", tmp_path)
    path = miniatures.folder(tmp_path)
    with pytest.raises(DataError, match=r"there is no folder .*images.test for the split 'test'"):
        open_dataset("folder", path, "test")
    (tmp_path / "masks/val/street 1.png").unlink()
    with pytest.raises(DataError, match=r"1 files are missing.*\n.*street 1\.png"):
        open_dataset("folder", path, "val")
    cv2.imwrite(str(tmp_path / "masks/train/street 1.png"), np.full((48, 64), 700, np.uint16))
    with pytest.raises(DataError, match=r"holds the value 700 in 3072 pixels; allowed are 0, 1, 2 .*255 for void"):
        open_dataset("folder", path).read(1)
