"""Batches for training and evaluation: the same bits for the same seed and epoch, however many workers make them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from secateur.data.augment import Augment, Change, Normalise
from secateur.data.dataset import Sample, SegmentationDataset, Size
from secateur.data.memory import Blocks, Slots
from secateur.data.on_device import change_batch
from secateur.errors import DataError

log = logging.getLogger(__name__)
Batch = tuple[Tensor, Tensor]
# what a worker is handed: the epoch, the samples of one batch, and the slot that it goes to; None: it is sent
Ticket = tuple[int, list[int], int | None]
Filled = tuple[int, int]  # what comes back: the slot, and how many samples are in it
Made = tuple[Batch | Filled | DataError, list[str]]  # and what is wrong with the samples that others took the place of
AHEAD = 2  # batches that each worker may be ahead
ORDER, SAMPLE, INSTEAD = 0, 1, 2  # keep the random streams of the order, of the samples and of substitutes apart


def make_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    training: bool,
    seed: int = 0,
    workers: int = 0,
    augment: Augment | None = None,
    channels_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    normalise: Normalise | None = None,
    device: torch.device | None = None,
) -> Loader:
    """A loader over `dataset`.

    Args:
        dataset: what is read.
        batch_size: images in a batch, of each process.
        training: shuffle, anew in every epoch; and leave out a last batch of one single image, whose BN statistics
            would be those of that image, unless it is the only batch.
        seed: of the order and of the augmentation.
        workers: processes that prepare batches ahead; 0 prepares them in this one, while the training waits.
        augment: the random changes of each sample; None for none.
        channels_last: images in torch's channels_last memory format.
        rank, world_size: this process and the number of processes, of which each gets its part of every epoch: of equal
            length in training (the order is filled up from its own beginning), exact in evaluation.
        normalise: of the colours; None for ImageNet's.
        device: where the random changes are made, of a whole batch at once; batches are there then. None: by the
            workers, with OpenCV, and batches are in this process's memory.

    Raises:
        DataError: a number is out of range, or images of several sizes should be changed on a device.
    """
    order = _Order(len(dataset), batch_size, training, seed, rank, world_size)
    there = None
    if augment is not None and device is not None:
        if dataset.size is None:
            raise DataError(
                f"{dataset.name}: images can be changed on the device if they are of one size; give data.size, or have "
                "them changed by the workers (transforms: cpu)"
            )
        there = There(device, augment, seed)
    batches = _Batches(dataset, seed, augment if there is None else None, training and dataset.skip_unreadable)
    return Loader(batches, order, workers, normalise or Normalise(), channels_last, there)


@dataclass(frozen=True)
class There:
    """Changes that are made on a device.

    device: which.
    augment: what they are drawn from.
    seed: and with what.
    """

    device: torch.device
    augment: Augment
    seed: int

    def draw(self, epoch: int, indices: Sequence[int], size: Size) -> list[Change]:
        """The changes of these samples, of (height, width), as the workers would draw them."""
        return [self.augment.draw(size, np.random.default_rng((self.seed, SAMPLE, epoch, index))) for index in indices]


class Loader:
    """Made by `make_loader`; `epoch` iterates.

    batch_size: images in a batch.
    waited: seconds of the last epoch spent waiting for data.
    total: seconds of the last epoch from its beginning to its end, the training's own time included.
    """

    def __init__(
        self,
        batches: _Batches,
        order: _Order,
        workers: int,
        normalise: Normalise,
        channels_last: bool,
        there: There | None,
    ) -> None:
        if order.batch_size < 1 or workers < 0:
            raise DataError(
                f"batch_size={order.batch_size}, workers={workers}: expected at least 1 image and 0 workers"
            )
        self.dataset, self.batch_size = batches.dataset, order.batch_size
        self.waited = self.total = 0.0
        self._replaced: dict[str, int] = {}
        self._warned: set[str] = set()
        self._batches, self._workers, self._blocks = batches, workers, Blocks()
        self._order, self._normalise, self._channels_last, self._there = order, normalise, channels_last, there
        self._loader = DataLoader(
            batches,
            batch_size=None,  # a ticket is a whole batch already
            sampler=self._order,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # its own, so that iterating leaves torch's global one as it is
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch: images float32 (N, 3, H, W) normalised, labels int64 (N, H, W) with 255 = void.

        Args:
            epoch: decides, with the seed, the order and the augmentation.
            start: batches to leave out at the beginning, for going on in the middle of an epoch.

        Raises:
            DataError: a file can't be used; the message names it.
        """
        if self._order.slots is None and self._batches.shapes is not None:  # before there are workers
            images, labels = self._batches.shapes
            self._order.slots = self._batches.slots = Slots(
                1 + AHEAD * self._workers,
                (self.batch_size, *images),
                (self.batch_size, *labels),
                shared=self._workers > 0,
            )
        self._order.epoch, self._order.start = epoch, start
        self.waited = self.total = 0.0
        began = time.perf_counter()
        batches, indices = iter(self._loader), self._order.batches()
        while True:
            asked = time.perf_counter()
            batch, replaced = next(batches, (None, []))
            finished = None
            if batch is not None and not isinstance(batch, DataError):
                finished = self._finish(batch, epoch, next(indices))
            self.waited += time.perf_counter() - asked
            self.total = time.perf_counter() - began
            if batch is None:
                return
            if isinstance(batch, DataError):
                try:
                    raise batch
                finally:  # else error, traceback and this frame would hold each other, and the workers, alive
                    del batch
            assert finished is not None
            self._note(replaced)
            yield finished

    def replaced(self) -> dict[str, int]:
        """What is wrong with samples that others took the place of -> how many times, in the batches handed out since
        this was asked last."""
        replaced, self._replaced = self._replaced, {}
        return replaced

    def _note(self, replaced: list[str]) -> None:
        for what in replaced:
            self._replaced[what] = self._replaced.get(what, 0) + 1
            if what not in self._warned:
                self._warned.add(what)
                log.warning("%s; another sample takes its place (data.unreadable=skip)", what)

    def _finish(self, batch: Batch | Filled, epoch: int, indices: list[int]) -> Batch:
        """What workers make are bytes, a fifth of what the training takes, and the way between processes is the
        narrowest: so colours become numbers here, which is quick."""
        slots = self._order.slots
        if slots is None or not isinstance(batch[0], int):
            return self._changed(epoch, indices, *batch)
        slot, count = batch
        finished = self._changed(epoch, indices, *slots.batch(slot, count))
        slots.free(slot)
        return finished

    def _changed(self, epoch: int, indices: list[int], images: Tensor, labels: Tensor) -> Batch:
        if self._there is None:
            return self._numbers(images, labels)
        changes = self._there.draw(epoch, indices, (images.shape[1], images.shape[2]))
        images, labels = images.to(self._there.device), labels.to(self._there.device)
        border = self._there.augment.border
        return change_batch(images, labels, changes, border, self._normalise, self._channels_last)

    def _numbers(self, images: Tensor, labels: Tensor) -> Batch:
        """Images in bytes (N, H, W, 3) as (N, 3, H, W), normalised; labels as int64."""
        count, height, width, _ = images.shape
        pinned = torch.cuda.is_available()  # from there copies to a GPU need not be waited for
        numbers = self._empty((count, height, width, 3), torch.float32, pinned and self._channels_last)
        # the whole batch as one tall image
        self._normalise(images.view(-1, width, 3).numpy(), out=numbers.view(-1, width, 3).numpy())
        batch = numbers.permute(0, 3, 1, 2)  # NHWC in memory is channels_last
        if not self._channels_last:
            batch = self._empty((count, 3, height, width), torch.float32, pinned).copy_(batch)
        return batch, self._empty(tuple(labels.shape), torch.int64, pinned).copy_(labels)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> Tensor:
        """Pinned memory is used again by torch."""
        return torch.empty(shape, dtype=dtype, pin_memory=True) if pinned else self._blocks.empty(shape, dtype)


