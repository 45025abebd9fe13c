"""The drawn streets: deterministic, with CamVid's imbalance, and not to be told by colour."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.data import open_dataset
from secateur.errors import DataError

SIZE = (90, 120)
RARE = ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist")


def test_a_scene_depends_only_on_seed_split_and_index() -> None:
    first = open_dataset("streets", size=SIZE, length=8)
    longer = open_dataset("streets", size=SIZE, length=40)
    longer.read(1)  # the order of reading makes no difference
    assert (first.read(3).image == longer.read(3).image).all() and (first.read(3).label == longer.read(3).label).all()
    others = [
        first.read(4),
        open_dataset("streets", size=SIZE, split="val").read(3),
        open_dataset("streets", size=SIZE, seed=1).read(3),
    ]
    for other in others:
        assert (other.label != first.read(3).label).mean() > 0.05


def test_samples_have_the_asked_size_and_labels_are_classes_or_void() -> None:
    dataset = open_dataset("streets", size=(50, 99), length=12)
    values = set()
    for index in range(len(dataset)):
        sample = dataset.read(index)
        assert sample.image.shape == (50, 99, 3) and sample.image.dtype == np.uint8
        assert sample.label.shape == (50, 99) and sample.label.dtype == np.uint8
        values |= set(np.unique(sample.label).tolist())
    assert values == {*range(11), 255}


def test_class_shares_are_those_of_a_street() -> None:
    dataset = open_dataset("streets", size=SIZE, length=60)
    counts = dataset.check()
    share = dict(zip(dataset.classes, counts / counts.sum(), strict=True))
    expected = {"Road": 0.29, "Building": 0.25, "Sky": 0.17, "Tree": 0.10, "Pavement": 0.055, "Car": 0.06}
    for name, value in expected.items():
        assert value / 1.6 < share[name] < value * 1.6, name
    for name in RARE:
        assert 0.002 < share[name] < 0.025, name
    present = np.mean([[k in dataset.read(i).label for k in range(11)] for i in range(60)], axis=0)
    for name, occurs in zip(dataset.classes, present, strict=True):
        assert occurs > 0.6, name


def test_colour_alone_does_not_tell_the_class() -> None:
    """The best guess from a pixel's colour, learned on half of the scenes, misses most of the rare classes."""
    dataset = open_dataset("streets", size=SIZE, length=60)
    seen = np.zeros((16**3, 11))
    for index in range(30):
        sample = dataset.read(index)
        known = sample.label != 255
        bins = (sample.image[known] // 16).astype(int) @ [256, 16, 1]
        np.add.at(seen, (bins, sample.label[known]), 1)
    guess = seen.argmax(1)
    hit, all_ = np.zeros(11), np.zeros(11)
    for index in range(30, 60):
        sample = dataset.read(index)
        known = sample.label != 255
        label = sample.label[known]
        right = guess[(sample.image[known] // 16).astype(int) @ [256, 16, 1]] == label
        hit += np.bincount(label[right], minlength=11)
        all_ += np.bincount(label, minlength=11)
    recall = dict(zip(dataset.classes, hit / all_, strict=True))
    assert max(recall[name] for name in RARE) < 0.15
    assert hit.sum() / all_.sum() < 0.55


def test_splits_have_their_lengths_and_mistakes_are_named() -> None:
    assert [len(open_dataset("streets", split=s, length=18)) for s in ("train", "val", "test")] == [18, 5, 5]
    assert len(open_dataset("streets", split="train", length=18, limit=7)) == 7
    with pytest.raises(DataError, match=r"no split 'valid'; known: test, train, val; did you mean 'val'"):
        open_dataset("streets", split="valid")
    with pytest.raises(DataError, match=r"\(20, 20\) is too small"):
        open_dataset("streets", size=(20, 20))
    with pytest.raises(DataError, match="length=0"):
        open_dataset("streets", length=0)
    with pytest.raises(IndexError, match="has 18 samples, there is no number 18"):
        open_dataset("streets", length=18).read(18)
