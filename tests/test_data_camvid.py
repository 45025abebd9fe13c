"""CamVid's two layouts, and every mistake in a data set's files ends in one clear message."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from secateur.data import class_weights, list_datasets, open_dataset
from secateur.errors import DataError

FULL = (48, 64)  # the miniature's own size


def test_samples_are_rgb_images_with_void_as_255(camvid_mini: Path) -> None:
    dataset = open_dataset("camvid", root=camvid_mini, split="train", size=FULL)
    assert len(dataset) == 6 and len(dataset.classes) == len(dataset.palette) == 11
    assert dataset.classes[0] == "Sky" and dataset.palette[3] == (128, 64, 128)
    sample = dataset.read(2)
    assert sample.image.shape == (48, 64, 3) and sample.image.dtype == np.uint8
    stored = cv2.imread(str(camvid_mini / "trainannot" / "0001TP_000002.png"), cv2.IMREAD_UNCHANGED)
    assert (sample.label == np.where(stored == 11, 255, stored)).all() and (sample.label == 255).any()
    # The miniature's blue grows fastest with the class, its red slowest.
    assert (sample.image[sample.label == 10].mean(0) * [1, 1, -1])[2] < -150
    assert sample.image[sample.label == 10].mean(0)[0] < 80
    assert sample.name == str(Path("train/0001TP_000002.jpg"))


def test_size_and_limit_are_kept(camvid_mini: Path) -> None:
    dataset = open_dataset("camvid", root=camvid_mini, split="train", size=(24, 32), limit=4)
    full = open_dataset("camvid", root=camvid_mini, split="train", size=FULL)
    assert len(dataset) == 4
    small = dataset.read(1)
    assert small.image.shape == (24, 32, 3) and small.label.shape == (24, 32)
    # Blocks of 8 pixels are halved exactly, so the nearest label is the block's own.
    assert (small.label == full.read(1).label[::2, ::2]).all()


def test_both_layouts_give_the_same_samples(camvid_mini: Path) -> None:
    listed = open_dataset("camvid", root=camvid_mini, split="val", size=FULL)
    (camvid_mini / "val.txt").unlink()
    (camvid_mini / "val" / ".hidden.png").write_bytes(b"not an image")
    folders = open_dataset("camvid", root=camvid_mini, split="val", size=FULL)
    assert len(listed) == len(folders) == 3
    for index in range(3):
        assert (listed.read(index).image == folders.read(index).image).all()
        assert (listed.read(index).label == folders.read(index).label).all()


def test_foreign_prefixes_in_a_list_file_are_skipped(camvid_mini: Path) -> None:
    lines = (camvid_mini / "train.txt").read_text().split()
    pairs = zip(lines[::2], lines[1::2], strict=True)
    (camvid_mini / "train.txt").write_text("".join(f"/SegNet/CamVid/{a} /SegNet/CamVid/{b}\n\n" for a, b in pairs))
    assert len(open_dataset("camvid", root=camvid_mini, size=FULL)) == 6


def test_a_sample_can_not_be_changed_by_mistake(camvid_mini: Path) -> None:
    sample = open_dataset("camvid", root=camvid_mini, size=FULL).read(0)
    with pytest.raises(ValueError, match="read-only"):
        sample.image[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        sample.label[0, 0] = 0


def test_check_counts_the_pixels_that_weights_are_made_of(camvid_mini: Path) -> None:
    dataset = open_dataset("camvid", root=camvid_mini, size=FULL)
    seen: list[tuple[int, int]] = []
    counts = dataset.check(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]
    labels = np.concatenate([dataset.read(i).label.ravel() for i in range(6)])
    assert counts.tolist() == [(labels == k).sum() for k in range(11)]
    share = counts / counts.sum()
    assert class_weights(dataset).tolist() == pytest.approx((1 / np.log(1.1 + share)).tolist(), rel=1e-6)
    with pytest.raises(DataError, match="known: inverse_log"):
        class_weights(dataset, "median")


def test_samples_are_read_from_disk_once(camvid_mini: Path) -> None:
    dataset = open_dataset("camvid", root=camvid_mini, size=FULL)
    dataset.check()
    for path in camvid_mini.glob("train/*.jpg"):
        path.unlink()
    assert dataset.read(5).image.shape == (48, 64, 3)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_missing_roots_and_splits_are_named(camvid_mini: Path) -> None:
    with pytest.raises(DataError, match="needs a root"):
        open_dataset("camvid")
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_dataset("camvid", root=camvid_mini / "nowhere")
    with pytest.raises(DataError, match=r"train\.txt is not a folder"):
        open_dataset("camvid", root=camvid_mini / "train.txt")
    with pytest.raises(DataError, match=r"no split 'test'.*expected test\.txt.*has the splits train, val"):
        open_dataset("camvid", root=camvid_mini, split="test")
    (camvid_mini / "train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"split 'train' .* is empty"):
        open_dataset("camvid", root=camvid_mini)


def test_missing_files_are_all_counted_and_the_first_named(camvid_mini: Path) -> None:
    for path in (camvid_mini / "trainannot").iterdir():
        path.unlink()
    (camvid_mini / "train" / "0001TP_000003.jpg").unlink()
    with pytest.raises(DataError) as caught:
        open_dataset("camvid", root=camvid_mini)
    message = str(caught.value)
    assert "7 files are missing" in message and "and 2 more" in message
    assert f"label {camvid_mini / 'trainannot' / '0001TP_000000.png'}" in message


def test_a_missing_label_is_named_in_the_folder_layout(camvid_mini: Path) -> None:
    (camvid_mini / "val.txt").unlink()
    gone = camvid_mini / "valannot" / "0001TP_000007.png"
    gone.unlink()
    with pytest.raises(DataError, match=r"1 files are missing.*\n.*0001TP_000007\.png"):
        open_dataset("camvid", root=camvid_mini, split="val")


def test_a_malformed_line_is_named(camvid_mini: Path) -> None:
    with (camvid_mini / "train.txt").open("a") as file:
        file.write("train/only_an_image.jpg\n")
    with pytest.raises(DataError, match=r"train\.txt, line 7: expected 'image label', got 'train/only_an_image\.jpg'"):
        open_dataset("camvid", root=camvid_mini)


def label_out_of_range(root: Path) -> str:
    path = root / "trainannot" / "0001TP_000001.png"
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    label[3, 4:6] = 17
    cv2.imwrite(str(path), label)
    return r"0001TP_000001\.png holds the value 17 in 2 pixels; allowed are 0\.\.10 .* 11 and 255"


def sizes_differ(root: Path) -> str:
    path = root / "train" / "0001TP_000001.jpg"
    cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
    return r"0001TP_000001\.jpg is 20x30 but its label .*0001TP_000001\.png is 48x64"


def colour_label(root: Path) -> str:
    cv2.imwrite(str(root / "trainannot" / "0001TP_000001.png"), np.zeros((48, 64, 3), np.uint8))
    return r"0001TP_000001\.png has 3 channels .*expected a single-channel PNG"


def truncated(root: Path, folder: str, ending: str) -> str:
    path = root / folder / f"0001TP_000001.{ending}"
    path.write_bytes(path.read_bytes()[:-40])
    return rf"0001TP_000001\.{ending} is truncated"


def truncated_image(root: Path) -> str:
    return truncated(root, "train", "jpg")


def truncated_label(root: Path) -> str:
    return truncated(root, "trainannot", "png")


def empty_image(root: Path) -> str:
    (root / "train" / "0001TP_000001.jpg").write_bytes(b"")
    return r"0001TP_000001\.jpg is truncated \(0 bytes\)"


def no_image(root: Path) -> str:
    (root / "train" / "0001TP_000001.jpg").write_text("<html>404 not found</html>")
    return r"0001TP_000001\.jpg is broken or no image"


MISTAKES = [label_out_of_range, sizes_differ, colour_label, truncated_image, truncated_label, empty_image, no_image]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_sample_is_named_when_read_and_when_checked(camvid_mini: Path, mistake) -> None:
    message = mistake(camvid_mini)
    dataset = open_dataset("camvid", root=camvid_mini, size=FULL)
    assert dataset.read(0).label.shape == FULL
    with pytest.raises(DataError, match=message):
        dataset.read(1)
    with pytest.raises(DataError, match=message):
        dataset.check()


def test_check_gathers_all_broken_samples(camvid_mini: Path) -> None:
    for number in range(6):
        (camvid_mini / "train" / f"0001TP_{number:06d}.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        open_dataset("camvid", root=camvid_mini, size=FULL).check()
    message = str(caught.value)
    assert "6 of 6 samples can't be used" in message and "0001TP_000004.jpg" in message and "and 1 more" in message


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("camvit", {}, "unknown data set 'camvit'; known: ade20k, camvid, .*, voc2012; did you mean 'camvid'"),
        ("camvid", {"length": 3}, "'camvid' has no option 'length'; it takes none"),
        ("streets", {"lenght": 3}, "no option 'lenght'.*did you mean 'length'"),
        ("streets", {"size": (0, 240)}, r"size \(0, 240\): expected \(height, width\)"),
        ("streets", {"limit": 0}, "limit 0: expected a number of samples"),
    ],
)
def test_wrong_names_and_numbers_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(name, **options)


def test_list_datasets_names_what_can_be_opened() -> None:
    assert list_datasets() == [
        "ade20k", "camvid", "camvid32", "cifar10", "cityscapes", "folder", "streets", "voc2012"
    ]  # fmt: skip