class _Order(Sampler[Ticket]):
    """Which samples make up each batch of an epoch."""

    def __init__(self, count: int, batch_size: int, training: bool, seed: int, rank: int, world_size: int) -> None:
        self.count, self.batch_size, self.training, self.seed = count, batch_size, training, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0
        self.slots: Slots | None = None

    def __iter__(self) -> Iterator[Ticket]:
        if self.slots is not None:  # nobody writes any more what was asked for in an epoch that was left
            self.slots.take_back()
        for indices in self.batches():
            yield self.epoch, indices, None if self.slots is None else self.slots.take()

    def batches(self) -> Iterator[list[int]]:
        """The samples of each batch of the epoch, from the one on that it starts with."""
        order = np.arange(self.count)
        if self.training:
            order = np.random.default_rng((self.seed, ORDER, self.epoch)).permutation(self.count)
            order = np.resize(order, -(-self.count // self.world_size) * self.world_size)
        order = order[self.rank :: self.world_size]
        for batch in range(self.start, len(self)):
            yield order[batch * self.batch_size :][: self.batch_size].tolist()

    def __len__(self) -> int:
        mine = len(range(self.rank, self.count, self.world_size))
        if self.training:
            mine = -(-self.count // self.world_size)
        full, rest = divmod(mine, self.batch_size)
        return full if rest == 0 or (self.training and rest == 1 and full > 0) else full + 1


class _Batches(Dataset[Made]):
    """Makes the batch that a ticket asks for, in bytes: images (N, H, W, 3), labels (N, H, W); runs in the workers.

    slots: where batches go whose shape is known beforehand.
    skip: of a sample that can't be used, another takes the place: drawn for the epoch and the place, so that a training
        that is gone on with, or has other workers, sees the same one; changed as the first would have been.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        seed: int,
        augment: Augment | None,
        skip: bool,
    ) -> None:
        self.dataset, self.seed, self.augment, self.skip = dataset, seed, augment, skip
        self.slots: Slots | None = None

    @property
    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int]] | None:
        """Of every image and label; None where that is not known before they are read."""
        size = self.dataset.size if self.augment is None or self.augment.crop is None else self.augment.crop
        if size is None or self.dataset.own_labels:
            return None
        return (*size, 3), (size if self.dataset.task == "segmentation" else (1, 1))

    def __getitem__(self, ticket: Ticket) -> Made:
        self._replaced: list[str] = []
        return self._make(ticket), self._replaced

    def _make(self, ticket: Ticket) -> Batch | Filled | DataError:
        epoch, indices, slot = ticket
        try:
            if slot is not None:
                assert self.slots is not None
                images, labels = (each.numpy() for each in self.slots.batch(slot, len(indices)))
                for index, *out in zip(indices, images, labels, strict=True):
                    self._sample(epoch, index, (out[0], out[1]))
                return slot, len(indices)
            samples = [self._sample(epoch, index) for index in indices]
            self._check_sizes(samples)
        except DataError as error:
            return error  # handed over as it is: torch would wrap a worker's exception in its traceback
        images, labels = (np.stack([getattr(each, kind) for each in samples]) for kind in ("image", "label"))
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _sample(self, epoch: int, index: int, out: tuple[np.ndarray, np.ndarray] | None = None) -> Sample:
        """A sample as it goes into the batch; written to `out`, if that is given."""
        sample = self._read(epoch, index)
        if self.augment is not None:
            generator = np.random.default_rng((self.seed, SAMPLE, epoch, index))
            return Sample(*self.augment(sample.image, sample.label, generator, out), name=sample.name)
        if out is not None:
            out[0][:], out[1][:] = sample.image, sample.label
        return sample

    def _read(self, epoch: int, index: int) -> Sample:
        try:
            return self.dataset.read(index)
        except DataError as error:
            if not self.skip:
                raise
            self._replaced.append(str(error))
        for other in np.random.default_rng((self.seed, INSTEAD, epoch, index)).permutation(len(self.dataset)):
            with contextlib.suppress(DataError):
                return self.dataset.read(int(other))
        raise DataError(f"{self.dataset.name} {self.dataset.split}: none of {len(self.dataset)} samples can be read")

    @staticmethod
    def _check_sizes(samples: list[Sample]) -> None:
        first = samples[0]
        for other in samples[1:]:
            if other.image.shape != first.image.shape:
                one, two = ("x".join(map(str, sample.image.shape[:2])) for sample in (first, other))
                raise DataError(
                    f"{first.name} is {one} and {other.name} is {two}, which do not fit into one batch; give a size "
                    "that all are brought to, a crop, or batches of one image"
                )


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(
        0
    )  # the workers are the parallelism; OpenCV's own threads would only fight the training for cores
