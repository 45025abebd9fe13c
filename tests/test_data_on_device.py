"""What torch's operators make of a batch is what OpenCV makes of each sample, as exactly as OpenCV rounds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from secateur.data import Augment, Normalise, make_loader, open_dataset
from secateur.data.on_device import change_batch
from secateur.errors import DataError, RecipeError
from secateur.pipeline.inputs import Inputs
from secateur.recipe import load_recipe

COLOURS = Normalise((0.4, 0.5, 0.6), (0.25, 0.5, 0.2))
OPTIONS = [
    {},
    {"blur": 1.0},
    {"crop": (24, 50), "scale": (0.5, 2.0), "blur": 0.5},
    {"crop": (90, 100), "rotate": 180.0},
    {"scale": (1, 1), "rotate": 0, "translate": 0},
]


def samples(smooth: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(6)]
    labels = [generator.integers(0, 9, (5, 6), np.uint8).repeat(8, 0).repeat(10, 1) for _ in range(6)]
    return [cv2.GaussianBlur(image, (9, 9), 3) for image in images] if smooth else images, labels


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_is_changed_as_each_of_its_samples_is(options: dict, smooth: bool) -> None:
    images, labels = samples(smooth)
    augment = Augment(border=COLOURS.border, **options)
    expected = [augment(i, c, np.random.default_rng(n)) for n, (i, c) in enumerate(zip(images, labels, strict=True))]
    changes = [augment.draw((40, 60), np.random.default_rng(n)) for n in range(6)]
    found, classes = change_batch(
        torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), changes, augment.border, COLOURS
    )
    assert found.dtype == torch.float32 and classes.dtype == torch.int64 and found.is_contiguous()
    back = (found.permute(0, 2, 3, 1).numpy() * np.array(COLOURS.std) + np.array(COLOURS.mean)) * 255
    apart = np.abs(back - np.stack([image for image, _ in expected]))
    # OpenCV may round places to 1/32 of a pixel, in two directions, between neighbours up to 255 apart; and it rounds
    # colours to whole numbers, those of blurred images twice, each time by a quarter on average
    assert apart.max() <= 2 * 255 / 64 + 1
    assert apart.mean() <= (0.5 if smooth else 2)
    masks = np.stack([label for _, label in expected])
    differ = masks != classes.numpy()
    assert differ.mean() < 0.01
    for mask, other, where in zip(masks, classes.numpy(), differ, strict=True):
        for row, column in np.argwhere(where):  # only at borders, where the other label is next to it
            around = np.s_[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert mask[row, column] in other[around] or 255 in (mask[row, column], other[row, column])
    if options.get("rotate") == 0:
        assert not differ.any() and apart.max() < 0.01


def test_labels_of_whole_images_stay_and_the_layout_is_the_one_asked_for() -> None:
    images, labels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.tensor([[[3]], [[4]]], dtype=torch.uint8)
    changes = [Augment().draw((8, 8), np.random.default_rng(seed)) for seed in range(2)]
    found, classes = change_batch(images, labels, changes, (0, 0, 0), COLOURS, channels_last=True)
    assert classes.tolist() == [[[3]], [[4]]] and found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_changes_on_the_device_brings_the_same_samples(workers: int) -> None:
    dataset, augment = open_dataset("streets", size=(48, 64), length=7), Augment(crop=(40, 56), blur=0.5)
    here = make_loader(dataset, 3, True, seed=2, augment=augment)
    there = make_loader(dataset, 3, True, seed=2, augment=augment, workers=workers, device=torch.device("cpu"))
    next(there.epoch(0))
    for start in (0, 1):
        pairs = list(zip(here.epoch(1, start), there.epoch(1, start), strict=True))
        assert len(pairs) == 2 - start
        for (images, labels), (others, other_labels) in pairs:
            assert images.shape == others.shape == (3, 3, 40, 56) and other_labels.dtype == torch.int64
            assert (images - others).abs().mean() < 0.01 and (images - others).abs().max() < 0.2  # of the deviation
            assert (labels != other_labels).float().mean() < 0.01
    kept = [(images.clone(), images) for images, _ in there.epoch(2)]
    assert len(kept) == 2 and all(torch.equal(*pair) for pair in kept)


def test_images_that_keep_their_sizes_are_changed_by_the_workers() -> None:
    dataset = open_dataset("streets", size=(48, 64), length=4)
    dataset.size = None
    with pytest.raises(DataError, match=r"on the device .* one size"):
        make_loader(dataset, 2, True, augment=Augment(crop=(40, 40)), device=torch.device("cpu"))


def test_a_recipe_says_where_images_are_changed(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {length: 4, size: [32, 48]}\nmodel: {width: 4}\nmethod: {name: none}\n", encoding="utf-8")
    for transforms, device, there in (("auto", "cpu", False), ("cpu", "cpu", False), ("device", "cpu", True)):
        inputs = Inputs(load_recipe(path, [f"data.transforms={transforms}"]))
        loader = inputs.loader("train", 2, training=True, augment=True, device=torch.device(device))
        assert (loader._there is not None) == there
        assert inputs.loader("train", 2, training=True, device=torch.device(device))._there is None
    with pytest.raises(RecipeError, match=r"transforms.*images differ in size"):
        load_recipe(path, ["data.size=null", "data.crop=[16,16]", "data.transforms=device"])
