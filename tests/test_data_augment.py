"""Crops, blur and colours: where pixels come from, what is void, and that a sample's seed decides."""

from __future__ import annotations

from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest

from secateur.data import Augment, Normalise, make_loader, open_dataset
from secateur.data.augment import normalise
from secateur.errors import DataError


def numbered(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green tell the place of every pixel, and a label whose value is the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, rows ^ columns], axis=2), columns.copy()


def still(**options: object) -> Augment:
    return Augment(**{"scale": (1, 1), "rotate": 0, "translate": 0, "flip": 0, **options})  # type: ignore[arg-type]


def test_a_crop_is_a_part_of_the_image_and_every_place_comes_up() -> None:
    image, label = numbered(40, 60)
    augment, places = still(crop=(35, 50)), set()
    for seed in range(400):
        part, classes = augment(image, label, np.random.default_rng(seed))
        top, left = int(part[0, 0, 0]), int(part[0, 0, 1])
        assert (part == image[top : top + 35, left : left + 50]).all() and part.shape == (35, 50, 3)
        assert (classes == label[top : top + 35, left : left + 50]).all()
        places.add((top, left))
    assert {top for top, _ in places} == set(range(6)) and {left for _, left in places} == set(range(11))
    assert Augment.only_crop((35, 50)) == still(crop=(35, 50))


def test_what_is_smaller_than_the_crop_lies_in_its_middle_with_void_around() -> None:
    image, label = numbered(20, 30)
    part, classes = still(crop=(26, 24))(image, label, np.random.default_rng(0))
    left = int(classes[3, 0])
    assert (part[3:23] == image[:, left : left + 24]).all() and (classes[3:23] == label[:, left : left + 24]).all()
    assert (classes[:3] == 255).all() and (classes[23:] == 255).all()
    assert (part[:3] == normalise.border).all() and abs(normalise(part[:3])).max() < 0.01
    assert (still(crop=(26, 24), border=(9, 8, 7))(image, label, np.random.default_rng(0))[0][:3] == (9, 8, 7)).all()


def test_a_crop_of_a_scaled_image_is_the_crop_of_what_opencv_makes_of_it() -> None:
    """Twice the size: the warp interpolates at the same places as a resize does."""
    generator = np.random.default_rng(0)
    image = cv2.GaussianBlur(generator.integers(0, 256, (40, 60, 3)).astype(np.uint8), (7, 7), 0)
    label = generator.integers(0, 9, (5, 6)).astype(np.uint8).repeat(8, 0).repeat(10, 1)
    large = cv2.resize(image, (120, 80), interpolation=cv2.INTER_LINEAR).astype(int)
    large_label = label.repeat(2, 0).repeat(2, 1)
    for seed in range(10):
        part, classes = still(scale=(2, 2), crop=(30, 50))(image, label, np.random.default_rng(seed))
        best = min(
            ((abs(large[y : y + 30, x : x + 50] - part)[2:-2, 2:-2].max(), y, x) for y in range(51) for x in range(71)),
        )
        assert best[0] <= 2  # OpenCV warps in 1/32 of a pixel
        _, y, x = best
        differ = large_label[y : y + 30, x : x + 50] != classes
        assert differ.mean() < 0.02


def test_a_crop_goes_with_the_other_changes() -> None:
    image, label = numbered(40, 60)
    flipped, classes = still(flip=1, crop=(40, 60))(image, label, np.random.default_rng(0))
    assert (flipped == image[:, ::-1]).all() and (classes == label[:, ::-1]).all()
    plain = Augment()(image, label, np.random.default_rng(5))
    whole = Augment(scale=(1, 1), crop=(40, 60))(image, label, np.random.default_rng(5))
    same = Augment(scale=(1, 1))(image, label, np.random.default_rng(5))
    assert (whole[0] == same[0]).all() and (whole[1] == same[1]).all() and (plain[0] != same[0]).any()


def test_blur_changes_the_image_and_not_the_label() -> None:
    image, label = numbered(40, 60)
    blurred, classes = still(blur=1.0)(image, label, np.random.default_rng(0))
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    expected = cv2.sepFilter2D(image.astype(np.float64), -1, kernel, kernel)
    assert abs(blurred - expected).max() <= 0.5 and (classes == label).all()
    seen = [(still(blur=0.5)(image, label, np.random.default_rng(s))[0] != image).any() for s in range(100)]
    assert 30 < sum(seen) < 70


def test_colours_come_to_mean_0_and_deviation_1() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.5, 1.0, 0.25)
    found = Normalise(mean, std)(image)
    assert found.dtype == np.float32
    assert found == pytest.approx((image / 255 - np.array(mean)) / np.array(std), abs=1e-5)
    out = np.empty((2, 16, 16, 3), np.float32)
    Normalise(mean, std)(image, out=out[1])
    assert (out[1] == found).all()
    assert Normalise((0.4, 0, 1)).border == (102, 0, 255)


def test_the_loader_crops_and_normalises_as_it_is_told() -> None:
    dataset = open_dataset("streets", size=(64, 96), length=6)
    colours = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    augment = Augment(crop=(32, 40), blur=0.5, border=colours.border)
    loaders = [make_loader(dataset, 3, True, seed=1, workers=w, augment=augment, normalise=colours) for w in (0, 2)]
    for (images, labels), (others, other_labels) in zip(*(loader.epoch(2) for loader in loaders), strict=True):
        assert images.shape == (3, 3, 32, 40) and labels.shape == (3, 32, 40)
        assert images.equal(others) and labels.equal(other_labels)
        assert images.min() >= -1 and images.max() <= 1
    going_on = list(loaders[0].epoch(2, start=1))  # as a resumed run does
    assert len(going_on) == 1 and all(a.equal(b) for a, b in zip(going_on[0], (images, labels), strict=True))


def test_images_of_different_sizes_do_not_go_into_one_batch(tmp_path: Path) -> None:
    dataset = open_dataset("ade20k", miniatures.ade20k(tmp_path), size=None)
    with pytest.raises(DataError, match=r"00000001\.jpg is 48x64 and .*00000002\.jpg is 56x64.*give a size"):
        next(make_loader(dataset, 2, training=False).epoch(0))
    shapes = [tuple(labels.shape) for _, labels in make_loader(dataset, 1, training=False).epoch(0)]
    assert shapes == [(1, 48 + 8 * index, 64) for index in range(4)]
    cropped = make_loader(dataset, 4, training=True, augment=Augment(crop=(40, 40)))
    assert next(cropped.epoch(0))[0].shape == (4, 3, 40, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"crop": (0, 3)}, r"crop=\(0, 3\): expected \(height, width\)"), ({"blur": 2}, "blur=2: expected a probability")],
)
def test_numbers_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Augment(**options)
    with pytest.raises(DataError, match="expected three numbers each, and std above 0"):
        Normalise(std=(0.0, 1.0, 1.0))
