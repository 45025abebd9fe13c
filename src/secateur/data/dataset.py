"""What every data set is: numbered pairs of an image and its label, kept in memory once read."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import get_worker_info

from secateur.data.files import resize_image, resize_label
from secateur.data.parallel import in_parallel
from secateur.errors import DataError

log = logging.getLogger(__name__)
IGNORE = 255  # the label of pixels that belong to no class (void)
CACHE_BYTES = 2 * 1024**3  # of decoded samples per process; what does not fit is read again each time
SHOWN = 5  # offenders named in one message

Size = tuple[int, int]  # height and width, in pixels


@dataclass(frozen=True)
class Sample:
    """One image with its label; the arrays are shared with the cache and can't be written to.

    image: uint8 (H, W, 3), RGB.
    label: uint8 (H, W), class numbers, 255 = void; (1, 1) where the image as a whole has a class. Of the image's size,
        unless the data set keeps `own_labels`.
    name: what error messages call it.
    """

    image: np.ndarray
    label: np.ndarray
    name: str


class SegmentationDataset(ABC):
    """Base of the data sets; a subclass says how many samples there are and how one is loaded.

    Args:
        name: the data set, as `open_dataset` knows it.
        classes: names of the classes, in the order of their numbers.
        palette: (R, G, B) of each class.
        split: "train", "val" ...
        size: (height, width) that samples are brought to, in pixels; None leaves each as it is stored.

    Attributes:
        task: "segmentation", or "classification" if labels are of whole images.
        splits: those that are trained on and evaluated, if nothing else is said.
        own_labels: labels keep their own size, whatever that of the images; for evaluation.
        skip_unreadable: `check` warns of samples that can't be used, rather than stop; the training's loader then
            replaces them.
    """

    ignore_index = IGNORE
    task: Literal["segmentation", "classification"] = "segmentation"
    splits: tuple[str, str] = ("train", "val")
    own_labels: bool = False
    skip_unreadable: bool = False

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        split: str,
        size: Size | None,
    ) -> None:
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(f"data size {tuple(size)}: expected (height, width) in pixels, for instance (180, 240)")
        self.name = name
        self.classes = tuple(classes)
        self.palette = tuple(palette)
        self.split = split
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self._cache: dict[int, Sample] = {}
        self._pixel_counts: np.ndarray | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Sample `index` as it is stored, of its own size; it is not kept in memory.

        Raises:
            DataError: a file is missing or broken, or image and label do not fit together.
        """

    def missing(self, index: int) -> list[str]:
        """The files that sample `index` should be read from and that are not there."""
        return []

    def read(self, index: int) -> Sample:
        """Sample `index` at `size`, from memory if it was read before.

        Raises:
            IndexError: there is no such sample.
            DataError: a file is missing or broken, or image and label do not fit together.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} {self.split} has {len(self)} samples, there is no number {index}")
        sample = self._cache.get(index)
        if sample is None:
            sample = self.load(index)
            if self.size is not None:
                label = sample.label if self.own_labels else resize_label(sample.label, self.size)
                sample = Sample(resize_image(sample.image, self.size), label, sample.name)
            sample.image.setflags(write=False)
            sample.label.setflags(write=False)
            worker = get_worker_info()
            share = CACHE_BYTES // (worker.num_workers if worker else 1)
            if (len(self._cache) + 1) * (sample.image.nbytes + sample.label.nbytes) <= share:
                self._cache[index] = sample
        return sample

    def check(self, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Reads every sample once, so that mistakes are found before the training and not in the middle of it.

        Args:
            progress: called with (samples read, samples in all).

        Returns:
            labelled pixels of each class at `size`, int64 (K,); also kept for `class_weights`.

        Raises:
            DataError: names the broken samples, all of them found in this one pass.
        """

        def look(index: int) -> np.ndarray | DataError:
            try:
                return np.bincount(self.read(index).label.ravel(), minlength=256)
            except DataError as error:
                return error

        counts = np.zeros(256, np.int64)
        offenders = []
        for done, found in enumerate(in_parallel(look, len(self), torch.get_num_threads()), start=1):
            if isinstance(found, DataError):
                offenders.append(str(found))
            else:
                counts += found
            if progress is not None:
                progress(done, len(self))
        headline = f"{self.name} {self.split}: {len(offenders)} of {len(self)} samples can't be used"
        if offenders and self.skip_unreadable and len(offenders) < len(self):
            how = "; others take their place in training (data.unreadable=skip)"
            log.warning("%s", listing(headline + how, offenders))
        elif len(offenders) == 1:
            raise DataError(offenders[0])
        elif offenders:
            raise DataError(listing(headline, offenders))
        self._pixel_counts = counts[: len(self.classes)]
        return self._pixel_counts

    @property
    def pixel_counts(self) -> np.ndarray:
        """Labelled pixels of each class at `size`, int64 (K,); the first use reads every sample."""
        return self.check() if self._pixel_counts is None else self._pixel_counts

    @property
    def rarest(self) -> tuple[str, ...]:
        """The half of the classes with the fewest pixels (rounded down), the rarest first."""
        order = np.argsort(self.pixel_counts, kind="stable")
        return tuple(self.classes[int(index)] for index in order[: len(order) // 2])

    def __getstate__(self) -> dict:
        """Without the cache: a process that is sent the data set reads for itself."""
        return {**self.__dict__, "_cache": {}}


def listing(headline: str, offenders: Sequence[str]) -> str:
    """The headline and the first few offenders, one a line."""
    rest = [f"... and {len(offenders) - SHOWN} more"] if len(offenders) > SHOWN else []
    return "\n  ".join([f"{headline}:", *offenders[:SHOWN], *rest])


def limited(count: int, limit: int | None) -> int:
    """How many samples are used when only the first `limit` of `count` are wanted."""
    if limit is None:
        return count
    if limit < 1:
        raise DataError(f"data limit {limit}: expected a number of samples of at least 1, or none for all of them")
    return min(count, limit)
