"""The loader: the same bits however many workers, errors with the file's name, and what the augmentation may do."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.data import Augment, SegmentationDataset, make_loader, open_dataset
from secateur.data.augment import IMAGENET_MEAN, IMAGENET_STD
from secateur.errors import DataError

SIZE = (32, 48)


@pytest.fixture(scope="module")
def streets() -> SegmentationDataset:
    dataset = open_dataset("streets", size=SIZE, length=10)
    dataset.check()
    return dataset


def equal(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_batches_are_normalised_images_and_labels(streets: SegmentationDataset) -> None:
    loader = make_loader(streets, 4, training=False)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 3
    images, labels = batches[2]
    assert images.shape == (2, 3, *SIZE) and images.dtype == torch.float32 and images.is_contiguous()
    assert labels.shape == (2, *SIZE) and labels.dtype == torch.int64
    sample = streets.read(9)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = ((torch.tensor(sample.image) / 255 - mean) / std).permute(2, 0, 1)
    assert torch.allclose(images[1], expected, atol=1e-5)
    assert torch.equal(labels[1], torch.tensor(sample.label).long())


@pytest.mark.parametrize("workers", [1, 2])
def test_every_number_of_workers_gives_the_same_bits(streets: SegmentationDataset, workers: int) -> None:
    before = torch.get_rng_state()
    alone, helped = (make_loader(streets, 4, True, seed=3, workers=w, augment=Augment()) for w in (0, workers))
    for epoch in (0, 1):
        assert equal(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    next(helped.epoch(2))  # an epoch that is left in the middle
    assert equal(list(alone.epoch(1)), list(helped.epoch(1)))
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_can_be_entered_in_the_middle(streets: SegmentationDataset) -> None:
    loader = make_loader(streets, 3, True, seed=3, augment=Augment())
    assert equal(list(loader.epoch(5))[2:], list(loader.epoch(5, start=2)))


def test_epoch_and_seed_change_the_order_and_the_warp(streets: SegmentationDataset) -> None:
    one, two = (make_loader(streets, 10, True, seed=s, augment=Augment()) for s in (0, 1))
    assert not equal(list(one.epoch(0)), list(one.epoch(1)))
    assert not equal(list(one.epoch(0)), list(two.epoch(0)))
    plain = make_loader(streets, 10, True, seed=0)
    (first, _), (second, _) = next(plain.epoch(0)), next(plain.epoch(1))
    sums = [images.sum((1, 2, 3)).tolist() for images in (first, second)]
    assert sums[0] != sums[1] and sorted(sums[0]) == sorted(sums[1])


def test_only_training_leaves_out_a_last_single_image(streets: SegmentationDataset) -> None:
    def sizes(count: int, batch_size: int, training: bool) -> list[int]:
        dataset = open_dataset("streets", size=SIZE, length=10, limit=count)
        loader = make_loader(dataset, batch_size, training)
        found = [len(labels) for _, labels in loader.epoch(0)]
        assert len(loader) == len(found)
        return found

    assert sizes(9, 4, True) == [4, 4] and sizes(9, 4, False) == [4, 4, 1]
    assert sizes(10, 4, True) == [4, 4, 2]
    assert sizes(1, 4, True) == [1] and sizes(3, 1, True) == [1, 1, 1]


def test_channels_last_changes_the_memory_and_not_the_values(streets: SegmentationDataset) -> None:
    plain, last = (next(make_loader(streets, 4, False, channels_last=c).epoch(0))[0] for c in (False, True))
    assert last.is_contiguous(memory_format=torch.channels_last) and not plain.is_contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(plain, last)


def test_processes_share_an_epoch(streets: SegmentationDataset) -> None:
    def names(training: bool, rank: int) -> list[float]:
        loader = make_loader(streets, 2, training, seed=1, rank=rank, world_size=3)
        return [v for images, _ in loader.epoch(0) for v in images.sum((1, 2, 3)).tolist()]

    whole = sorted(v for images, _ in make_loader(streets, 2, False).epoch(0) for v in images.sum((1, 2, 3)).tolist())
    evaluated = [names(False, rank) for rank in range(3)]
    assert sorted(v for part in evaluated for v in part) == whole
    trained = [names(True, rank) for rank in range(3)]
    assert len({len(part) for part in trained}) == 1 and {v for part in trained for v in part} == set(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_without_a_traceback(camvid_mini: Path, workers: int) -> None:
    path = camvid_mini / "train" / "0001TP_000004.jpg"
    dataset = open_dataset("camvid", root=camvid_mini, size=(24, 32))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError) as caught:
        list(make_loader(dataset, 2, training=True, workers=workers).epoch(0))
    assert "0001TP_000004.jpg is truncated" in str(caught.value)
    assert "Traceback" not in str(caught.value) and "worker" not in str(caught.value)


def test_waiting_is_measured_apart_from_the_training(streets: SegmentationDataset) -> None:
    loader = make_loader(streets, 5, training=True)
    for _ in loader.epoch(0):
        time.sleep(0.05)
    assert 0 < loader.waited < loader.total - 0.09


def test_a_pickled_data_set_leaves_its_cache_behind(streets: SegmentationDataset) -> None:
    stored = pickle.dumps(streets)
    assert len(stored) < 20_000
    assert (pickle.loads(stored).read(2).image == streets.read(2).image).all()


def test_wrong_numbers_are_named(streets: SegmentationDataset) -> None:
    with pytest.raises(DataError, match="batch_size=0"):
        make_loader(streets, 0, training=True)


# -- augmentation -----------------------------------------------------------------------------------------------------


def picture() -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros((40, 60), np.uint8)
    label[10:25, 5:30] = 3
    return np.repeat((label * 60)[..., None], 3, axis=2), label


def test_image_and_label_are_warped_alike() -> None:
    image, label = picture()
    for seed in range(20):
        warped, classes = Augment()(image, label, np.random.default_rng(seed))
        assert warped.shape == image.shape and classes.shape == label.shape
        inside = classes != 255
        apart = (warped[..., 0] > 90) != (classes == 3)
        # They may differ by half a pixel along the square's outline and the image's border, never over an area.
        eroded = apart[1:-1, 1:-1] & apart[:-2, 1:-1] & apart[2:, 1:-1] & apart[1:-1, :-2] & apart[1:-1, 2:]
        assert not (eroded & inside[1:-1, 1:-1]).any()


def test_nothing_asked_is_the_identity_and_a_flip_is_a_mirror() -> None:
    image, label = picture()
    still = Augment(scale=(1, 1), rotate=0, translate=0, flip=0)(image, label, np.random.default_rng(0))
    assert (still[0] == image).all() and (still[1] == label).all()
    flipped = Augment(scale=(1, 1), rotate=0, translate=0, flip=1)(image, label, np.random.default_rng(0))
    assert (flipped[0] == image[:, ::-1]).all() and (flipped[1] == label[:, ::-1]).all()


def test_scale_translation_and_rotation_do_what_they_say() -> None:
    image, label = picture()
    area = (label == 3).sum()
    _, half = Augment(scale=(0.5, 0.5), rotate=0, translate=0, flip=0)(image, label, np.random.default_rng(0))
    assert (half == 3).sum() == pytest.approx(area / 4, rel=0.15)
    assert (half == 255).mean() == pytest.approx(0.75, abs=0.05)  # from outside: void
    _, turned = Augment(scale=(1, 1), rotate=20, translate=0, flip=0)(image, label, np.random.default_rng(1))
    assert (turned == 3).sum() == pytest.approx(area, rel=0.1) and (turned == 255).any()
    shifts = set()
    for seed in range(10):
        _, moved = Augment(scale=(1, 1), rotate=0, translate=0.1, flip=0)(image, label, np.random.default_rng(seed))
        rows, columns = np.nonzero(moved == 3)
        shifts.add((int(rows.min()) - 10, int(columns.min()) - 5))
    assert all(abs(down) <= 5 and -5 <= right <= 7 for down, right in shifts) and len(shifts) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (1.5, 0.5)}, r"scale=\(1.5, 0.5\): expected two factors"),
        ({"scale": (0.0, 1.0)}, "scale="),
        ({"rotate": -1}, "rotate=-1: expected degrees"),
        ({"translate": 2}, "translate=2"),
        ({"flip": 1.5}, "flip=1.5: expected a probability"),
    ],
)
def test_augmentation_out_of_range_is_named(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Augment(**options)
