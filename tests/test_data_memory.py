"""Memory that is used again must never be a batch that somebody still looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.data import Augment, make_loader, open_dataset
from secateur.data.memory import IDLE, Blocks, Slots


def test_a_block_comes_back_when_nothing_refers_to_it_any_more() -> None:
    blocks = Blocks()
    tensor = blocks.empty((4, 5), torch.float32)
    place, view = tensor.data_ptr(), tensor.fill_(3).t()[1:]
    del tensor
    other = blocks.empty((4, 5), torch.float32).fill_(7)
    assert other.data_ptr() != place and (view == 3).all()  # the view still needs it
    del view
    again = blocks.empty((2, 9), torch.float32)
    assert again.data_ptr() == place and again.shape == (2, 9) and (other == 7).all()
    assert blocks.empty((2, 9), torch.int64).dtype == torch.int64
    assert blocks.empty((100,), torch.float32).shape == (100,)  # larger than what is idle


def test_what_the_backward_pass_needs_is_left_alone() -> None:
    blocks, weight = Blocks(), torch.ones(3, requires_grad=True)
    loss = (blocks.empty((3,), torch.float32).fill_(2) * weight).sum()
    blocks.empty((3,), torch.float32).fill_(9)
    loss.backward()
    assert weight.grad is not None and weight.grad.tolist() == [2, 2, 2]


def test_few_blocks_are_kept() -> None:
    blocks = Blocks()
    tensors = [blocks.empty((10,), torch.float32) for _ in range(IDLE + 3)]
    places = {tensor.data_ptr() for tensor in tensors}
    del tensors
    assert len(places) == IDLE + 3
    assert sum(map(len, blocks._idle.values())) == IDLE


def test_slots_are_handed_out_once() -> None:
    slots = Slots(2, (3, 4, 5, 3), (3, 4, 5), shared=False)
    taken = [slots.take() for _ in range(3)]
    assert sorted(taken[:2]) == [0, 1] and taken[2] is None
    assert [tuple(each.shape) for each in slots.batch(0, 2)] == [(2, 4, 5, 3), (2, 4, 5)]
    slots.free(1)
    assert slots.take() == 1
    slots.take_back()
    assert sorted([slots.take(), slots.take()]) == [0, 1]


@pytest.mark.parametrize("options", [{}, {"blur": 1.0}, {"crop": (20, 30), "scale": (0.5, 2.0)}], ids=str)
def test_changes_are_the_same_wherever_they_are_written_to(options: dict) -> None:
    generator = np.random.default_rng(0)
    image, label = generator.integers(0, 256, (40, 60, 3), np.uint8), generator.integers(0, 9, (40, 60), np.uint8)
    augment = Augment(**options)
    size = augment.crop or label.shape
    place = np.full((*size, 3), 77, np.uint8), np.full(size, 77, np.uint8)
    for seed in range(5):
        expected = augment(image, label, np.random.default_rng(seed))
        for one, other in zip(augment(image, label, np.random.default_rng(seed), place), place, strict=True):
            assert one is other
        assert all((one == other).all() for one, other in zip(place, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_that_are_kept_do_not_change_and_equal_those_that_are_sent(workers: int, channels_last: bool) -> None:
    dataset = open_dataset("streets", size=(32, 48), length=22)
    loader = make_loader(dataset, 2, True, seed=4, workers=workers, augment=Augment(), channels_last=channels_last)
    next(loader.epoch(3))  # an epoch that is left leaves its slots to the next
    kept = list(loader.epoch(0))
    copies = [(images.clone(), labels.clone()) for images, labels in kept]
    for _ in loader.epoch(1):
        pass
    unknown = open_dataset("streets", size=(32, 48), length=22)
    unknown.own_labels = True  # so that no shape is known before a sample is read
    sent = make_loader(unknown, 2, True, seed=4, workers=workers, augment=Augment(), channels_last=channels_last)
    for batches in (copies, list(sent.epoch(0))):
        assert len(batches) == len(kept) == 11
        for (images, labels), (others, other_labels) in zip(kept, batches, strict=True):
            assert torch.equal(images, others) and torch.equal(labels, other_labels)
